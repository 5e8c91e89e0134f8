//! Checkpoints: pretrained networks in, fine-tuned networks out, as safetensors.
//!
//! In memory every checkpoint has torchvision's names and layouts, whatever the file used; what is
//! written loads with torchvision's strict `load_state_dict`. A [`Source`] says where the file
//! comes from.

mod atomic;
mod classes;
mod container;
mod fit;
pub mod hub;
mod inspect;
mod lineage;
mod meta;
mod names;
pub mod onnx;
mod read;
mod source;
mod tensor;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::nn::arch::Arch;

pub use atomic::{check_writable, copy_atomically, is_temporary, write_atomically};
pub use fit::{HeadPolicy, LoadReport, MisShaped};
pub use inspect::{Inspection, TensorInfo, describe};
pub(crate) use meta::ARCH;
pub use meta::{IMAGENET_MEAN, IMAGENET_STD, Meta};
pub use source::Source;
pub use tensor::{Dtype, HostData, HostTensor, NonFinite};
pub(crate) use write::header;

/// A network's weights and what is known about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The network.
    pub arch: Arch,
    /// Every tensor under torchvision's name. The backbone is complete; the classifier (`fc`) is
    /// either complete or absent.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Classes, preprocessing and origin.
    pub meta: Meta,
    /// How the convolutions were stored on disk; in memory everything is f32.
    pub dtype: Dtype,
    /// Tensors the file lacked that have a natural start: batch counters (zero here) and the
    /// classifier (absent here).
    pub missing: Vec<String>,
    /// Tensors of the file that belong to no ResNet and were ignored, under the file's names.
    pub unexpected: Vec<String>,
}

impl Checkpoint {
    /// Outputs of the classifier, when there is one.
    pub fn num_classes(&self) -> Option<usize> {
        self.tensors.get("fc.bias").map(HostTensor::len)
    }

    /// The tensors that hold NaN or infinite values. Reading lets them pass, so that a broken
    /// checkpoint can still be inspected; training from one cannot succeed.
    pub fn non_finite(&self) -> Vec<NonFinite> {
        let tensors = self.tensors.iter();
        tensors.filter_map(|(name, tensor)| NonFinite::of(name, tensor)).collect()
    }
}

/// The SHA-256 of the file at `path` in hexadecimal digits, as lineages name checkpoints.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    hub::sha256(path).map_err(Error::io(path))
}
