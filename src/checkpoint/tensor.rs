//! Tensors in host memory.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};
use serde::Serialize;

/// How floating-point tensors are stored on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    pub(super) fn of(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Widens little-endian values of this type to f32, exactly.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => little_endian(bytes).map(f32::from_le_bytes).collect(),
            Self::F16 => little_endian(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Self::Bf16 => little_endian(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }

    /// Rounds f32 values to this type (to nearest, ties to even), little-endian.
    pub(super) fn encode(self, values: &[f32]) -> Cow<'_, [u8]> {
        match self {
            Self::F32 if cfg!(target_endian = "little") => bytemuck::cast_slice(values).into(),
            Self::F32 => bytes_of(values, f32::to_le_bytes).into(),
            Self::F16 => bytes_of(values, |value| f16::from_f32(value).to_le_bytes()).into(),
            Self::Bf16 => bytes_of(values, |value| bf16::from_f32(value).to_le_bytes()).into(),
        }
    }
}

/// The bytes of each value, one after the other.
fn bytes_of<const N: usize>(values: &[f32], of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; N * values.len()];
    for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = of(value);
    }
    bytes
}

/// `bytes` in arrays of `N`; a remainder, which a validated file cannot have, is dropped.
pub(super) fn little_endian<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

impl From<Dtype> for safetensors::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A tensor in host memory, row-major; convolution weights are OIHW.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, as many as the product of `shape`.
    pub data: HostData,
}

/// The elements of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// Weights and statistics.
    F32(Vec<f32>),
    /// Batch counters.
    I64(Vec<i64>),
}

impl HostTensor {
    /// A tensor of weights or statistics; `data` holds as many elements as `shape` asks for.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self { shape: shape.into(), data: HostData::F32(data) }
    }

    /// An i64 scalar, such as `num_batches_tracked`.
    pub fn scalar(value: i64) -> Self {
        Self { shape: Vec::new(), data: HostData::I64(vec![value]) }
    }

    /// The elements of a tensor of weights or statistics.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            HostData::F32(data) => Some(data),
            HostData::I64(_) => None,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            HostData::F32(data) => data.len(),
            HostData::I64(data) => data.len(),
        }
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor with values that no computation survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NonFinite {
    /// The tensor.
    pub name: String,
    /// How many of its values are NaN or infinite.
    pub count: usize,
    /// How many values it has.
    pub of: usize,
}

impl NonFinite {
    pub(super) fn of(name: &str, tensor: &HostTensor) -> Option<Self> {
        let data = tensor.as_f32()?;
        let count = data.iter().filter(|value| !value.is_finite()).count();
        (count > 0).then(|| Self { name: name.to_owned(), count, of: data.len() })
    }
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} of {} values)", self.name, self.count, self.of)
    }
}
