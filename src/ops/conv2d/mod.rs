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
mod epilogue;
mod estimate;
mod geometry;
mod kernels;
mod passes;
mod reference;
mod sharing;
mod tiling;
mod trial;
mod winograd;

use super::Op;
use super::batch_norm::BatchStats;
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

pub(super) use epilogue::Affine;
use epilogue::Epilogue;
pub use geometry::Conv2d;
use geometry::Geometry;
use kernels::Method;
use passes::{
    backward_bias, backward_data, backward_weight, forward, forward_in_parts, forward_sharing,
};
pub(super) use reference::{reference, reference_bias, reference_data, reference_weight};
use sharing::{ROWS_WITH_STATS, sum, sum_gradients};
use tiling::{Operand, Shaders};
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
static WINDOW_COOPERATIVE: Shader = shader!("conv2d_window_cooperative");
static BACKWARD_BIAS: Shader = shader!("conv2d_backward_bias");
static PEAKS: Shader = shader!("conv2d_peaks");
static SUM: Shader = shader!("conv2d_sum");
static SUM_BOTH: Shader = shader!("conv2d_sum_both");

const FORWARD: Shaders = Shaders {
    lanes: &FORWARD_LANES,
    tiled: &FORWARD_TILED,
    cooperative: Some(&FORWARD_COOPERATIVE),
    window: Some(&WINDOW_COOPERATIVE),
};
const BACKWARD_DATA: Shaders = Shaders {
    lanes: &BACKWARD_DATA_LANES,
    tiled: &BACKWARD_DATA_TILED,
    cooperative: Some(&BACKWARD_DATA_COOPERATIVE),
    window: Some(&WINDOW_COOPERATIVE),
};
const BACKWARD_WEIGHT: Shaders = Shaders {
    lanes: &BACKWARD_WEIGHT_LANES,
    tiled: &BACKWARD_WEIGHT_TILED,
    cooperative: Some(&BACKWARD_WEIGHT_COOPERATIVE),
    window: None,
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
        &WINDOW_COOPERATIVE,
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
    let gap = if let Method::Direct(tiling) = method { tiling.gap() } else { 0 };
    let stats = chunk.map(|chunk| BatchStats::empty(gpu, geometry.y, chunk, gap));
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
