//! Two-dimensional convolution (cross-correlation, as PyTorch's), channels last.
//!
//! y[n, oh, ow, co] = b[co] + Σ_(r, s, ci) x[n, oh·stride + r − pad, ow·stride + s − pad, ci] · w[r, s, ci, co]
//!
//! d_x[n, h, w, ci]  = Σ d_y · w over the (r, s, co) whose output pixel read (h, w);
//! d_w[r, s, ci, co] = Σ_(n, oh, ow) x · d_y;  d_b[co] = Σ_(n, oh, ow) d_y.
//!
//! All three are matrix products whose left operand is gathered on the fly (implicit GEMM). A weight
//! has the shape `(r, s, c_in, c_out)` with c_in a multiple of four; rows beyond the input's channels
//! meet zeros.

mod cases;
mod kernels;
mod reference;
mod trial;
mod winograd;

use super::Op;
use super::batch_norm::{BatchNormState, BatchStats};
use crate::autograd::{Backward, Grads, Slot, Tape, Target, Var};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader, Sizes, Slice};
use crate::shader;
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

use kernels::{BUSY, Method, Operand, Shaders, Sharing, Tiling};
pub(super) use reference::{reference, reference_bias, reference_data, reference_weight};
pub use trial::{Operands, Trial};
use winograd::Winograd;

static FORWARD_LANES: Shader = shader!("conv2d_forward_lanes");
static FORWARD_TILED: Shader = shader!("conv2d_forward_tiled");
static FORWARD_COOPERATIVE: Shader = shader!("conv2d_forward_cooperative");
static BACKWARD_DATA_LANES: Shader = shader!("conv2d_backward_data_lanes");
static BACKWARD_DATA_TILED: Shader = shader!("conv2d_backward_data_tiled");
static BACKWARD_DATA_COOPERATIVE: Shader = shader!("conv2d_backward_data_cooperative");
static BACKWARD_WEIGHT_LANES: Shader = shader!("conv2d_backward_weight_lanes");
static BACKWARD_WEIGHT_TILED: Shader = shader!("conv2d_backward_weight_tiled");
static BACKWARD_WEIGHT_COOPERATIVE: Shader = shader!("conv2d_backward_weight_cooperative");
static BACKWARD_BIAS: Shader = shader!("conv2d_backward_bias");
static PEAKS: Shader = shader!("conv2d_peaks");
static SUM: Shader = shader!("conv2d_sum");
static SUM_BOTH: Shader = shader!("conv2d_sum_both");

const FORWARD: Shaders = Shaders {
    lanes: &FORWARD_LANES,
    tiled: &FORWARD_TILED,
    cooperative: Some(&FORWARD_COOPERATIVE),
};
const BACKWARD_DATA: Shaders = Shaders {
    lanes: &BACKWARD_DATA_LANES,
    tiled: &BACKWARD_DATA_TILED,
    cooperative: Some(&BACKWARD_DATA_COOPERATIVE),
};
const BACKWARD_WEIGHT: Shaders = Shaders {
    lanes: &BACKWARD_WEIGHT_LANES,
    tiled: &BACKWARD_WEIGHT_TILED,
    cooperative: Some(&BACKWARD_WEIGHT_COOPERATIVE),
};

pub(super) const OP: Op = Op {
    name: "conv2d",
    shaders: &[
        &FORWARD_LANES,
        &FORWARD_TILED,
        &FORWARD_COOPERATIVE,
        &BACKWARD_DATA_LANES,
        &BACKWARD_DATA_TILED,
        &BACKWARD_DATA_COOPERATIVE,
        &BACKWARD_WEIGHT_LANES,
        &BACKWARD_WEIGHT_TILED,
        &BACKWARD_WEIGHT_COOPERATIVE,
        &BACKWARD_BIAS,
        &PEAKS,
        &SUM,
        &SUM_BOTH,
        &winograd::INPUT,
        &winograd::WEIGHT,
        &winograd::MULTIPLY_LANES,
        &winograd::MULTIPLY_TILED,
        &winograd::OUTPUT,
    ],
    cases: cases::cases,
};

/// The passes whose kernel is chosen.
pub(super) const PASSES: &[&str] =
    &["conv2d_forward", "conv2d_backward_data", "conv2d_backward_weight"];

/// Stride and padding of a convolution, height first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// Zeros around the image.
    pub padding: [usize; 2],
}

/// Parameters of the convolution kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    /// Input channels over four.
    ci4: u32,
    oh: u32,
    ow: u32,
    /// Output channels over four.
    co4: u32,
    r: u32,
    s: u32,
    stride: [u32; 2],
    padding: [u32; 2],
    /// Backward by data: whether to add to what the output holds.
    accumulate: u32,
    /// Parts that sums are split into, and of each the output image rows, backward by weight, or else the
    /// groups of four terms.
    splits: u32,
    chunk: u32,
    /// Whether rows of a product go through the images at one place first, then to the next place.
    images_first: u32,
    /// Forward, where a batch norm follows: what is added to its variance.
    epsilon: f32,
}

/// Pixels of an image up to which the rows of a product go through the images first: the fewer, the more
/// of what they read is padding, which is passed over then.
const FEW_PLACES: usize = 64;

/// Sizes of one convolution, checked.
#[derive(Clone, Copy)]
struct Geometry {
    x: Shape,
    weight: Shape,
    y: Shape,
    conv: Conv2d,
    /// Of x, y, the weight and the gradients by x and y; that by the weight is always in f32.
    dtype: Dtype,
}

impl Geometry {
    /// That of a convolution of tensors.
    fn of(x: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Self> {
        if x.dtype() != weight.dtype() {
            let what = format!("an input in {} meets a weight in {}", x.dtype(), weight.dtype());
            return Err(Error::shape("conv2d", what));
        }
        Ok(Self { dtype: x.dtype(), ..Self::new(x.shape(), weight.shape(), conv)? })
    }

    fn new(x: Shape, weight: Shape, conv: Conv2d) -> Result<Self> {
        let Shape { n: r, h: s, w: c_in, c: c_out } = weight;
        let error = |what: String| Err(Error::shape("conv2d", what));
        if c_in != x.c.next_multiple_of(4) {
            return error(format!("an input {x} does not meet a weight {weight} (r, s, in, out)"));
        }
        if conv.stride.contains(&0) {
            return error("a stride of 0".into());
        }
        let reach = [x.h + 2 * conv.padding[0], x.w + 2 * conv.padding[1]];
        if reach[0] < r || reach[1] < s {
            return error(format!("a window {r}x{s} is larger than the padded input {x}"));
        }
        let y = Shape::new(
            x.n,
            (reach[0] - r) / conv.stride[0] + 1,
            (reach[1] - s) / conv.stride[1] + 1,
            c_out,
        );
        Ok(Self { x, weight, y, conv, dtype: Dtype::F32 })
    }

    fn params(&self) -> Params {
        let Self { x, weight, y, conv, .. } = self;
        Params {
            n: x.n as u32,
            h: x.h as u32,
            w: x.w as u32,
            ci4: x.c4() as u32,
            oh: y.h as u32,
            ow: y.w as u32,
            co4: y.c4() as u32,
            r: weight.n as u32,
            s: weight.h as u32,
            stride: conv.stride.map(|s| s as u32),
            padding: conv.padding.map(|p| p as u32),
            accumulate: 0,
            splits: 1,
            chunk: (x.n * y.h) as u32,
            images_first: (y.h * y.w <= FEW_PLACES).into(),
            epsilon: 0.0,
        }
    }

    /// What the fastest kernel may depend on.
    fn sizes(&self) -> Sizes {
        let Self { x, weight, y, conv, dtype } = self;
        let half = usize::from(dtype.is_half());
        let [n, h, w] = [x.n, x.h, x.w];
        let [stride_h, stride_w] = conv.stride;
        let [pad_h, pad_w] = conv.padding;
        [n, h, w, x.c, weight.n, weight.h, y.c, stride_h, stride_w, pad_h, pad_w, half]
            .map(|size| size as u32)
    }

    /// The convolution of these [`Geometry::sizes`].
    fn of_sizes(sizes: Sizes) -> Result<Self> {
        let [n, h, w, c_in, r, s, c_out, stride_h, stride_w, pad_h, pad_w, half] =
            sizes.map(|size| size as usize);
        let geometry = Self::new(
            Shape::new(n, h, w, c_in),
            Shape::new(r, s, c_in.next_multiple_of(4), c_out),
            Conv2d { stride: [stride_h, stride_w], padding: [pad_h, pad_w] },
        )?;
        let dtype = if half == 1 { Dtype::F16 } else { Dtype::F32 };
        Ok(Self { dtype, ..geometry })
    }

    /// Whether two neighbouring pixels can be read as one: four channels of f16 each, windows that begin at
    /// every second column, and rows of an even length.
    fn has_pairs(&self) -> bool {
        self.dtype.is_half()
            && self.x.c <= 4
            && self.conv.stride[1] == 2
            && self.x.w.is_multiple_of(2)
    }

    /// Taps of padding in front of a window's first that complete a pair.
    fn lead(&self) -> usize {
        self.conv.padding[1] % 2
    }

    /// The same convolution where it [`Geometry::has_pairs`], over pixels of eight channels. Its windows have
    /// one tap for two, and up to one before and one after those of the weight, which lacks these.
    fn paired(&self) -> Self {
        let Self { x, weight, conv, .. } = *self;
        let ([stride, _], [padding_h, padding_w]) = (conv.stride, conv.padding);
        let taps = (weight.h + self.lead()).div_ceil(2);
        Self {
            x: Shape { w: x.w / 2, c: 8, ..x },
            weight: Shape { h: taps, w: 8, ..weight },
            conv: Conv2d { stride: [stride, 1], padding: [padding_h, padding_w.div_ceil(2)] },
            ..*self
        }
    }

    /// Multiplications and additions of each of the three passes.
    fn flops(&self) -> f64 {
        2.0 * self.y.len() as f64 * (self.weight.n * self.weight.h * self.x.c) as f64
    }
}

/// y = x ∗ weight + bias.
///
/// `weight` is `(r, s, c_in, c_out)`, of the type of `x`; `bias` a vector of c_out in f32.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit together or the window exceeds the padded input.
pub fn conv2d(tape: &Tape, x: &Var, weight: &Var, bias: Option<&Var>, conv: Conv2d) -> Result<Var> {
    let geometry = Geometry::of(x.value(), weight.value(), conv)?;
    if let Some(bias) = bias
        && bias.shape() != Shape::vector(geometry.y.c)
    {
        let what = format!("a bias {} for an output {}", bias.shape(), geometry.y);
        return Err(Error::shape("conv2d", what));
    }
    let epilogue = bias.map_or(Epilogue::None, |bias| Epilogue::Bias(bias.value()));
    let method = kernels::forward(tape.gpu(), &geometry);
    let operands = [x, weight].map(|var| Operand::new(var.value()));
    let y = forward(tape.gpu(), &geometry, method, operands.each_ref(), epilogue);
    Ok(attach(tape, geometry, [x, weight], operands, bias, y))
}

/// [`conv2d`] without bias, with the statistics of each channel that [`super::batch_norm`] needs in
/// training, if they can be gathered on the way.
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_with_stats(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
) -> Result<(Var, Option<BatchStats>)> {
    with_stats(tape, x, weight, conv, false)
}

/// [`conv2d_with_stats`] for a batch norm that follows at once: it may have to add up the output.
///
/// # Errors
/// Those of [`conv2d`].
pub(super) fn conv2d_before_norm(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
) -> Result<(Var, Option<BatchStats>)> {
    with_stats(tape, x, weight, conv, true)
}

fn with_stats(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
    leave_parts: bool,
) -> Result<(Var, Option<BatchStats>)> {
    let geometry = Geometry::of(x.value(), weight.value(), conv)?;
    let gpu = tape.gpu();
    let method = kernels::forward(gpu, &geometry);
    let operands = [x, weight].map(|var| Operand::new(var.value()));
    let chunk = match method {
        Method::Direct(tiling) => match forward_sharing(&geometry, tiling).parts {
            1 => Some(tiling.rows()),
            _ if leave_parts && BatchStats::takes_parts(geometry.y) => None,
            _ => Some(ROWS_WITH_STATS),
        },
        Method::Winograd(..) => Winograd::forward(&geometry).and_then(|it| it.stats_chunk()),
    };
    let stats = chunk.map(|chunk| BatchStats::empty(gpu, geometry.y, chunk));
    let epilogue = stats.as_ref().map_or(Epilogue::None, Epilogue::Stats);
    let (y, parts) = forward_in_parts(gpu, &geometry, method, operands.each_ref(), epilogue);
    let stats = match parts {
        Some(parts) if chunk.is_none() => {
            Some(BatchStats::of_parts(geometry.y, parts.memory, parts.count))
        }
        Some(parts) => {
            sum(gpu, &parts, &y, epilogue);
            stats
        }
        None => stats,
    };
    Ok((attach(tape, geometry, [x, weight], operands, None, y), stats))
}

fn attach(
    tape: &Tape,
    geometry: Geometry,
    [x, weight]: [&Var; 2],
    [_, weight_operand]: [Operand; 2],
    bias: Option<&Var>,
    y: Tensor,
) -> Var {
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    tape.output("conv2d", y, &inputs, || Conv2dBackward {
        geometry,
        x: (x.slot(), weight.needs_grad().then(|| Operand::new(x.value()))),
        weight: (weight.slot(), x.needs_grad().then_some(weight_operand)),
        bias: bias.map(Var::slot),
    })
}

/// x ∗ weight, then a batch norm by its running statistics, the residual added, rectified.
///
/// # Errors
/// Those of [`conv2d`], and [`Error::Shape`] if the batch norm or the residual does not fit.
pub(super) fn conv2d_affine(
    gpu: &Gpu,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
    affine: Affine<'_>,
) -> Result<Tensor> {
    let geometry = Geometry::of(x.value(), weight.value(), conv)?;
    affine.state.check(geometry.y)?;
    if let Some(residual) = affine.residual
        && (residual.shape(), residual.dtype()) != (geometry.y, geometry.dtype)
    {
        let what = format!("a residual {} joins {}", residual.shape(), geometry.y);
        return Err(Error::shape("conv2d", what));
    }
    let (method, epilogue) = (kernels::forward(gpu, &geometry), Epilogue::Affine(affine));
    let operands = [x, weight].map(|var| Operand::new(var.value()));
    Ok(forward(gpu, &geometry, method, operands.each_ref(), epilogue))
}

/// What follows a convolution in evaluation.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    /// The batch norm, whose running statistics count.
    pub state: BatchNormState<'a>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Added after it.
    pub residual: Option<&'a Tensor>,
    /// Whether max(·, 0) comes last.
    pub relu: bool,
}

/// What a forward kernel does with the sums before it writes them.
#[derive(Clone, Copy)]
enum Epilogue<'a> {
    None,
    /// Not in the kernels of the forward pass itself: adds to what the output holds.
    Accumulate,
    Bias(&'a Tensor),
    Stats(&'a BatchStats),
    Affine(Affine<'a>),
}

impl<'a> Epilogue<'a> {
    /// The kernel with this epilogue, whose memory is added to what it binds.
    fn attach(self, kernel: Kernel, slices: &mut Vec<&'a Slice>) -> Kernel {
        match self {
            Self::None | Self::Accumulate => kernel,
            Self::Bias(bias) => {
                slices.push(bias.memory());
                kernel.with("BIAS", 1)
            }
            Self::Stats(stats) => {
                slices.push(stats.memory());
                kernel.with("STATS", 1)
            }
            Self::Affine(Affine { state, residual, relu, .. }) => {
                slices.extend([state.gamma.value().memory(), state.beta.value().memory()]);
                slices.push(state.running.memory());
                slices.extend(residual.map(Tensor::memory));
                kernel
                    .with("AFFINE", 1)
                    .with("RESIDUAL", residual.is_some().into())
                    .with("RELU", relu.into())
            }
        }
    }

    /// What the kernel must be told to add to a variance.
    fn epsilon(self) -> f32 {
        if let Self::Affine(affine) = self { affine.epsilon } else { 0.0 }
    }
}

/// Records the forward pass.
fn forward(
    gpu: &Gpu,
    geometry: &Geometry,
    method: Method,
    operands: [&Operand; 2],
    epilogue: Epilogue<'_>,
) -> Tensor {
    let (y, parts) = forward_in_parts(gpu, geometry, method, operands, epilogue);
    if let Some(parts) = parts {
        sum(gpu, &parts, &y, epilogue);
    }
    y
}

/// Sums that workgroups share, yet to be added up from their parts: [part][row][column].
struct Parts {
    memory: Slice,
    count: usize,
}

/// Records the forward pass but for adding up parts: where there are any, the output is yet to be written
/// and the epilogue yet to be done.
fn forward_in_parts(
    gpu: &Gpu,
    geometry: &Geometry,
    method: Method,
    operands @ [x, weight]: [&Operand; 2],
    epilogue: Epilogue<'_>,
) -> (Tensor, Option<Parts>) {
    let y = Tensor::empty_as(gpu, geometry.y, geometry.dtype);
    let tiling = match method {
        Method::Winograd(tiling) => {
            let winograd = Winograd::forward(geometry).expect("offered where it applies");
            winograd.run(gpu, tiling, x.tensor(), weight.tensor(), &y, epilogue);
            return (y, None);
        }
        Method::Direct(tiling) => tiling,
    };
    let sharing = forward_sharing(geometry, tiling);
    let parts = sharing.memory(gpu, geometry.y);
    let kernel = tiling.kernel_for(&FORWARD, geometry).half(geometry.dtype.is_half());
    let mut slices = vec![x.read_by(tiling, gpu), weight.read_by(tiling, gpu)];
    slices.push(parts.as_ref().unwrap_or(y.memory()));
    let kernel = match &parts {
        Some(_) => kernel.with("SHARED", 1),
        None => epilogue.attach(kernel, &mut slices),
    };
    let peaks = peaks(gpu, tiling, operands);
    slices.extend(&peaks);
    let params = Params { epsilon: epilogue.epsilon(), ..sharing.params(&tiling.seen(geometry)) };
    let tiles = tiling.count(geometry.y.pixels(), geometry.y.c);
    gpu.run(kernel, &params, &slices, gpu.groups(tiles * sharing.parts));
    (y, parts.map(|memory| Parts { memory, count: sharing.parts }))
}

fn forward_sharing(geometry: &Geometry, tiling: Tiling) -> Sharing {
    let Geometry { x, weight, y, .. } = tiling.seen(geometry);
    tiling.share(tiling.count(y.pixels(), y.c), weight.n * weight.h * x.c4())
}

/// Rows that a thread sums up where it gathers statistics; the shader's `ROWS`.
const ROWS_WITH_STATS: usize = 8;

/// Records what adds up parts, with what follows the sums.
fn sum(gpu: &Gpu, parts: &Parts, y: &Tensor, epilogue: Epilogue<'_>) {
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
    gpu.run(kernel, &params, &slices, gpu.groups((rows.div_ceil(at_a_time) * co4).div_ceil(64)));
}

/// Records what adds up the parts of gradients, by the weight and by the input.
fn sum_gradients(gpu: &Gpu, unsummed: [Option<(Parts, &Target)>; 2]) {
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
    let kernel = Kernel::new(&SUM_BOTH).half(d_x.dtype().is_half());
    let threads = d_w.shape().vec4s() + d_x.shape().vec4s();
    let slices = [of_weight, of_input, d_w.memory(), d_x.memory()];
    gpu.run(kernel, &params, &slices, gpu.groups(threads.div_ceil(64)));
}

/// Finds what a kernel that splits numbers must know of the sizes of both operands' numbers; nothing for
/// other kernels.
fn peaks(gpu: &Gpu, tiling: Tiling, operands: [&Operand; 2]) -> Option<Slice> {
    /// The shader's `PEAKS`, of each operand.
    const PEAKS_OF_EACH: u32 = 256;
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct PeaksParams {
        a: u32,
        b: u32,
    }
    if !tiling.is_split() {
        return None;
    }
    let [a, b] = operands.map(Operand::tensor);
    let [of_a, of_b] = [a, b].map(|tensor| tensor.shape().vec4s() as u32);
    let peaks = gpu.lease(2 * u64::from(PEAKS_OF_EACH) * 4);
    let params = PeaksParams { a: of_a, b: of_b };
    let slices = [a.memory(), b.memory(), &peaks];
    gpu.run(Kernel::new(&PEAKS), &params, &slices, [PEAKS_OF_EACH, 2, 1]);
    Some(peaks)
}

struct Conv2dBackward {
    geometry: Geometry,
    /// Either value is kept only if the other's gradient needs it.
    x: (Slot, Option<Operand>),
    weight: (Slot, Option<Operand>),
    bias: Option<Slot>,
}

impl Backward for Conv2dBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        if let Some(d_b) = self.bias.and_then(|bias| grads.target(bias)) {
            backward_bias(grads.gpu(), &d_y, &d_b);
        }
        let d_y = Operand::new(&d_y);
        let d_w = self.x.1.as_ref().zip(grads.target(self.weight.0));
        let d_x = self.weight.1.as_ref().zip(grads.target(self.x.0));
        let (gpu, geometry) = (grads.gpu(), &self.geometry);
        let of_weight = d_w.as_ref().and_then(|(x, d_w)| {
            backward_weight(gpu, geometry, [x, &d_y], d_w).map(|parts| (parts, d_w))
        });
        let of_input = d_x.as_ref().and_then(|(weight, d_x)| {
            backward_data(gpu, geometry, [&d_y, weight], d_x).map(|parts| (parts, d_x))
        });
        // Only now, so that a GPU can do both products at the same time.
        sum_gradients(gpu, [of_weight, of_input]);
        Ok(())
    }
}

fn backward_bias(gpu: &Gpu, d_y: &Tensor, Target { tensor: d_b, accumulate }: &Target) {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct BiasParams {
        rows: u32,
        co4: u32,
        accumulate: u32,
    }
    let shape = d_y.shape();
    let params = BiasParams {
        rows: shape.pixels() as u32,
        co4: shape.c4() as u32,
        accumulate: (*accumulate).into(),
    };
    let slices = [d_y.memory(), d_b.memory()];
    let kernel = Kernel::new(&BACKWARD_BIAS).half(d_y.dtype().is_half());
    gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
}

/// Records the gradient by the input but for adding up parts.
#[must_use]
fn backward_data(
    gpu: &Gpu,
    geometry: &Geometry,
    operands @ [d_y, weight]: [&Operand; 2],
    Target { tensor: d_x, accumulate }: &Target,
) -> Option<Parts> {
    let (Geometry { x, conv, .. }, accumulate) = (geometry, *accumulate);
    let [stride_h, stride_w] = conv.stride;
    // The largest class of input pixels that share their taps.
    let rows = x.n * x.h.div_ceil(stride_h) * x.w.div_ceil(stride_w);
    let tiling = match kernels::backward_data(gpu, geometry, rows) {
        Method::Winograd(tiling) => {
            let winograd = Winograd::backward_data(geometry).expect("offered where it applies");
            let epilogue = if accumulate { Epilogue::Accumulate } else { Epilogue::None };
            winograd.run(gpu, tiling, d_y.tensor(), weight.tensor(), d_x, epilogue);
            return None;
        }
        Method::Direct(tiling) => tiling,
    };
    let kernel = tiling.kernel(&BACKWARD_DATA).half(geometry.dtype.is_half());
    let classes = stride_h * stride_w;
    let taps = geometry.weight.n.div_ceil(stride_h) * geometry.weight.h.div_ceil(stride_w);
    let tiles = tiling.count(rows, x.c);
    let sharing = tiling.share(classes * tiles, taps * geometry.y.c4());
    let parts = sharing.memory(gpu, *x);
    let params = Params {
        accumulate: (accumulate && parts.is_none()).into(),
        images_first: (rows <= FEW_PLACES * x.n).into(),
        ..sharing.params(geometry)
    };
    // Windows of one pixel stand on pixels of the first class alone.
    let of_one_pixel = geometry.weight.n * geometry.weight.h == 1 && conv.padding == [0, 0];
    let classes = if of_one_pixel && parts.is_none() { 1 } else { classes };
    if classes < stride_h * stride_w && !accumulate {
        gpu.clear(d_x.memory());
    }
    let [groups_x, groups_y, _] = gpu.groups(tiles * sharing.parts);
    let groups = [groups_x, groups_y, classes as u32];
    let peaks = peaks(gpu, tiling, operands);
    let mut slices = vec![d_y.read_by(tiling, gpu), weight.read_by(tiling, gpu)];
    slices.push(parts.as_ref().unwrap_or(d_x.memory()));
    slices.extend(&peaks);
    gpu.run(kernel.with("SHARED", parts.is_some().into()), &params, &slices, groups);
    parts.map(|memory| Parts { memory, count: sharing.parts })
}

/// Records the gradient by the weight but for adding up parts.
#[must_use]
fn backward_weight(
    gpu: &Gpu,
    geometry: &Geometry,
    operands: [&Operand; 2],
    Target { tensor: d_w, accumulate }: &Target,
) -> Option<Parts> {
    let (Geometry { weight, y, .. }, accumulate) = (geometry, *accumulate);
    let quads = weight.n * weight.h * geometry.x.c4();
    // Enough workgroups to keep the adapter busy, as long as a part still sums a few dozen pixels: processors
    // seldom have more than 32 cores, and every part costs them stores.
    let image_rows = y.n * y.h;
    let most = (y.pixels() / 64).clamp(1, image_rows);
    let tiling = kernels::backward_weight(gpu, geometry, quads, most);
    let kernel = tiling.kernel_for(&BACKWARD_WEIGHT, geometry).half(geometry.dtype.is_half());
    let kernel = tiling.storing(gpu, y.c, kernel);
    let seen = tiling.seen(geometry);
    let tiles = tiling.count(seen.weight.n * seen.weight.h * seen.weight.w, y.c);
    let splits = match gpu.class() {
        AdapterClass::Software => 32_usize.div_ceil(tiles),
        // Not more workgroups than fill a GPU evenly, but two parts even of large products.
        _ => (2 * BUSY / tiles).max((2 * BUSY).div_ceil(tiles).min(2)),
    };
    let splits = splits.min(most);
    let chunk = image_rows.div_ceil(splits);
    let splits = image_rows.div_ceil(chunk);
    let params = Params { splits: splits as u32, chunk: chunk as u32, ..seen.params() };
    let groups = gpu.groups(tiles * splits);
    let peaks = peaks(gpu, tiling, operands);
    let [left, right] = operands.map(|operand| operand.read_by(tiling, gpu));
    let run = |into: &Slice| {
        let slices: Vec<_> = [left, right, into].into_iter().chain(&peaks).collect();
        gpu.run(kernel, &params, &slices, groups);
    };
    if splits == 1 && !accumulate {
        run(d_w.memory());
        return None;
    }
    let memory = gpu.lease(weight.bytes() * splits as u64);
    run(&memory);
    Some(Parts { memory, count: splits })
}
