//! Convolutions by Winograd's F(2×2, 3×3): 2×2 output pixels from 16 multiplications an input channel
//! instead of 36.
//!
//! Y = Aᵀ·(Σ_ci U ⊙ V)·A with U = G·g·Gᵀ of a 3×3 window g and V = Bᵀ·d·B of a 4×4 patch d, after
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Larger tiles would
//! save more and lose an order of magnitude in accuracy.
//!
//! V takes four times the memory of the input; it is made for a few images at a time.

use super::kernels::Tiling;
use super::{Epilogue, Geometry};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};

pub(super) static INPUT: Shader = shader!("conv2d_winograd_input");
pub(super) static WEIGHT: Shader = shader!("conv2d_winograd_weight");
pub(super) static LANES: Shader = shader!("conv2d_winograd_lanes");
pub(super) static TILED: Shader = shader!("conv2d_winograd_tiled");

/// Numbers in a patch.
const POSITIONS: usize = 16;
/// Patches of a row that a thread transforms on a software adapter; the shader's `TILES`.
const TILES: u32 = 4;

/// A convolution of `x` by 3×3 windows one pixel apart.
#[derive(Clone, Copy)]
pub(super) struct Winograd {
    x: Shape,
    y: Shape,
    padding: [usize; 2],
    /// Whether x is the gradient by the output, and y that by the input.
    backward: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// The first image, and how many.
    first: u32,
    images: u32,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    padding: [u32; 2],
    /// Input channels over four.
    ci4: u32,
    /// Output channels over four.
    co4: u32,
    /// Whether to add to what the output holds.
    accumulate: u32,
}

impl Winograd {
    /// The forward pass; none where the algorithm does not apply.
    pub fn forward(geometry: &Geometry) -> Option<Self> {
        let &Geometry { x, weight, y, conv } = geometry;
        let applies = [weight.n, weight.h] == [3, 3] && conv.stride == [1, 1];
        applies.then_some(Self { x, y, padding: conv.padding, backward: false })
    }

    /// The backward pass by the input: the convolution of d_y by the weight turned by half a circle;
    /// none where the algorithm does not apply.
    pub fn backward_data(geometry: &Geometry) -> Option<Self> {
        let Self { x, y, padding: [top, left], .. } = Self::forward(geometry)?;
        let padding = [2usize.checked_sub(top)?, 2usize.checked_sub(left)?];
        Some(Self { x: y, y: x, padding, backward: true })
    }

    /// Channels of input and output.
    pub fn channels(&self) -> [usize; 2] {
        [self.x.c, self.y.c]
    }

    /// Patches of an image.
    fn patches(&self) -> usize {
        self.y.h.div_ceil(2) * self.y.w.div_ceil(2)
    }

    /// Images done at a time: as many as a workspace takes that stays in a processor's cache, or
    /// keeps a GPU busy; in whole tiles of `rows` patches.
    fn images_at_a_time(&self, gpu: &Gpu, rows: usize) -> usize {
        let workspace = match gpu.class() {
            AdapterClass::Software => 16 << 20,
            _ => 96 << 20,
        };
        let image = POSITIONS * self.patches() * self.x.c4() * 16;
        let images = workspace.min(gpu.binding_limit() as usize) / image;
        let whole = rows / greatest_common_divisor(rows, self.patches());
        (images / whole * whole).max(whole)
    }

    fn params(&self, first: usize, images: usize, accumulate: bool) -> Params {
        let Self { x, y, padding, .. } = self;
        Params {
            first: first as u32,
            images: images as u32,
            h: x.h as u32,
            w: x.w as u32,
            oh: y.h as u32,
            ow: y.w as u32,
            padding: padding.map(|p| p as u32),
            ci4: x.c4() as u32,
            co4: y.c4() as u32,
            accumulate: accumulate.into(),
        }
    }

    /// Records the convolution.
    pub fn run(
        &self,
        gpu: &Gpu,
        tiling: Tiling,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        epilogue: Epilogue<'_>,
    ) {
        let accumulate = matches!(epilogue, Epilogue::Accumulate);
        let (ci4, co4) = (self.x.c4(), self.y.c4());
        let u = gpu.lease((POSITIONS * 4 * ci4 * co4 * 16) as u64);
        let kernel = Kernel::new(&WEIGHT).with("BACKWARD", self.backward.into());
        let params = self.params(0, 0, false);
        let groups = gpu.groups((ci4 * co4).div_ceil(64));
        gpu.run(kernel, &params, &[weight.memory(), &u], groups);

        let at_a_time = self.images_at_a_time(gpu, tiling.rows()).min(self.x.n);
        let v = gpu.lease((POSITIONS * at_a_time * self.patches() * ci4 * 16) as u64);
        let strip = if gpu.class() == AdapterClass::Software { TILES } else { 1 };
        for first in (0..self.x.n).step_by(at_a_time) {
            let images = at_a_time.min(self.x.n - first);
            let params = self.params(first, images, accumulate);
            let rows = images * self.y.h.div_ceil(2);
            let threads = rows * self.y.w.div_ceil(2).div_ceil(strip as usize) * ci4;
            let kernel = Kernel::new(&INPUT).with("TILES", strip);
            let groups = gpu.groups(threads.div_ceil(64));
            gpu.run(kernel, &params, &[x.memory(), &v], groups);

            let mut slices = vec![&v, &u, y.memory()];
            let kernel = epilogue.attach(tiling.kernel(&LANES, &TILED), &mut slices);
            let tiles = tiling.count(images * self.patches(), self.y.c);
            gpu.run(kernel, &params, &slices, gpu.groups(tiles));
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
