//! Batch norm, ReLU and max-pool in one pass, as a ResNet's stem has them: the normalised image, the
//! network's largest tensor, is never written.
//!
//! y[window] = max over the window of max(γ·x̂ + β, 0); backward is max-pool's, then batch norm's.

use super::Op;
use super::batch_norm::{
    BatchNorm, BatchNormBackward, BatchNormState, BatchStats, coefficients, reference as norm,
    reference_gradient as norm_gradient,
};
use super::case::{Array, Case, Expected, Fill, Input};
use super::max_pool2d::{self, MaxPool2d};
use crate::Result;
use crate::autograd::{Backward, Grads, Tape, Var};
use crate::gpu::Slice;
use crate::tensor::{Shape, Tensor};

pub(super) const OP: Op = Op { name: "batch_norm_max_pool", shaders: &[], cases };

/// The maxima of the windows of a rectified batch norm of `x`, whatever `options.relu` says.
///
/// # Errors
/// Those of [`super::batch_norm`] and [`super::max_pool2d`].
pub fn batch_norm_max_pool(
    tape: &Tape,
    x: &Var,
    state: BatchNormState<'_>,
    stats: Option<BatchStats>,
    options: BatchNorm,
    pool: MaxPool2d,
) -> Result<Var> {
    let gpu = tape.gpu();
    let options = BatchNorm { relu: true, ..options };
    let inputs = [x, state.gamma, state.beta];
    let keep = inputs.iter().any(|input| input.needs_grad());
    let coefficients = coefficients(gpu, x.value(), state, stats, options, None)?;
    let (y, taps) = max_pool2d::forward(gpu, x.value(), pool, Some(&coefficients), keep)?;
    Ok(match taps {
        Some(taps) => tape.output("batch_norm_max_pool", y, &inputs, || BatchNormMaxPoolBackward {
            pool,
            taps,
            norm: BatchNormBackward::new(x, state, coefficients, options),
        }),
        None => tape.untracked("batch_norm_max_pool", y),
    })
}

struct BatchNormMaxPoolBackward {
    pool: MaxPool2d,
    taps: Slice,
    norm: BatchNormBackward,
}

impl Backward for BatchNormMaxPoolBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let d_z = Tensor::empty_as(grads.gpu(), self.norm.input().shape(), d_y.dtype());
        max_pool2d::backward(grads.gpu(), self.pool, &self.taps, &d_y, &d_z, false);
        drop((d_y, self.taps));
        Box::new(self.norm).backward(d_z, grads)
    }
}

fn cases() -> Vec<Case> {
    let pool = MaxPool2d { kernel: [3; 2], stride: [2; 2], padding: [1; 2] };
    let options = BatchNorm { training: true, momentum: 0.1, epsilon: 1e-5, relu: true };
    let frozen = BatchNorm { training: false, ..options };
    // Where nothing is differentiated no winners are kept.
    let mut untracked = case(Shape::new(2, 9, 8, 13), frozen, pool);
    untracked.name += " constant";
    untracked.gradient = None;
    untracked.inputs.iter_mut().for_each(|input| input.differentiate = false);
    vec![
        untracked,
        case(Shape::new(2, 9, 8, 13), options, pool),
        case(Shape::new(2, 9, 8, 13), frozen, pool),
        case(Shape::new(1, 6, 7, 64), options, MaxPool2d { kernel: [2, 3], ..pool }),
        Case { benchmark: true, ..case(Shape::new(16, 32, 32, 64), options, pool) },
    ]
}

fn case(shape: Shape, options: BatchNorm, pool: MaxPool2d) -> Case {
    let vector = Shape::vector(shape.c);
    let inputs = vec![
        Input::variable(shape).activation(),
        Input::variable(vector).filled(Fill::Uniform(0.5, 1.5)),
        Input::variable(vector),
        Input::constant(Shape::matrix(2, shape.c), Fill::Uniform(0.25, 1.0)),
    ];
    let name = format!(
        "{shape} {}x{} {}",
        pool.kernel[0],
        pool.kernel[1],
        if options.training { "train" } else { "eval" }
    );
    let run = move |tape: &Tape, inputs: &[Var]| {
        let running = inputs[3].value().duplicate(tape.gpu());
        let state = BatchNormState { gamma: &inputs[1], beta: &inputs[2], running: &running };
        let y = batch_norm_max_pool(tape, &inputs[0], state, None, options, pool)?;
        Ok(vec![y, tape.constant(running)])
    };
    Case::new(name, inputs, run, move |inputs| reference(inputs, options, pool))
        .gradient(move |inputs, d_y| reference_gradient(inputs, d_y, options, pool))
}

fn reference(inputs: &[Array], options: BatchNorm, pool: MaxPool2d) -> Vec<Expected> {
    let normalised = norm(inputs, options);
    let (values, winners) = max_pool2d::reference(&normalised[0].values, pool);
    // A rounding error moves a maximum by no more than the largest error in its window.
    let bound = normalised[0].allowance.iter().copied().fold(0.0, f64::max);
    let pooled = Expected::within(values, vec![bound; winners.len()]);
    vec![pooled, normalised[1].clone()]
}

fn reference_gradient(
    inputs: &[Array],
    d_y: &Array,
    options: BatchNorm,
    pool: MaxPool2d,
) -> Vec<Option<Expected>> {
    let normalised = norm(inputs, options);
    let d_z = max_pool2d::reference_gradient(&normalised[0].values, d_y, pool);
    norm_gradient(inputs, &d_z.values, options, true)
}
