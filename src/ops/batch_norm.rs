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

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Target, Var};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

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
    cases,
};

/// Pixels whose statistics one thread gathers.
const CHUNK: usize = 64;
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

/// What a convolution gathers of its output on the way.
pub struct BatchStats {
    shape: Shape,
    gathered: Gathered,
}

enum Gathered {
    /// Mean and Σ(x − mean)² of every `chunk` pixels.
    Chunks { partials: Slice, chunk: usize },
    /// The output itself, yet to be written, in so many parts to be added up.
    Parts { parts: Slice, count: usize },
}

impl BatchStats {
    /// Memory for the statistics of every `chunk` pixels, to be filled.
    pub(super) fn empty(gpu: &Gpu, shape: Shape, chunk: usize) -> Self {
        let vec4s = shape.pixels().div_ceil(chunk) * 2 * shape.c4();
        let partials = gpu.lease(vec4s as u64 * 16);
        Self { shape, gathered: Gathered::Chunks { partials, chunk } }
    }

    /// An output of this shape that is yet to be added up, in `count` parts: the batch norm does it.
    pub(super) fn of_parts(shape: Shape, parts: Slice, count: usize) -> Self {
        Self { shape, gathered: Gathered::Parts { parts, count } }
    }

    /// Whether a batch norm takes parts of an output of this shape.
    pub(super) fn takes_parts(shape: Shape) -> bool {
        shape.pixels() <= FEW
    }

    pub(super) fn memory(&self) -> &Slice {
        match &self.gathered {
            Gathered::Chunks { partials: memory, .. } | Gathered::Parts { parts: memory, .. } => {
                memory
            }
        }
    }

    fn gather(gpu: &Gpu, x: &Tensor) -> Self {
        let stats = Self::empty(gpu, x.shape(), CHUNK);
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

/// Parameters of the kernels that reduce chunks.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ChunkParams {
    rows: u32,
    c4: u32,
    chunk: u32,
}

impl ChunkParams {
    fn new(shape: Shape, chunk: usize) -> Self {
        Self { rows: shape.pixels() as u32, c4: shape.c4() as u32, chunk: chunk as u32 }
    }
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
    pub(super) fn check(&self, shape: Shape) -> Result<()> {
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
    }
    let (chunk, parts) = match stats.gathered {
        Gathered::Chunks { chunk, .. } => (chunk, false),
        Gathered::Parts { count, .. } => (count, true),
    };
    let params = FinishParams {
        chunks: ChunkParams::new(shape, chunk),
        momentum: options.momentum,
        epsilon: options.epsilon,
    };
    let mut slices = vec![
        stats.memory(),
        gamma.value().memory(),
        beta.value().memory(),
        running.memory(),
        &coefficients,
    ];
    let rows = if along.is_some() { shape.pixels() } else { shape.pixels().div_ceil(chunk) };
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

/// Pixels that a thread adds up backward: on a GPU as many as leave it enough threads.
fn chunk_of_sums(gpu: &Gpu, shape: Shape) -> usize {
    const THREADS: usize = 1 << 17;
    match gpu.class() {
        AdapterClass::Software => CHUNK,
        _ => (shape.pixels() * shape.c4() / THREADS).clamp(8, 256).next_multiple_of(UNROLL),
    }
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

pub(super) struct BatchNormBackward {
    x: Var,
    gamma: Slot,
    beta: Slot,
    residual: Option<Slot>,
    /// The output, where it is needed to know what the ReLU let through.
    y: Option<Tensor>,
    coefficients: Slice,
    options: BatchNorm,
}

impl Backward for BatchNormBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let batch = self.options.training;
        let few = batch && self.x.needs_grad() && d_y.shape().pixels() <= FEW;
        let wants_affine = self.gamma.needs_grad() || self.beta.needs_grad();
        let sums = (!few && (wants_affine || (batch && self.x.needs_grad())))
            .then(|| self.reduce(&d_y, grads));
        if self.mask() == 0
            && let Some(residual) = self.residual
        {
            grads.give(residual, d_y.clone())?;
        }
        let residual = match self.mask() {
            0 => None,
            _ => self.residual.and_then(|residual| grads.target(residual)),
        };
        // Without an input to differentiate by, the last pass still masks the residual's gradient.
        let d_x = match grads.target(self.x.slot()) {
            Some(target) => target,
            None if residual.is_some() => {
                let tensor = Tensor::empty_as(grads.gpu(), d_y.shape(), d_y.dtype());
                Target { tensor, accumulate: false }
            }
            None => return Ok(()),
        };
        if few {
            self.all_at_once(&d_y, &d_x, residual.as_ref(), grads);
            return Ok(());
        }

        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct BackwardParams {
            rows: u32,
            c4: u32,
            accumulate: u32,
            accumulate_residual: u32,
        }
        let (gpu, shape) = (grads.gpu(), d_y.shape());
        let params = BackwardParams {
            rows: shape.pixels() as u32,
            c4: shape.c4() as u32,
            accumulate: d_x.accumulate.into(),
            accumulate_residual: residual.as_ref().is_some_and(|r| r.accumulate).into(),
        };
        let kernel = Kernel::new(&BACKWARD_APPLY)
            .with("UNROLL", unroll(gpu))
            .with("MASK", self.mask())
            .with("BATCH", batch.into())
            .with("RESIDUAL", residual.is_some().into())
            .half(d_y.dtype().is_half());
        let mut slices = vec![d_y.memory(), &self.coefficients, d_x.tensor.memory()];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        slices.extend(residual.as_ref().map(|residual| residual.tensor.memory()));
        slices.extend(sums.as_ref().filter(|_| batch));
        if batch || self.mask() == 1 {
            slices.push(self.x.value().memory());
        }
        gpu.run(kernel, &params, &slices, row_groups(gpu, shape));
        Ok(())
    }
}

impl BatchNormBackward {
    /// The backward of a batch norm without residual.
    pub fn new(
        x: &Var,
        state: BatchNormState<'_>,
        coefficients: Slice,
        options: BatchNorm,
    ) -> Self {
        let (gamma, beta) = (state.gamma.slot(), state.beta.slot());
        Self { x: x.clone(), gamma, beta, residual: None, y: None, coefficients, options }
    }

    /// What is normalised.
    pub fn input(&self) -> &Var {
        &self.x
    }

    /// How the kernels tell what the ReLU let through; their `MASK`.
    fn mask(&self) -> u32 {
        match (self.options.relu, &self.y) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => 2,
        }
    }

    /// All gradients of few pixels with batch statistics.
    fn all_at_once(
        &self,
        d_y: &Tensor,
        d_x: &Target,
        residual: Option<&Target>,
        grads: &mut Grads,
    ) {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct FewParams {
            rows: u32,
            c4: u32,
            accumulate: u32,
            accumulate_residual: u32,
            accumulate_beta: u32,
            accumulate_gamma: u32,
        }
        let (beta, gamma) = (grads.target(self.beta), grads.target(self.gamma));
        let accumulate = |target: Option<&Target>| target.is_some_and(|t| t.accumulate).into();
        let (gpu, shape) = (grads.gpu(), d_y.shape());
        let params = FewParams {
            rows: shape.pixels() as u32,
            c4: shape.c4() as u32,
            accumulate: d_x.accumulate.into(),
            accumulate_residual: accumulate(residual),
            accumulate_beta: accumulate(beta.as_ref()),
            accumulate_gamma: accumulate(gamma.as_ref()),
        };
        let kernel = Kernel::new(&BACKWARD_FEW)
            .with("THREADS", threads_for(gpu, shape.pixels()))
            .with("MASK", self.mask())
            .with("RESIDUAL", residual.is_some().into())
            .with("BETA", beta.is_some().into())
            .with("GAMMA", gamma.is_some().into())
            .half(d_y.dtype().is_half());
        let mut slices =
            vec![self.x.value().memory(), d_y.memory(), &self.coefficients, d_x.tensor.memory()];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        let targets = [residual, beta.as_ref(), gamma.as_ref()];
        slices.extend(targets.into_iter().flatten().map(|target| target.tensor.memory()));
        gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
    }

    /// Σ d_z and Σ d_z·x̂ of each channel, which are also the gradients of β and γ.
    fn reduce(&self, d_y: &Tensor, grads: &mut Grads) -> Slice {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct SumParams {
            c4: u32,
            chunks: u32,
            accumulate_beta: u32,
            accumulate_gamma: u32,
        }
        let beta = grads.target(self.beta);
        let gamma = grads.target(self.gamma);
        let (gpu, shape) = (grads.gpu(), d_y.shape());
        let chunk = chunk_of_sums(gpu, shape);
        let chunks = shape.pixels().div_ceil(chunk);
        let partials = gpu.lease((chunks * 2 * shape.c4()) as u64 * 16);
        let mut slices = vec![self.x.value().memory(), d_y.memory(), &self.coefficients, &partials];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        gpu.run(
            Kernel::new(&BACKWARD_REDUCE)
                .with("UNROLL", unroll(gpu))
                .with("MASK", self.mask())
                .half(d_y.dtype().is_half()),
            &ChunkParams::new(shape, chunk),
            &slices,
            gpu.groups((chunks * shape.c4()).div_ceil(64)),
        );
        let sums = gpu.lease(Shape::matrix(2, shape.c).bytes());
        let params = SumParams {
            c4: shape.c4() as u32,
            chunks: chunks as u32,
            accumulate_beta: beta.as_ref().is_some_and(|beta| beta.accumulate).into(),
            accumulate_gamma: gamma.as_ref().is_some_and(|gamma| gamma.accumulate).into(),
        };
        let kernel = Kernel::new(&BACKWARD_FINISH)
            .with("THREADS", threads_for(gpu, chunks))
            .with("BETA", beta.is_some().into())
            .with("GAMMA", gamma.is_some().into());
        let mut slices = vec![&partials, &sums];
        slices.extend(beta.as_ref().map(|beta| beta.tensor.memory()));
        slices.extend(gamma.as_ref().map(|gamma| gamma.tensor.memory()));
        gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
        sums
    }
}

/// Statistics of one channel.
pub(super) struct Channel {
    pub mean: f64,
    pub variance: f64,
    /// Mean of |x|: what rounding errors of the mean scale with.
    pub magnitude: f64,
}

fn channel(x: &Array, c: usize) -> Channel {
    let values = || x.data.iter().skip(c).step_by(x.shape.c);
    let m = x.shape.pixels() as f64;
    let mean = values().sum::<f64>() / m;
    Channel {
        mean,
        variance: values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / m,
        magnitude: values().map(|v| v.abs()).sum::<f64>() / m,
    }
}

/// The statistics used: the batch's in training, else the running ones (a matrix of mean, variance).
pub(super) fn statistics(x: &Array, running: &Array, c: usize, options: BatchNorm) -> Channel {
    match options.training {
        true => channel(x, c),
        false => {
            let (mean, variance) = (running.data[c], running.data[x.shape.c + c]);
            Channel { mean, variance, magnitude: mean.abs() }
        }
    }
}

/// Terms whose rounding errors a value carries: those of the statistics, in training.
fn terms(x: &Array, options: BatchNorm) -> usize {
    if options.training { x.shape.pixels() } else { 1 }
}

/// The output and the updated running statistics. Inputs: x, γ, β, running, and a residual.
pub(super) fn reference(inputs: &[Array], options: BatchNorm) -> Vec<Expected> {
    let [x, gamma, beta, running] = &inputs[..4] else { unreachable!("four inputs at least") };
    let (channels, m) = (x.shape.c, x.shape.pixels() as f64);
    let (mut y, mut magnitudes) = (Array::zeros(x.shape), vec![0.0; x.data.len()]);
    let mut updated = running.clone();
    let mut updated_magnitudes = running.map(f64::abs).data;
    for c in 0..channels {
        let Channel { mean, variance, magnitude } = statistics(x, running, c, options);
        let inverse = 1.0 / (variance + f64::from(options.epsilon)).sqrt();
        for at in (c..x.data.len()).step_by(channels) {
            let normalised = (x.data[at] - mean) * inverse;
            let residual = inputs.get(4).map_or(0.0, |residual| residual.data[at]);
            let z = gamma.data[c] * normalised + beta.data[c] + residual;
            y.data[at] = if options.relu { z.max(0.0) } else { z };
            magnitudes[at] = gamma.data[c].abs()
                * ((x.data[at].abs() + magnitude) * inverse + normalised.abs())
                + beta.data[c].abs()
                + residual.abs();
        }
        if options.training {
            let momentum = f64::from(options.momentum);
            let unbiased = variance * m / (m - 1.0);
            updated.data[c] += momentum * (mean - running.data[c]);
            updated.data[channels + c] += momentum * (unbiased - running.data[channels + c]);
            updated_magnitudes[c] += momentum * magnitude;
            // Chunk means lie about σ/√CHUNK apart; an error of each moves the variance by twice that.
            let merged = 2.0 * magnitude * (variance / CHUNK as f64).sqrt();
            updated_magnitudes[channels + c] += momentum * (unbiased + merged);
        }
    }
    vec![
        Expected::sums(y, &magnitudes, terms(x, options)),
        Expected::sums(updated, &updated_magnitudes, terms(x, options)),
    ]
}

/// The gradients by x, γ, β and the residual; `stored` if d_y is an activation on the way.
pub(super) fn reference_gradient(
    inputs: &[Array],
    d_y: &Array,
    options: BatchNorm,
    stored: bool,
) -> Vec<Option<Expected>> {
    let [x, gamma, beta, running] = &inputs[..4] else { unreachable!("four inputs at least") };
    let (channels, m) = (x.shape.c, x.shape.pixels() as f64);
    let vector = Shape::vector(channels);
    let (mut d_x, mut d_x_magnitudes) = (Array::zeros(x.shape), vec![0.0; x.data.len()]);
    let (mut d_gamma, mut d_gamma_magnitudes) = (Array::zeros(vector), vec![0.0; channels]);
    let (mut d_beta, mut d_beta_magnitudes) = (Array::zeros(vector), vec![0.0; channels]);
    let mut d_z = d_y.clone();
    for c in 0..channels {
        let Channel { mean, variance, magnitude } = statistics(x, running, c, options);
        let inverse = 1.0 / (variance + f64::from(options.epsilon)).sqrt();
        let indices = || (c..x.data.len()).step_by(channels);
        // How far rounding may take x̂, in units of ε.
        let wobble = |at: usize| (x.data[at].abs() + magnitude) * inverse;
        for at in indices() {
            let normalised = (x.data[at] - mean) * inverse;
            let residual = inputs.get(4).map_or(0.0, |residual| residual.data[at]);
            if options.relu && gamma.data[c] * normalised + beta.data[c] + residual <= 0.0 {
                d_z.data[at] = 0.0;
            }
            let d = d_z.data[at];
            d_beta.data[c] += d;
            d_beta_magnitudes[c] += d.abs();
            d_gamma.data[c] += d * normalised;
            d_gamma_magnitudes[c] += d.abs() * (normalised.abs() + wobble(at));
        }
        let share = f64::from(u8::from(options.training)) / m;
        for at in indices() {
            let normalised = (x.data[at] - mean) * inverse;
            let scale = gamma.data[c] * inverse;
            let slope = d_gamma.data[c] * share;
            d_x.data[at] = scale * (d_z.data[at] - d_beta.data[c] * share - normalised * slope);
            d_x_magnitudes[at] = scale.abs()
                * (d_z.data[at].abs()
                    + share * d_beta_magnitudes[c]
                    + share * normalised.abs() * d_gamma_magnitudes[c]
                    + slope.abs() * wobble(at));
        }
    }
    let pixels = x.shape.pixels();
    let sums = |values: Array, magnitudes: Vec<f64>, terms: usize| {
        let expected = Expected::sums(values, &magnitudes, terms);
        Some(if stored { expected.through(magnitudes) } else { expected })
    };
    let mut gradients = vec![
        sums(d_x, d_x_magnitudes, terms(x, options)),
        sums(d_gamma, d_gamma_magnitudes, pixels),
        sums(d_beta, d_beta_magnitudes, pixels),
        None,
    ];
    if inputs.len() > 4 {
        gradients.push(Some(Expected::exact(d_z)));
    }
    gradients
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for training in [true, false] {
        for (relu, residual) in [(false, false), (true, false), (true, true), (false, true)] {
            let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu };
            cases.push(case(Shape::new(3, 7, 5, 13), Fill::Uniform(-1.0, 1.0), residual, options));
            cases.push(case(Shape::new(2, 9, 9, 64), Fill::Uniform(-1.0, 1.0), residual, options));
            // More than a few pixels.
            cases.push(case(Shape::new(2, 33, 17, 5), Fill::Uniform(-1.0, 1.0), residual, options));
        }
    }
    let options = BatchNorm { training: true, momentum: 0.1, epsilon: 1e-5, relu: false };
    // Two values a channel; a mean a thousand times the deviation; more chunks than threads merge.
    cases.push(case(Shape::new(2, 1, 1, 4), Fill::Uniform(-1.0, 1.0), false, options));
    cases.push(case(Shape::new(4, 9, 7, 6), Fill::Uniform(999.0, 1001.0), false, options));
    cases.push(case(Shape::new(2, 57, 51, 4), Fill::Uniform(-1.0, 1.0), false, options));
    // Chunks for many threads to merge.
    cases.push(case(Shape::new(1, 260, 259, 4), Fill::Uniform(-1.0, 1.0), false, options));
    // ResNet-18 at 224 px, batch 8, and at 64 px, batch 16: the ends of layer1 and layer4; and batch 64.
    let options = BatchNorm { relu: true, ..options };
    for (shape, for_gpus) in [
        (Shape::new(8, 56, 56, 64), false),
        (Shape::new(16, 2, 2, 512), false),
        (Shape::new(64, 56, 56, 64), true),
    ] {
        let case = case(shape, Fill::Uniform(-1.0, 1.0), true, options);
        cases.push(Case { benchmark: true, for_gpus, ..case });
    }
    cases
}

fn case(shape: Shape, fill: Fill, residual: bool, options: BatchNorm) -> Case {
    let vector = Shape::vector(shape.c);
    let mut inputs = vec![
        Input::variable(shape).filled(fill).activation(),
        Input::variable(vector).filled(Fill::Uniform(0.5, 1.5)),
        Input::variable(vector),
        Input::constant(Shape::matrix(2, shape.c), Fill::Uniform(0.25, 1.0)),
    ];
    if residual {
        inputs.push(Input::variable(shape).activation());
    }
    let name = format!(
        "{shape} {fill} {}{}{}",
        if options.training { "train" } else { "eval" },
        if residual { " +residual" } else { "" },
        if options.relu { " +relu" } else { "" }
    );
    let run = move |tape: &Tape, inputs: &[Var]| {
        // The running statistics are updated in place; the case's own must stay as they are.
        let running = inputs[3].value().duplicate(tape.gpu());
        let state = BatchNormState { gamma: &inputs[1], beta: &inputs[2], running: &running };
        let y = batch_norm(tape, &inputs[0], state, inputs.get(4), None, options)?;
        Ok(vec![y, tape.constant(running)])
    };
    Case::new(name, inputs, run, move |inputs| reference(inputs, options))
        .gradient(move |inputs, d_y| reference_gradient(inputs, d_y, options, false))
}
