//! What a checkpoint holds, for `wgrad inspect`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::container::Container;
use super::fit::{list, list_by};
use super::lineage::tree;
use super::read::{canonical_names, from_container};
use super::{Dtype, NonFinite};
use crate::error::{Error, Result};

/// Everything worth knowing about a checkpoint file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: usize,
    /// The network, such as `resnet18`.
    pub arch: String,
    /// How the convolutions are stored.
    pub dtype: Dtype,
    /// Trainable parameters.
    pub parameters: usize,
    /// Outputs of the classifier; none without one.
    pub num_classes: Option<usize>,
    /// Their names.
    pub classes: Option<Vec<String>>,
    /// Side of the square input in pixels.
    pub image_size: Option<u32>,
    /// Mean of the input's RGB channels.
    pub mean: [f32; 3],
    /// Standard deviation of the input's RGB channels.
    pub std: [f32; 3],
    /// Where the weights come from.
    pub provenance: Option<Value>,
    /// The header's other strings.
    pub metadata: BTreeMap<String, String>,
    /// The network's tensors that the file lacks.
    pub missing: Vec<String>,
    /// The file's tensors that no ResNet has.
    pub unexpected: Vec<String>,
    /// Tensors with NaN or infinite values.
    pub non_finite: Vec<NonFinite>,
    /// The file's tensors, in torchvision's order.
    pub tensors: Vec<TensorInfo>,
}

/// A tensor of a checkpoint file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Torchvision's name.
    pub name: String,
    /// The file's name for it, where that differs.
    pub stored_as: Option<String>,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// The file's element type, such as `F16`.
    pub dtype: String,
}

/// Reads the checkpoint at `path` and describes it.
///
/// # Errors
/// Those of [`Checkpoint::read`](super::Checkpoint::read).
pub fn describe(path: impl AsRef<Path>) -> Result<Inspection> {
    let path = path.as_ref();
    let file = Container::read(path)?;
    describe_container(path, &file).map_err(|what| Error::checkpoint(path, what))
}

fn describe_container(path: &Path, file: &Container) -> std::result::Result<Inspection, String> {
    let checkpoint = from_container(file)?;
    let named = canonical_names(file)?;
    let num_classes = checkpoint.num_classes();
    let entries = match num_classes {
        Some(classes) => checkpoint.arch.entries(classes),
        None => checkpoint.arch.backbone_entries(),
    };
    let parameters = entries.iter().filter(|entry| entry.kind.is_parameter());
    let parameters = parameters.map(|entry| entry.shape.iter().product::<usize>()).sum();
    let tensors = entries.into_iter().filter_map(|entry| {
        let (stored_name, tensor) = named.get(&entry.name)?;
        Some(TensorInfo {
            stored_as: (*stored_name != entry.name).then(|| stored_name.to_string()),
            name: entry.name,
            shape: entry.shape,
            dtype: tensor.dtype.to_string(),
        })
    });
    Ok(Inspection {
        path: path.to_owned(),
        bytes: file.len(),
        arch: checkpoint.arch.to_string(),
        dtype: checkpoint.dtype,
        parameters,
        num_classes,
        tensors: tensors.collect(),
        non_finite: checkpoint.non_finite(),
        classes: checkpoint.meta.classes,
        image_size: checkpoint.meta.image_size,
        mean: checkpoint.meta.mean,
        std: checkpoint.meta.std,
        provenance: checkpoint.meta.provenance,
        metadata: checkpoint.meta.extra,
        missing: checkpoint.missing,
        unexpected: checkpoint.unexpected,
    })
}

/// For people; `{:#}` leaves the list of the tensors out.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {:.1} MB, {}", self.path.display(), self.bytes as f64 / 1e6, self.dtype)?;
        let millions = self.parameters as f64 / 1e6;
        write!(f, "network        {}, {millions:.2} M parameters", self.arch)?;
        match self.num_classes {
            Some(classes) => writeln!(f, ", {classes} classes")?,
            None => writeln!(f, ", no classifier")?,
        }
        if let Some(classes) = &self.classes {
            // Names of classes have commas in them.
            writeln!(f, "classes        {}", list_by("; ", classes))?;
        }
        write!(f, "preprocessing  ")?;
        if let Some(size) = self.image_size {
            write!(f, "{size}×{size} px, ")?;
        }
        writeln!(f, "RGB/255, mean {:?}, std {:?}", self.mean, self.std)?;
        let mut title = "provenance";
        for line in self.provenance.iter().flat_map(tree) {
            writeln!(f, "{title:<14} {}", brief(&line))?;
            title = "";
        }
        for (key, text) in &self.metadata {
            writeln!(f, "{key:<14} {}", brief(text))?;
        }
        for (title, names) in [("missing", &self.missing), ("ignored", &self.unexpected)] {
            if !names.is_empty() {
                writeln!(f, "{title:<14} {}", list(names))?;
            }
        }
        if !self.non_finite.is_empty() {
            writeln!(f, "NOT FINITE     {}", list(&self.non_finite))?;
        }
        write!(f, "{} tensors", self.tensors.len())?;
        if f.alternate() {
            return Ok(());
        }
        for tensor in &self.tensors {
            let shape = format!("{:?}", tensor.shape);
            write!(f, "\n  {:<36} {shape:<20} {}", tensor.name, tensor.dtype)?;
            if let Some(stored) = &tensor.stored_as {
                write!(f, "  from {stored}")?;
            }
        }
        Ok(())
    }
}

/// The start of a text that may be long and that may hold control characters.
fn brief(text: &str) -> String {
    const SHOWN: usize = 400;
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let shown: String = text.chars().take(SHOWN).map(printable).collect();
    if text.chars().nth(SHOWN).is_some() { shown + "…" } else { shown }
}
