//! Batch normalisation over pixels, with the residual add and ReLU that follow it in a ResNet.
//!
//! z = γ·x̂ + β + residual,  x̂ = (x − μ)/√(σ² + ε),  y = max(z, 0) or z
//!
//! In training μ and σ² are the batch's (σ² divided by m = pixels), and the running statistics move
//! towards them by `momentum`, the variance as Σ(x − μ)²/(m − 1). Otherwise they are the running
//! statistics. With d_z = d_y where the ReLU let z through:
//!
//! d_β = Σ d_z,  d_γ = Σ d_z·x̂,  d_residual = d_z,
//! d_x = γ/σ·(d_z − d_β/m − x̂·d_γ/m) in training, γ/σ·d_z otherwise.
//!
//! Variances are sums of squared deviations from the mean of a chunk of pixels, merged by the
//! formula of Chan, Golub and LeVeque; never E[x²] − E[x]², which cancels.

mod backward;
mod cases;
mod reference;
mod stats;

use super::Op;
use crate::autograd::{Tape, Var};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

pub(super) use backward::BatchNormBackward;
pub(super) use reference::{reference, reference_gradient, statistics};
pub use stats::BatchStats;
use stats::{ChunkParams, Gathered, chunks_of};

static STATS: Shader = shader!("batch_norm_stats");
static FINISH: Shader = shader!("batch_norm_finish");
static RUNNING: Shader = shader!("batch_norm_running");
static APPLY: Shader = shader!("batch_norm_apply");
static BACKWARD_REDUCE: Shader = shader!("batch_norm_backward_reduce");
static BACKWARD_FINISH: Shader = shader!("batch_norm_backward_finish");
static BACKWARD_APPLY: Shader = shader!("batch_norm_backward_apply");
static BACKWARD_FEW: Shader = shader!("batch_norm_backward_few");

pub(super) const OP: Op = Op {
    name: "batch_norm",
    shaders: &[
        &STATS,
        &FINISH,
        &RUNNING,
        &APPLY,
        &BACKWARD_REDUCE,
        &BACKWARD_FINISH,
        &BACKWARD_APPLY,
        &BACKWARD_FEW,
    ],
    cases: cases::cases,
};

/// Pixels a thread does in the passes that write an activation; the shaders' `ROWS`.
const ROWS: usize = 8;
/// Pixels that a thread of a GPU loads at a time; divides the others.
const UNROLL: usize = 4;
/// Pixels up to which, in training, one workgroup does all of them for its channels: launching kernels
/// would take longer than what more workgroups save.
const FEW: usize = 1024;

/// What a batch normalisation does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Use the batch's statistics and update the running ones by `momentum`; otherwise use the
    /// running ones.
    pub training: bool,
    /// Weight of the batch in the running statistics; PyTorch's default is 0.1.
    pub momentum: f32,
    /// Added to the variance; PyTorch's default is 1e-5.
    pub epsilon: f32,
    /// Whether max(·, 0) follows.
    pub relu: bool,
}

/// The affine parameters and running statistics of a batch normalisation.
#[derive(Clone, Copy)]
pub struct BatchNormState<'a> {
    /// γ, a vector of the channels.
    pub gamma: &'a Var,
    /// β, a vector of the channels.
    pub beta: &'a Var,
    /// Running mean and running variance: a matrix of two rows.
    pub running: &'a Tensor,
}

impl BatchNormState<'_> {
    /// Sees that this is for the channels of `shape`.
    pub(in crate::ops) fn check(&self, shape: Shape) -> Result<()> {
        let (vector, gamma) = (Shape::vector(shape.c), self.gamma.shape());
        let right = gamma == vector && self.beta.shape() == vector;
        if right && self.running.shape() == Shape::matrix(2, shape.c) {
            return Ok(());
        }
        let what = format!("an input {shape} with a weight {gamma}");
        Err(Error::shape("batch_norm", what))
    }
}

/// y = γ·x̂ + β (+ residual), rectified if `options.relu`.
///
/// `stats` are those of `x`, if a convolution gathered them; they are used in training only.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit together, or in training if there is a single value a
/// channel, whose variance is unknown.
pub fn batch_norm(
    tape: &Tape,
    x: &Var,
    state: BatchNormState<'_>,
    residual: Option<&Var>,
    stats: Option<BatchStats>,
    options: BatchNorm,
) -> Result<Var> {
    if let Some(residual) = residual
        && residual.shape() != x.shape()
    {
        let what = format!("a residual {} joins {}", residual.shape(), x.shape());
        return Err(Error::shape("batch_norm", what));
    }
    if let Some(residual) = residual
        && residual.value().dtype() != x.value().dtype()
    {
        let types = (residual.value().dtype(), x.value().dtype());
        let what = format!("a residual in {} joins {}", types.0, types.1);
        return Err(Error::shape("batch_norm", what));
    }
    let gpu = tape.gpu();
    let y = Tensor::empty_as(gpu, x.shape(), x.value().dtype());
    let output = Output { y: &y, residual: residual.map(Var::value), relu: options.relu };
    let few = options.training && BatchStats::takes_parts(x.shape());
    let along = few.then_some(output);
    let coefficients = coefficients(gpu, x.value(), state, stats, options, along)?;
    if !few {
        apply(gpu, x.value(), &coefficients, output);
    }
    let BatchNormState { gamma, beta, .. } = state;
    let inputs: Vec<&Var> = [x, gamma, beta].into_iter().chain(residual).collect();
    let kept = y.clone();
    Ok(tape.output("batch_norm", y, &inputs, || BatchNormBackward {
        residual: residual.map(Var::slot),
        y: (options.relu && residual.is_some()).then_some(kept),
        ..BatchNormBackward::new(x, state, coefficients, options)
    }))
}

/// Where a batch norm writes, and what joins it there.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    y: &'a Tensor,
    residual: Option<&'a Tensor>,
    relu: bool,
}

impl<'a> Output<'a> {
    /// The kernel that writes this, and what it binds after the rest.
    fn attach(self, kernel: Kernel, slices: &mut Vec<&'a Slice>) -> Kernel {
        slices.push(self.y.memory());
        slices.extend(self.residual.map(Tensor::memory));
        kernel
            .with("RELU", self.relu.into())
            .with("RESIDUAL", self.residual.is_some().into())
            .half(self.y.dtype().is_half())
    }
}

/// What the kernels need to normalise `x`: scale, shift, mean and 1/σ of each channel. In training,
/// moves the running statistics, and may write the output `along` with it.
///
/// # Errors
/// Those of [`batch_norm`].
pub(super) fn coefficients(
    gpu: &Gpu,
    x: &Tensor,
    state: BatchNormState<'_>,
    stats: Option<BatchStats>,
    options: BatchNorm,
    along: Option<Output<'_>>,
) -> Result<Slice> {
    let shape = x.shape();
    let BatchNormState { gamma, beta, running } = state;
    state.check(shape)?;
    if !options.training {
        return Ok(running_coefficients(gpu, state, options.epsilon));
    }
    if shape.pixels() < 2 {
        let what = format!(
            "training on a single value a channel ({shape}), whose variance is unknown; use a \
             larger --batch-size or --image-size, or --bn frozen"
        );
        return Err(Error::shape("batch_norm", what));
    }
    let stats = match stats {
        Some(stats) if stats.shape == shape => stats,
        _ => BatchStats::gather(gpu, x),
    };
    let coefficients = gpu.lease(Shape::matrix(4, shape.c).bytes());
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct FinishParams {
        chunks: ChunkParams,
        momentum: f32,
        epsilon: f32,
        width: u32,
        gap: u32,
        count: u32,
    }
    let (chunk, gap, parts) = match stats.gathered {
        Gathered::Chunks { chunk, gap, .. } => (chunk, gap, false),
        Gathered::Parts { count, .. } => (count, 0, true),
    };
    let count = chunks_of(shape, chunk, gap);
    let params = FinishParams {
        chunks: ChunkParams::new(shape, chunk),
        momentum: options.momentum,
        epsilon: options.epsilon,
        width: shape.w as u32,
        gap: gap as u32,
        count: count as u32,
    };
    let mut slices = vec![
        stats.memory(),
        gamma.value().memory(),
        beta.value().memory(),
        running.memory(),
        &coefficients,
    ];
    let rows = if along.is_some() { shape.pixels() } else { count };
    let mut kernel = Kernel::new(&FINISH).with("THREADS", threads_for(gpu, rows));
    if parts {
        kernel = kernel.with("PARTS", 1);
    }
    if let Some(output) = along {
        slices.push(x.memory());
        kernel = output.attach(kernel.with("APPLY", 1), &mut slices);
    }
    gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
    Ok(coefficients)
}

/// Scale, shift, mean and 1/σ of each channel by the running statistics.
fn running_coefficients(gpu: &Gpu, state: BatchNormState<'_>, epsilon: f32) -> Slice {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct RunningParams {
        c4: u32,
        epsilon: f32,
    }
    let shape = state.running.shape();
    let coefficients = gpu.lease(Shape::matrix(4, shape.c).bytes());
    let slices = [
        state.gamma.value().memory(),
        state.beta.value().memory(),
        state.running.memory(),
        &coefficients,
    ];
    let params = RunningParams { c4: shape.c4() as u32, epsilon };
    gpu.run(Kernel::new(&RUNNING), &params, &slices, gpu.groups(shape.c4().div_ceil(64)));
    coefficients
}

fn apply(gpu: &Gpu, x: &Tensor, coefficients: &Slice, output: Output<'_>) {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct ApplyParams {
        rows: u32,
        c4: u32,
    }
    let shape = x.shape();
    let mut slices = vec![x.memory(), coefficients];
    let kernel = output.attach(Kernel::new(&APPLY).with("UNROLL", unroll(gpu)), &mut slices);
    let params = ApplyParams { rows: shape.pixels() as u32, c4: shape.c4() as u32 };
    gpu.run(kernel, &params, &slices, row_groups(gpu, shape));
}

/// Pixels that a thread loads at a time; the shaders' `UNROLL`.
fn unroll(gpu: &Gpu) -> u32 {
    // A GPU waits for loads and needs many under way; a processor that plays GPU loads one by one.
    if gpu.class() == AdapterClass::Software { 1 } else { UNROLL as u32 }
}

/// Threads of a workgroup that goes through so many rows.
fn threads_for(gpu: &Gpu, rows: usize) -> u32 {
    match gpu.class() {
        // A processor that plays GPU does one subgroup after the other, and barriers cost it more than rows.
        AdapterClass::Software => 8,
        // A GPU waits for each row a thread has.
        _ if rows > 64 => 256,
        _ => 64,
    }
}

/// Workgroups for the passes in which a thread does four channels of `ROWS` pixels.
fn row_groups(gpu: &Gpu, shape: Shape) -> [u32; 3] {
    gpu.groups((shape.pixels().div_ceil(ROWS) * shape.c4()).div_ceil(64))
}
