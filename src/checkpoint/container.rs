//! The safetensors container: from a file nobody vouches for to typed byte ranges that are there.
//!
//! Nothing is believed before it is checked against the length of the file, and nothing is
//! allocated that the file does not pay for with as many bytes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Twice a resnet152 in f32: anything larger is something else.
const MAX_FILE: u64 = 512 << 20;

/// Room for the tensors of a resnet152 (80 kB) and a very long class list.
const MAX_HEADER: u64 = 16 << 20;

/// The bytes before the header: its length, u64, little-endian.
const LENGTH: usize = 8;

/// A safetensors file in memory, its header validated.
pub(super) struct Container {
    bytes: Vec<u8>,
    /// Every tensor under the file's name.
    pub tensors: BTreeMap<String, Stored>,
    /// The free-form strings of the header.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor as the file has it.
pub(super) struct Stored {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    range: Range<usize>,
}

impl Container {
    /// Reads and validates the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path)?;
        Self::parse(bytes).map_err(|what| Error::checkpoint(path, what))
    }

    fn parse(bytes: Vec<u8>) -> std::result::Result<Self, String> {
        refuse_other_formats(&bytes)?;
        let header = header(&bytes)?;
        let start = LENGTH + header.len();
        serde_json::from_slice::<UniqueKeys>(header).map_err(|error| damaged(&error))?;
        let (_, parsed) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let tensors = parsed.tensors().into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let range = start + from..start + to;
            (name, Stored { dtype: info.dtype, shape: info.shape.clone(), range })
        });
        let tensors = tensors.collect();
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { bytes, tensors, metadata })
    }

    /// The little-endian elements of a tensor of this file.
    pub fn bytes(&self, tensor: &Stored) -> &[u8] {
        &self.bytes[tensor.range.clone()]
    }

    /// The size of the file in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let refuse = |what: String| Err(Error::checkpoint(path, what));
    let file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if about.is_dir() && path.join("args.json").is_file() {
        return refuse("is a run without weights: none of its epochs has ended".into());
    }
    if about.is_dir() {
        return refuse("is a folder; name the .safetensors file in it".into());
    }
    if !about.is_file() {
        return refuse("is not a regular file".into());
    }
    if about.len() > MAX_FILE {
        return refuse(format!("has {} bytes, more than any ResNet needs", about.len()));
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Names the formats that are mistaken for safetensors, with the way out.
fn refuse_other_formats(bytes: &[u8]) -> std::result::Result<(), String> {
    if bytes.is_empty() {
        return Err("is empty; download or copy it again".into());
    }
    let header_follows = bytes.get(LENGTH) == Some(&b'{');
    let pickle = bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]);
    if pickle && !header_follows {
        return Err("is a PyTorch pickle (.pth, .pt or .bin), which can run code when it is \
                    loaded and is not read; convert it once with Python: import torch, \
                    safetensors.torch as s; s.save_file(torch.load('model.pth', \
                    weights_only=True), 'model.safetensors')"
            .into());
    }
    if bytes.starts_with(b"{") && !header_follows {
        return Err("is JSON, not a safetensors file; an ensemble is for `wgrad evaluate`, \
                    `wgrad predict` and `wgrad export`; one network of several comes from \
                    `wgrad fuse distill`, or from `wgrad fuse soup` where all began as one"
            .into());
    }
    if bytes.starts_with(b"<") && !header_follows {
        return Err("is a web page, not a safetensors file; download the file itself".into());
    }
    // Its first fields: the version of the format and, often, who wrote it.
    if matches!(bytes, [0x08, 1..=31, 0x12 | 0x1a | 0x3a | 0x42, ..]) && !header_follows {
        return Err(
            "is an ONNX file, which `wgrad export` writes and other programs read; give the \
                    safetensors file that it came from"
                .into(),
        );
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(
            "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into()
        );
    }
    Ok(())
}

/// The JSON header, its length checked against the file's.
fn header(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Err(damaged(&format!("{} bytes are too few for a header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(damaged(&format!("the header claims {length} bytes")));
    }
    // Cannot truncate: MAX_HEADER fits any usize.
    rest.get(..length as usize).ok_or_else(|| {
        damaged(&format!("the header claims {length} bytes and only {} follow", rest.len()))
    })
}

fn damaged(why: &dyn fmt::Display) -> String {
    format!("is not a valid safetensors file ({why}); download or copy it again")
}

/// A JSON object in which no key comes twice: with two entries of one name, which tensor is read
/// would be left to chance.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
            if let Some(twice) = seen.replace(key) {
                return Err(A::Error::custom(format!("{twice} is listed twice")));
            }
        }
        Ok(self)
    }
}
