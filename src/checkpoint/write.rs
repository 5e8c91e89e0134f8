//! From a [`Checkpoint`] to a safetensors file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use super::atomic::write_atomically;
use super::{Checkpoint, Dtype, HostData, HostTensor};
use crate::error::{Error, Result};
use crate::nn::arch::Entry;

impl Checkpoint {
    /// Writes a safetensors file that torchvision loads strictly, atomically: an error leaves what
    /// was at `path` untouched. The same checkpoint gives the same bytes.
    ///
    /// With a half-precision `dtype` the vectors (batch norm and `fc.bias`, under 1 % of a file)
    /// stay f32: a running variance near zero would lose most of its digits.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a tensor is missing, misshapen or too large for f16;
    /// [`Error::Io`] when the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
        let path = path.as_ref();
        let refuse = |what| Error::checkpoint(path, what);
        self.check_classes().map_err(refuse)?;
        let strings = self.meta.strings(&self.arch).map_err(refuse)?;
        let tensors = self.laid_out(dtype).map_err(refuse)?;
        let infos = tensors.iter().map(|output| {
            (output.name.clone(), output.stored_dtype(), output.tensor.shape.clone())
        });
        let header = header(strings, infos)
            .map_err(|error| refuse(format!("cannot be written: {error}")))?;
        write_atomically(path, |file| {
            file.write_all(&header)?;
            for tensor in &tensors {
                file.write_all(&tensor.bytes())?;
            }
            Ok(())
        })
    }

    /// Every tensor in torchvision's order, but wider elements first, so that each is aligned.
    fn laid_out(&self, dtype: Dtype) -> std::result::Result<Vec<Output<'_>>, String> {
        let entries = match self.num_classes() {
            Some(classes) => self.arch.entries(classes),
            None => self.arch.backbone_entries(),
        };
        if let Some(name) =
            self.tensors.keys().find(|name| entries.iter().all(|e| e.name != **name))
        {
            return Err(format!("cannot be written: {name} is no tensor of a {}", self.arch));
        }
        let mut outputs = Vec::with_capacity(entries.len());
        for entry in entries {
            outputs.push(self.output(entry, dtype)?);
        }
        outputs.sort_by_key(|output| std::cmp::Reverse(output.stored_dtype().bitsize()));
        Ok(outputs)
    }

    fn output(&self, entry: Entry, dtype: Dtype) -> std::result::Result<Output<'_>, String> {
        let Entry { name, shape, .. } = entry;
        let Some(tensor) = self.tensors.get(&name) else {
            return Err(format!("cannot be written: {name} is missing"));
        };
        if tensor.shape != shape || tensor.len() != shape.iter().product::<usize>() {
            return Err(format!(
                "cannot be written: {name} has shape {:?} and {} elements, where {shape:?} is needed",
                tensor.shape,
                tensor.len()
            ));
        }
        let dtype = if shape.len() > 1 { dtype } else { Dtype::F32 };
        if dtype == Dtype::F16 && tensor.as_f32().is_some_and(|data| data.iter().any(overflows_f16))
        {
            return Err(format!(
                "cannot be written as f16: {name} holds values beyond ±65504; write f32"
            ));
        }
        Ok(Output { name, tensor, dtype })
    }
}

/// Whether a finite value becomes infinite.
fn overflows_f16(value: &f32) -> bool {
    value.is_finite() && half::f16::from_f32(*value).is_infinite()
}

/// A tensor on its way to the file.
struct Output<'a> {
    name: String,
    tensor: &'a HostTensor,
    dtype: Dtype,
}

impl Output<'_> {
    fn stored_dtype(&self) -> safetensors::Dtype {
        match self.tensor.data {
            HostData::F32(_) => self.dtype.into(),
            HostData::I64(_) => safetensors::Dtype::I64,
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.tensor.data {
            HostData::F32(data) => self.dtype.encode(data),
            HostData::I64(data) => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// What a safetensors file has before the bytes of its tensors, which follow one another in this order. The
/// safetensors crate validates and spells the tensors; the strings are put in here because it would write them
/// in the random order of a hash map, and equal checkpoints must be equal files.
///
/// # Errors
/// What the safetensors crate does not take.
pub(crate) fn header(
    strings: BTreeMap<String, String>,
    tensors: impl Iterator<Item = (String, safetensors::Dtype, Vec<usize>)>,
) -> std::result::Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let infos = tensors.map(|(name, dtype, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let infos = serde_json::to_value(Metadata::new(None, infos.collect())?)?;
    let strings = strings.into_iter().map(|(key, text)| (key, Value::String(text))).collect();
    let mut header = Map::from_iter([("__metadata__".to_owned(), Value::Object(strings))]);
    if let Value::Object(infos) = infos {
        header.extend(infos);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes(), &header[..]].concat())
}
