//! Device tensors: f32 or f16, channels last.
//!
//! Channels are padded to a multiple of four so that kernels load four at a time; padding holds
//! zeros, and every kernel keeps it so. Padding exists on the device only: [`Tensor::upload`] and
//! [`Tensor::download`] take and give the numbers without it.

use half::f16;

use crate::gpu::{Gpu, Slice};
use crate::{Error, Result};

/// Sizes of a tensor: images, height, width, channels. A matrix is `(n, 1, 1, c)`, a vector
/// `(1, 1, 1, c)`; a convolution's weight is `(r, s, c_in, c_out)` with `c_in` padded by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Images, or rows of a kernel.
    pub n: usize,
    /// Height, or columns of a kernel.
    pub h: usize,
    /// Width, or input channels of a kernel.
    pub w: usize,
    /// Channels, the fastest index.
    pub c: usize,
}

impl Shape {
    /// A shape of four sizes.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c }
    }

    /// A matrix of `n` rows and `c` columns.
    pub const fn matrix(n: usize, c: usize) -> Self {
        Self::new(n, 1, 1, c)
    }

    /// A vector of `c` elements.
    pub const fn vector(c: usize) -> Self {
        Self::new(1, 1, 1, c)
    }

    /// Rows of the matrix of pixels × channels.
    pub const fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Groups of four channels, the last one perhaps padded.
    pub const fn c4(&self) -> usize {
        self.c.div_ceil(4)
    }

    /// Takes the padding out of numbers as they lie on the device.
    pub fn unpad(&self, padded: &[f32]) -> Vec<f32> {
        match self.c4() * 4 {
            width if width == self.c => padded.to_vec(),
            width => padded.chunks_exact(width).flat_map(|row| &row[..self.c]).copied().collect(),
        }
    }

    /// Numbers without padding.
    pub const fn len(&self) -> usize {
        self.pixels() * self.c
    }

    /// Whether there are no numbers.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Groups of four numbers on the device.
    pub const fn vec4s(&self) -> usize {
        self.pixels() * self.c4()
    }

    /// Bytes on the device, in f32.
    pub const fn bytes(&self) -> u64 {
        self.bytes_as(Dtype::F32)
    }

    /// Bytes on the device.
    pub const fn bytes_as(&self, dtype: Dtype) -> u64 {
        self.vec4s() as u64 * 4 * dtype.bytes()
    }
}

/// How numbers are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
}

impl Dtype {
    /// How networks on this device store activations; see [`Gpu::mixed`].
    pub fn of_activations(gpu: &Gpu) -> Self {
        if gpu.mixed() { Self::F16 } else { Self::F32 }
    }

    /// Bytes of a number.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// The numbers of a tensor of this type, in NHWC order without padding, from the bytes of its memory.
    pub fn read(self, shape: Shape, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => shape.unpad(&bytemuck::pod_collect_to_vec::<u8, f32>(bytes)),
            Self::F16 => {
                let halves = bytemuck::pod_collect_to_vec::<u8, f16>(bytes);
                shape.unpad(&halves.into_iter().map(f16::to_f32).collect::<Vec<_>>())
            }
        }
    }

    /// Whether it is [`Dtype::F16`]: what [`crate::gpu::Kernel::half`] asks.
    pub const fn is_half(self) -> bool {
        matches!(self, Self::F16)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_half() { "f16" } else { "f32" })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}x{}", self.n, self.h, self.w, self.c)
    }
}

/// Numbers on the device; clones share them.
#[derive(Clone)]
pub struct Tensor {
    memory: Slice,
    shape: Shape,
    dtype: Dtype,
}

impl Tensor {
    /// A tensor of f32 with undefined content, padding included.
    pub fn empty(gpu: &Gpu, shape: Shape) -> Self {
        Self::empty_as(gpu, shape, Dtype::F32)
    }

    /// [`Tensor::empty`] of any type.
    pub fn empty_as(gpu: &Gpu, shape: Shape, dtype: Dtype) -> Self {
        Self { memory: gpu.lease(shape.bytes_as(dtype)), shape, dtype }
    }

    /// A tensor of f32 in memory that exists already.
    ///
    /// # Panics
    /// If the memory has another size than the shape.
    pub fn view(memory: Slice, shape: Shape) -> Self {
        Self::view_as(memory, shape, Dtype::F32)
    }

    /// [`Tensor::view`] of any type.
    ///
    /// # Panics
    /// As [`Tensor::view`].
    pub fn view_as(memory: Slice, shape: Shape, dtype: Dtype) -> Self {
        let bytes = shape.bytes_as(dtype);
        assert_eq!(memory.bytes, bytes, "a view of {shape} over memory of another size");
        Self { memory, shape, dtype }
    }

    /// A tensor of f32 holding `data`, in NHWC order without padding.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one number for each element.
    pub fn from_host(gpu: &Gpu, shape: Shape, data: &[f32]) -> Result<Self> {
        Self::from_host_as(gpu, shape, data, Dtype::F32)
    }

    /// [`Tensor::from_host`] of any type; numbers are rounded to it.
    ///
    /// # Errors
    /// As [`Tensor::from_host`].
    pub fn from_host_as(gpu: &Gpu, shape: Shape, data: &[f32], dtype: Dtype) -> Result<Self> {
        let tensor = Self::empty_as(gpu, shape, dtype);
        tensor.upload(gpu, data)?;
        Ok(tensor)
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How the numbers are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The memory, for kernels.
    pub fn memory(&self) -> &Slice {
        &self.memory
    }

    /// A copy of the numbers, in memory of their own.
    pub fn duplicate(&self, gpu: &Gpu) -> Self {
        let copy = Self::empty_as(gpu, self.shape, self.dtype);
        gpu.copy(&self.memory, &copy.memory);
        copy
    }

    /// Whether no other handle to the memory exists, so that it may be overwritten.
    pub fn is_unique(&self) -> bool {
        self.memory.buffer.is_unique()
    }

    /// Overwrites the tensor with `data`, in NHWC order without padding, rounded to its type.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one number for each element.
    pub fn upload(&self, gpu: &Gpu, data: &[f32]) -> Result<()> {
        let Shape { c, .. } = self.shape;
        if data.len() != self.shape.len() {
            let what = format!("{} numbers given for a tensor {}", data.len(), self.shape);
            return Err(Error::shape("upload", what));
        }
        let mut padded = std::borrow::Cow::Borrowed(data);
        if !c.is_multiple_of(4) {
            let rows = padded.to_mut();
            *rows = vec![0.0; self.shape.vec4s() * 4];
            for (to, from) in rows.chunks_exact_mut(self.shape.c4() * 4).zip(data.chunks_exact(c)) {
                to[..c].copy_from_slice(from);
            }
        }
        match self.dtype {
            Dtype::F32 => gpu.upload(&self.memory, bytemuck::cast_slice(&padded)),
            Dtype::F16 => {
                let halves: Vec<_> = padded.iter().map(|&number| f16::from_f32(number)).collect();
                gpu.upload(&self.memory, bytemuck::cast_slice(&halves))
            }
        }
    }

    /// The numbers, in NHWC order without padding. Waits for the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn download(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        Ok(self.dtype.read(self.shape, &gpu.download(&self.memory).wait()?))
    }

    /// As [`Tensor::download`]; none if there is anything but zeros, of either sign, where padding belongs.
    ///
    /// # Errors
    /// What the device reported.
    pub fn download_checked(&self, gpu: &Gpu) -> Result<Option<Vec<f32>>> {
        let bytes = gpu.download(&self.memory).wait()?;
        let (width, c) = (self.dtype.bytes() as usize, self.shape.c);
        let rows = bytes.chunks_exact(self.shape.c4() * 4 * width);
        let mut padding = rows.flat_map(|row| row[c * width..].chunks_exact(width));
        // The last byte holds the sign.
        let is_zero = |number: &[u8]| match number {
            [rest @ .., last] => last & 0x7f == 0 && rest.iter().all(|&byte| byte == 0),
            [] => true,
        };
        Ok(padding.all(is_zero).then(|| self.dtype.read(self.shape, &bytes)))
    }

    /// Takes the padding out of numbers as they lie on the device.
    pub fn unpad(&self, padded: &[f32]) -> Vec<f32> {
        self.shape.unpad(padded)
    }
}
