//! From a safetensors file to a [`Checkpoint`].

use std::collections::BTreeMap;
use std::path::Path;

use super::container::{Container, Stored};
use super::fit::{MisShaped, list};
use super::names;
use super::tensor::{Dtype, HostData, HostTensor, little_endian};
use super::{Checkpoint, Meta};
use crate::error::{Error, Result};
use crate::nn::arch::{Arch, Entry, Kind};

/// The tensors of a file by torchvision's names, with the file's own.
pub(super) type Named<'a> = BTreeMap<String, (&'a str, &'a Stored)>;

impl Checkpoint {
    /// Reads a safetensors file in f32, f16 or bf16, under the names of torchvision, timm or
    /// `transformers`, with or without a wrapper's prefix (`model.`, `module.`, `backbone.`).
    ///
    /// Batch counters and the classifier may be absent, and tensors outside the network are
    /// ignored: [`Checkpoint::missing`] and [`Checkpoint::unexpected`] name them. A file from
    /// `transformers` does not say where its bottlenecks stride; it is taken to be the 3×3
    /// convolution, as in torchvision (`downsample_in_bottleneck=False`, the default there).
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Checkpoint`] when it is damaged, of
    /// another format, not one of the five ResNets (each tensor that does not fit is named), or
    /// has its batch norm folded away.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Container::read(path)?;
        from_container(&file).map_err(|what| Error::checkpoint(path, what))
    }
}

/// The checkpoint in a valid file, or why there is none.
pub(super) fn from_container(file: &Container) -> std::result::Result<Checkpoint, String> {
    let named = canonical_names(file)?;
    refuse_folded(&named)?;
    let shapes = named.iter().map(|(name, (_, tensor))| (name.clone(), tensor.shape.clone()));
    let arch = Arch::infer(&shapes.collect())?;
    let expected = expected(&arch, &named)?;
    let Differences { missing, unexpected } = differences(&arch, &expected, &named)?;
    let meta = Meta::parse(file.metadata.clone(), &arch)?;

    let mut tensors = BTreeMap::new();
    for Entry { name, kind, .. } in expected {
        let tensor = match named.get(&name) {
            Some((stored_name, tensor)) => decode(stored_name, kind, tensor, file.bytes(tensor))?,
            None => HostTensor::scalar(0),
        };
        tensors.insert(name, tensor);
    }
    let dtype = named.get("conv1.weight").and_then(|(_, stem)| Dtype::of(stem.dtype));
    let checkpoint =
        Checkpoint { arch, tensors, meta, dtype: dtype.unwrap_or(Dtype::F32), missing, unexpected };
    checkpoint.check_classes()?;
    Ok(checkpoint)
}

impl Checkpoint {
    /// Whether the class list is as long as the classifier is wide.
    pub(super) fn check_classes(&self) -> std::result::Result<(), String> {
        match (self.num_classes(), &self.meta.classes) {
            (Some(outputs), Some(classes)) if outputs != classes.len() => Err(format!(
                "names {} classes, but its classifier has {outputs} outputs",
                classes.len()
            )),
            _ => Ok(()),
        }
    }
}

/// The file's tensors by torchvision's names.
pub(super) fn canonical_names(file: &Container) -> std::result::Result<Named<'_>, String> {
    let mut named = Named::new();
    for (stored_name, tensor) in &file.tensors {
        let name = names::canonical(stored_name);
        if let Some((other, _)) = named.insert(name.clone(), (stored_name, tensor)) {
            return Err(format!("holds both {other} and {stored_name}, which both mean {name}"));
        }
    }
    Ok(named)
}

fn refuse_folded(named: &Named) -> std::result::Result<(), String> {
    let has_norms = named.keys().any(|name| name.ends_with(".running_mean"));
    let bias = named.keys().find(|name| names::is_conv_bias(name));
    let sign = match (named.contains_key("conv1.weight"), bias, has_norms) {
        (true, Some(bias), _) => format!("convolutions have biases ({bias})"),
        (true, None, false) => "there are no batch-norm statistics".into(),
        _ => return Ok(()),
    };
    Err(format!(
        "has its batch norm folded into the convolutions ({sign}); such a network predicts but \
         cannot be fine-tuned: use the checkpoint from before it was fused or exported"
    ))
}

/// The state dict to expect: with a classifier when the file holds any part of one.
fn expected(arch: &Arch, named: &Named) -> std::result::Result<Vec<Entry>, String> {
    let rows = |name| named.get(name).and_then(|(_, tensor)| tensor.shape.first().copied());
    match rows("fc.weight").or_else(|| rows("fc.bias")) {
        Some(0) => Err("has a classifier without outputs (fc.weight)".into()),
        Some(classes) => Ok(arch.entries(classes)),
        None => Ok(arch.backbone_entries()),
    }
}

/// The differences from the expected state dict that can be lived with.
struct Differences {
    missing: Vec<String>,
    unexpected: Vec<String>,
}

fn differences(
    arch: &Arch,
    expected: &[Entry],
    named: &Named,
) -> std::result::Result<Differences, String> {
    let mut absent = Vec::new();
    let mut missing = Vec::new();
    let mut mis_shaped = Vec::new();
    for entry in expected {
        match named.get(&entry.name) {
            None if entry.kind == Kind::NumBatches => missing.push(entry.name.clone()),
            None => absent.push(entry.name.clone()),
            Some((stored_name, tensor)) if tensor.shape != entry.shape => {
                mis_shaped.push(MisShaped {
                    name: stored_name.to_string(),
                    found: tensor.shape.clone(),
                    expected: entry.shape.clone(),
                });
            }
            Some(_) => {}
        }
    }
    if !expected.iter().any(|entry| entry.kind == Kind::LinearWeight) {
        missing.extend(["fc.weight", "fc.bias"].map(String::from));
    }
    let others = named.iter().filter(|(name, _)| expected.iter().all(|entry| entry.name != **name));
    let (foreign, unexpected): (Vec<_>, Vec<_>) =
        others.partition(|(name, _)| names::is_inside_network(name));
    let stored_names = |tensors: Vec<(_, &(&str, _))>| {
        tensors.iter().map(|(_, (name, _))| name.to_string()).collect()
    };
    let (foreign, unexpected): (Vec<String>, _) = (stored_names(foreign), stored_names(unexpected));
    if absent.is_empty() && mis_shaped.is_empty() && foreign.is_empty() {
        return Ok(Differences { missing, unexpected });
    }
    // What is lacking may be there under a name that means nothing here.
    let unexpected = [foreign, unexpected].concat();
    let complaints = [
        (!absent.is_empty()).then(|| format!("missing {}", list(&absent))),
        (!mis_shaped.is_empty()).then(|| format!("of the wrong shape {}", list(&mis_shaped))),
        (!unexpected.is_empty()).then(|| format!("unexpected {}", list(&unexpected))),
    ];
    let complaints: Vec<_> = complaints.into_iter().flatten().collect();
    Err(format!("is not a {arch}: {}", complaints.join("; ")))
}

fn decode(
    name: &str,
    kind: Kind,
    tensor: &Stored,
    bytes: &[u8],
) -> std::result::Result<HostTensor, String> {
    let data = match (kind, tensor.dtype, Dtype::of(tensor.dtype)) {
        (Kind::NumBatches, safetensors::Dtype::I64, _) => {
            HostData::I64(little_endian(bytes).map(i64::from_le_bytes).collect())
        }
        (Kind::NumBatches, other, _) => {
            return Err(format!("{name} is {other}, where i64 is expected"));
        }
        (_, _, Some(dtype)) => HostData::F32(dtype.decode(bytes)),
        (_, other, None) => {
            return Err(format!("{name} is {other}; only F32, F16 and BF16 are read"));
        }
    };
    Ok(HostTensor { shape: tensor.shape.clone(), data })
}
