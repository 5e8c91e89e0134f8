//! Statistics of a batch, of every few pixels, that a batch norm merges.

use super::{FEW, STATS, unroll};
use crate::gpu::{Gpu, Kernel, Slice};
use crate::tensor::{Shape, Tensor};

/// Pixels whose statistics one thread gathers.
pub const CHUNK: usize = 64;

/// What a convolution gathers of its output on the way.
pub struct BatchStats {
    pub(super) shape: Shape,
    pub(super) gathered: Gathered,
}

pub enum Gathered {
    /// Mean and Σ(x − mean)² of every `chunk` pixels, counted with `gap` more after each row of an image.
    Chunks { partials: Slice, chunk: usize, gap: usize },
    /// The output itself, yet to be written, in so many parts to be added up.
    Parts { parts: Slice, count: usize },
}

impl BatchStats {
    /// Memory for the statistics of every `chunk` pixels, to be filled: counted as if each row of an image
    /// had `gap` more.
    pub(in crate::ops) fn empty(gpu: &Gpu, shape: Shape, chunk: usize, gap: usize) -> Self {
        let vec4s = chunks_of(shape, chunk, gap) * 2 * shape.c4();
        let partials = gpu.lease(vec4s as u64 * 16);
        Self { shape, gathered: Gathered::Chunks { partials, chunk, gap } }
    }

    /// An output of this shape that is yet to be added up, in `count` parts: the batch norm does it.
    pub(in crate::ops) fn of_parts(shape: Shape, parts: Slice, count: usize) -> Self {
        Self { shape, gathered: Gathered::Parts { parts, count } }
    }

    /// Whether a batch norm takes parts of an output of this shape.
    pub(in crate::ops) fn takes_parts(shape: Shape) -> bool {
        shape.pixels() <= FEW
    }

    pub(in crate::ops) fn memory(&self) -> &Slice {
        match &self.gathered {
            Gathered::Chunks { partials: memory, .. } | Gathered::Parts { parts: memory, .. } => {
                memory
            }
        }
    }

    /// Gathers those of a tensor.
    pub(super) fn gather(gpu: &Gpu, x: &Tensor) -> Self {
        let stats = Self::empty(gpu, x.shape(), CHUNK, 0);
        let threads = x.shape().pixels().div_ceil(CHUNK) * x.shape().c4();
        gpu.run(
            Kernel::new(&STATS).with("UNROLL", unroll(gpu)).half(x.dtype().is_half()),
            &ChunkParams::new(x.shape(), CHUNK),
            &[x.memory(), stats.memory()],
            gpu.groups(threads.div_ceil(64)),
        );
        stats
    }
}

/// Chunks of so many pixels, counted with gaps.
pub fn chunks_of(shape: Shape, chunk: usize, gap: usize) -> usize {
    (shape.n * shape.h * (shape.w + gap)).div_ceil(chunk)
}

/// Parameters of the kernels that reduce chunks.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ChunkParams {
    rows: u32,
    c4: u32,
    chunk: u32,
}

impl ChunkParams {
    pub fn new(shape: Shape, chunk: usize) -> Self {
        Self { rows: shape.pixels() as u32, c4: shape.c4() as u32, chunk: chunk as u32 }
    }
}
