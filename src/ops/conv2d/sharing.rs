//! Sums that workgroups share where a product has too few tiles, and what adds up their parts.

use super::epilogue::Epilogue;
use super::geometry::{Geometry, Params};
use super::{SUM, SUM_BOTH};
use crate::autograd::Target;
use crate::gpu::{AdapterClass, Gpu, Kernel, Slice};
use crate::tensor::{Shape, Tensor};

/// Workgroups that keep a GPU busy.
pub const BUSY: usize = 256;

/// How workgroups share the sums of a product: all of a tile's by one of them, unless that left too few to
/// keep a GPU busy.
#[derive(Clone, Copy)]
pub struct Sharing {
    /// Parts of each sum.
    pub parts: usize,
    /// Groups of four terms of a part.
    chunk: usize,
}

impl Sharing {
    /// That of so many tiles, each with sums over `quads` groups of four terms: as many parts as keep a GPU busy,
    /// at most `most`, in whole rounds of `round` groups.
    pub fn new(tiles: usize, quads: usize, round: usize, most: usize) -> Self {
        let wanted = (BUSY / tiles).clamp(1, most.max(1));
        let chunk = quads.div_ceil(wanted).next_multiple_of(round);
        Self { parts: quads.div_ceil(chunk), chunk }
    }

    /// Memory for the parts of each number of a tensor of this shape, if there are several.
    pub fn memory(&self, gpu: &Gpu, shape: Shape) -> Option<Slice> {
        let bytes = (self.parts * shape.vec4s() * 16) as u64;
        (self.parts > 1).then(|| gpu.lease(bytes))
    }

    /// What the kernels are told of the geometry and this.
    pub fn params(&self, geometry: &Geometry) -> Params {
        let [splits, chunk] = [self.parts, self.chunk].map(|count| count as u32);
        Params { splits, chunk, ..geometry.params() }
    }
}

/// Sums that workgroups share, yet to be added up from their parts: [part][row][column].
pub struct Parts {
    pub memory: Slice,
    pub count: usize,
}

/// Rows that a thread sums up where it gathers statistics; the shader's `ROWS`.
pub const ROWS_WITH_STATS: usize = 8;

/// Records what adds up parts, with what follows the sums.
pub fn sum(gpu: &Gpu, parts: &Parts, y: &Tensor, epilogue: Epilogue<'_>) {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct SumParams {
        rows: u32,
        co4: u32,
        splits: u32,
        accumulate: u32,
        epsilon: f32,
    }
    let (rows, co4) = (y.shape().pixels(), y.shape().c4());
    let at_a_time = if let Epilogue::Stats(_) = epilogue { ROWS_WITH_STATS } else { 1 };
    let params = SumParams {
        rows: rows as u32,
        co4: co4 as u32,
        splits: parts.count as u32,
        accumulate: matches!(epilogue, Epilogue::Accumulate).into(),
        epsilon: epilogue.epsilon(),
    };
    let mut slices = vec![&parts.memory, y.memory()];
    let kernel = Kernel::new(&SUM).with("ROWS", at_a_time as u32).half(y.dtype().is_half());
    let kernel = epilogue.attach(kernel, &mut slices);
    let shares = if at_a_time == 1 { shares(gpu, parts.count) } else { 1 };
    let threads = rows.div_ceil(at_a_time) * co4 * shares;
    let kernel = kernel.with("SHARES", shares as u32);
    gpu.run(kernel, &params, &slices, gpu.groups(threads.div_ceil(64)));
}

/// Threads that share what one number's parts come to: several where there are many parts, which otherwise are
/// waited for one after the other. Processors that play GPU do all threads themselves.
fn shares(gpu: &Gpu, parts: usize) -> usize {
    if parts >= 16 && gpu.class() != AdapterClass::Software { 8 } else { 1 }
}

/// Records what adds up the parts of gradients, by the weight and by the input.
pub fn sum_gradients(gpu: &Gpu, unsummed: [Option<(Parts, &Target)>; 2]) {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct BothParams {
        quads: [u32; 2],
        parts: [u32; 2],
        accumulate: [u32; 2],
    }
    let [Some(of_weight), Some(of_input)] = &unsummed else {
        for (parts, Target { tensor, accumulate }) in unsummed.into_iter().flatten() {
            let epilogue = if *accumulate { Epilogue::Accumulate } else { Epilogue::None };
            sum(gpu, &parts, tensor, epilogue);
        }
        return;
    };
    let both = [of_weight, of_input];
    let params = BothParams {
        quads: both.map(|(_, target)| target.tensor.shape().vec4s() as u32),
        parts: both.map(|(parts, _)| parts.count as u32),
        accumulate: both.map(|(_, target)| target.accumulate.into()),
    };
    let [d_w, d_x] = both.map(|(_, target)| &target.tensor);
    let [of_weight, of_input] = both.map(|(parts, _)| &parts.memory);
    let shares = shares(gpu, both.map(|(parts, _)| parts.count).into_iter().max().unwrap_or(1));
    let kernel = Kernel::new(&SUM_BOTH).half(d_x.dtype().is_half()).with("SHARES", shares as u32);
    let threads = (d_w.shape().vec4s() + d_x.shape().vec4s()) * shares;
    let slices = [of_weight, of_input, d_w.memory(), d_x.memory()];
    gpu.run(kernel, &params, &slices, gpu.groups(threads.div_ceil(64)));
}
