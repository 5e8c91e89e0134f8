//! Convolutions by Winograd's F(2×2, 3×3): 2×2 output pixels from 16 multiplications an input channel
//! instead of 36.
//!
//! Y = Aᵀ·(Σ_ci U ⊙ V)·A with U = G·g·Gᵀ of a 3×3 window g and V = Bᵀ·d·B of a 4×4 patch d, after
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Larger tiles would
//! save more and lose an order of magnitude in accuracy.
//!
//! The sums are 16 matrix products M = Σ_ci U·V. V and M take four times the memory of input and
//! output; they are made for a few images at a time.

use super::epilogue::Epilogue;
use super::geometry::Geometry;
use super::tiling::{Shaders, Tiling};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};

pub(super) static INPUT: Shader = shader!("conv2d_winograd_input");
pub(super) static WEIGHT: Shader = shader!("conv2d_winograd_weight");
pub(super) static MULTIPLY_LANES: Shader = shader!("conv2d_winograd_multiply_lanes");
pub(super) static MULTIPLY_TILED: Shader = shader!("conv2d_winograd_multiply_tiled");
const MULTIPLY: Shaders =
    Shaders { lanes: &MULTIPLY_LANES, tiled: &MULTIPLY_TILED, cooperative: None, window: None };
pub(super) static OUTPUT: Shader = shader!("conv2d_winograd_output");

/// Numbers in a patch.
const POSITIONS: usize = 16;
/// Patches of a row that a thread transforms on a software adapter; the shader's `TILES`.
const TILES: u32 = 4;
/// Patches that a thread of the last step does where it gathers statistics; the shader's `PATCHES`.
const PATCHES: usize = 16;

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
    /// Where a batch norm follows: what is added to its variance.
    epsilon: f32,
}

impl Winograd {
    /// The forward pass; none where the algorithm does not apply.
    pub fn forward(geometry: &Geometry) -> Option<Self> {
        let &Geometry { x, weight, y, conv, .. } = geometry;
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

    /// Channels of input and output, the fewer first.
    pub fn channels(&self) -> [usize; 2] {
        [self.x.c.min(self.y.c), self.x.c.max(self.y.c)]
    }

    /// Multiplications of the convolution as the formula has it, padding left out, to those of this
    /// algorithm: 2.25 for large images, less than 1 for the smallest.
    pub fn saving(&self) -> f64 {
        let Self { x, y, padding, .. } = self;
        let read = |size: usize, count: usize, padding: usize| -> usize {
            let inside = |line: usize| (padding..padding + size).contains(&line);
            (0..count).map(|line| (line..line + 3).filter(|&line| inside(line)).count()).sum()
        };
        let taps = read(x.h, y.h, padding[0]) * read(x.w, y.w, padding[1]);
        taps as f64 / (POSITIONS * self.patches()) as f64
    }

    /// Pixels whose statistics the last step can gather at a time; none where patches at an odd edge
    /// hold fewer than others.
    pub fn stats_chunk(&self) -> Option<usize> {
        (self.y.h % 2 + self.y.w % 2 == 0).then_some(4 * PATCHES)
    }

    /// Patches of all images.
    pub fn all_patches(&self) -> usize {
        self.y.n * self.patches()
    }

    /// Patches of an image.
    fn patches(&self) -> usize {
        self.y.h.div_ceil(2) * self.y.w.div_ceil(2)
    }

    /// Whether a workspace takes what has to be done at a time.
    pub fn fits(&self, gpu: &Gpu) -> bool {
        let images = self.run_of_images().min(self.x.n);
        (images * self.image_bytes()) as u64 <= gpu.binding_limit()
    }

    /// Bytes of an image's patches in the larger workspace.
    fn image_bytes(&self) -> usize {
        POSITIONS * self.patches() * self.x.c4().max(self.y.c4()) * 16
    }

    /// Images whose patches are whole runs of `PATCHES`.
    fn run_of_images(&self) -> usize {
        PATCHES / greatest_common_divisor(PATCHES, self.patches())
    }

    /// Images done at a time: as many as a workspace takes that stays in a processor's cache, or
    /// keeps a GPU busy; in whole runs of `PATCHES`.
    fn images_at_a_time(&self, gpu: &Gpu) -> usize {
        let workspace = match gpu.class() {
            AdapterClass::Software => 2 << 20,
            _ => 64 << 20,
        };
        let images = workspace.min(gpu.binding_limit() as usize) / self.image_bytes();
        let whole = self.run_of_images();
        let most = (images / whole * whole).max(whole);
        // As even as can be: a last part of a single image would cost almost as much as any.
        self.x.n.div_ceil(self.x.n.div_ceil(most)).next_multiple_of(whole).min(self.x.n)
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
            epsilon: 0.0,
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
        // The transformed numbers, in the workspace, are f32 all the same.
        let half = x.dtype().is_half();
        let u = gpu.lease((POSITIONS * 4 * ci4 * co4 * 16) as u64);
        let kernel = Kernel::new(&WEIGHT).with("BACKWARD", self.backward.into()).half(half);
        let params = self.params(0, 0, false);
        let groups = gpu.groups((ci4 * co4).div_ceil(64));
        gpu.run(kernel, &params, &[weight.memory(), &u], groups);
        let u = tiling.operand(gpu, &u, false);

        let software = gpu.class() == AdapterClass::Software;
        let strip = if software { TILES } else { 1 };
        let run = match (software, &epilogue) {
            (false, Epilogue::Stats(_)) | (true, _) => PATCHES,
            _ => 1,
        };
        let at_a_time = self.images_at_a_time(gpu);
        let workspace =
            |c4: usize| gpu.lease((POSITIONS * at_a_time * self.patches() * c4 * 16) as u64);
        let (v, m) = (workspace(ci4), workspace(co4));
        for first in (0..self.x.n).step_by(at_a_time) {
            let images = at_a_time.min(self.x.n - first);
            let params = self.params(first, images, accumulate);
            let strips =
                images * self.y.h.div_ceil(2) * self.y.w.div_ceil(2).div_ceil(strip as usize);
            let kernel = Kernel::new(&INPUT).with("TILES", strip).half(half);
            let groups = gpu.groups((strips * ci4).div_ceil(64));
            gpu.run(kernel, &params, &[x.memory(), &v], groups);

            let patches = images * self.patches();
            let kernel = tiling.kernel(&MULTIPLY);
            let tiles = POSITIONS * tiling.count(patches, self.y.c);
            let v = tiling.operand(gpu, &v, false);
            gpu.run(kernel, &params, &[&v, &u, &m], gpu.groups(tiles));

            let mut slices = vec![&m, y.memory()];
            let kernel = Kernel::new(&OUTPUT).with("PATCHES", run as u32).half(half);
            let kernel = epilogue.attach(kernel, &mut slices);
            let groups = gpu.groups((patches.div_ceil(run) * co4).div_ceil(64));
            let params = Params { epsilon: epilogue.epsilon(), ..params };
            gpu.run(kernel, &params, &slices, groups);
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
