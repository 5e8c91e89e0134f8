//! A convolution and the batch norm after it, with the residual add and ReLU that may follow:
//! y = max(batch_norm(x ∗ w) + residual, 0).
//!
//! In training the convolution gathers the statistics on the way, or leaves its output in parts to the batch
//! norm. Where the running statistics are used and nothing is differentiated, all of it happens in the
//! convolution, before the sums are written: y = max(scale·(x ∗ w) + shift + residual, 0).

use super::Op;
use super::batch_norm::{BatchNorm, BatchNormState, batch_norm, reference as norm, statistics};
use super::case::{Array, Case, Fill, Input, Looser};
use super::conv2d::{
    Affine, Conv2d, PASSES, conv2d, conv2d_affine, conv2d_before_norm, reference as convolution,
};
use crate::Result;
use crate::autograd::{Tape, Var};
use crate::tensor::Shape;

pub(super) const OP: Op = Op { name: "conv2d_batch_norm", shaders: &[], cases };

/// Convolution, batch norm, residual and ReLU, by as few passes as can be.
///
/// # Errors
/// Those of [`super::conv2d`] and [`super::batch_norm`].
pub fn conv2d_batch_norm(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
    state: BatchNormState<'_>,
    residual: Option<&Var>,
    options: BatchNorm,
) -> Result<Var> {
    if options.training {
        let (y, stats) = conv2d_before_norm(tape, x, weight, conv)?;
        return batch_norm(tape, &y, state, residual, stats, options);
    }
    let inputs = [x, weight, state.gamma, state.beta];
    if inputs.into_iter().chain(residual).any(Var::needs_grad) {
        let y = conv2d(tape, x, weight, None, conv)?;
        return batch_norm(tape, &y, state, residual, None, options);
    }
    let (residual, BatchNorm { epsilon, relu, .. }) = (residual.map(Var::value), options);
    let affine = Affine { state, epsilon, residual, relu };
    let y = conv2d_affine(tape.gpu(), x, weight, conv, affine)?;
    Ok(tape.untracked("conv2d_batch_norm", y))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (training, relu, residual) in
        [(false, true, true), (false, true, false), (false, false, false), (true, true, true)]
    {
        for (x, window, c_out, stride) in [
            (Shape::new(2, 7, 9, 16), 3, 24, 1),
            (Shape::new(3, 6, 10, 12), 3, 20, 1),
            (Shape::new(3, 8, 8, 6), 3, 66, 2),
            (Shape::new(1, 5, 5, 130), 1, 9, 1),
            (Shape::new(2, 9, 8, 3), 7, 12, 2),
            (Shape::new(3, 7, 10, 3), 7, 16, 2),
            (Shape::new(3, 9, 7, 32), 3, 24, 1),
            // Deep enough for workgroups to share sums.
            (Shape::new(3, 4, 5, 44), 3, 24, 1),
        ] {
            // Nothing joins a network's first layer.
            if x.c == 3 && !training && (residual || !relu) {
                continue;
            }
            let conv = Conv2d { stride: [stride; 2], padding: [window / 2; 2] };
            cases.push(case(x, window, c_out, conv, residual, (training, relu)));
        }
    }
    let conv = Conv2d { stride: [1; 2], padding: [1; 2] };
    // Whose sums workgroups share, in more parts than are loaded at a time: the batch norm adds them up.
    for relu in [true, false] {
        cases.push(case(Shape::new(3, 4, 5, 76), 3, 24, conv, false, (true, relu)));
    }
    // And more pixels than it does that for.
    cases.push(case(Shape::new(5, 15, 14, 32), 3, 12, conv, false, (true, false)));
    // More images than Winograd's workspace takes at a time.
    cases.push(case(Shape::new(48, 16, 16, 12), 3, 12, conv, false, (true, false)));
    let layer1 = case(Shape::new(16, 16, 16, 64), 3, 64, conv, true, (false, true));
    cases.push(Case { benchmark: true, ..layer1 });
    cases
}

fn case(
    x: Shape,
    window: usize,
    c_out: usize,
    conv: Conv2d,
    residual: bool,
    (training, relu): (bool, bool),
) -> Case {
    let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu };
    let unit = Fill::Uniform(-1.0, 1.0);
    let weight = Shape::new(window, window, x.c.next_multiple_of(4), c_out);
    let vector = Shape::vector(c_out);
    let y = Shape::new(
        x.n,
        (x.h + 2 * conv.padding[0] - window) / conv.stride[0] + 1,
        (x.w + 2 * conv.padding[1] - window) / conv.stride[1] + 1,
        c_out,
    );
    let mut inputs = vec![
        Input::constant(x, unit).activation(),
        Input::constant(weight, Fill::Channels(x.c)).weight(),
        Input::constant(vector, Fill::Uniform(0.5, 1.5)),
        Input::constant(vector, unit),
        Input::constant(Shape::matrix(2, c_out), Fill::Uniform(0.25, 1.0)),
    ];
    if residual {
        inputs.push(Input::constant(y, unit).activation());
    }
    let name = format!(
        "{x} {window}x{window} s{} -> {c_out} {}{}{}",
        conv.stride[0],
        if training { "train" } else { "eval" },
        if residual { " +residual" } else { "" },
        if relu { " +relu" } else { "" }
    );
    let run = move |tape: &Tape, inputs: &[Var]| {
        // Updated in place in training; the case's own must stay as they are.
        let running = inputs[4].value().duplicate(tape.gpu());
        let state = BatchNormState { gamma: &inputs[2], beta: &inputs[3], running: &running };
        let residual = inputs.get(5);
        let y = conv2d_batch_norm(tape, &inputs[0], &inputs[1], conv, state, residual, options)?;
        Ok(vec![y, tape.constant(running)])
    };
    let mut case = Case::new(name, inputs, run, move |inputs| {
        let sums = convolution(&inputs[0], &inputs[1], None, conv);
        let mut parts = vec![sums.values.clone()];
        parts.extend(inputs[2..].iter().cloned());
        let alone = norm(&parts, options);
        // What the convolution may be off by, added to `allowances`.
        let widened = |mut allowances: Vec<Vec<f64>>, allowance: &[f64]| {
            for (c, gamma) in inputs[2].data.iter().enumerate() {
                let moves = (&sums.values, allowance);
                widen(&mut allowances, moves, &parts[3], c, *gamma, options);
            }
            allowances
        };
        let own = || alone.iter().map(|all| all.allowance.clone()).collect();
        let mut expected = alone.clone();
        for (expected, allowance) in expected.iter_mut().zip(widened(own(), &sums.allowance)) {
            expected.allowance = allowance;
        }
        if training {
            let none = alone.iter().map(|all| vec![0.0; all.allowance.len()]).collect();
            let moved = widened(none, &sums.values.map(f64::abs).data);
            for (expected, moved) in expected.iter_mut().zip(moved) {
                expected.intermediates = moved;
            }
        }
        for &Looser { pass, kernels, ref allowance } in &sums.looser {
            for (expected, allowance) in expected.iter_mut().zip(widened(own(), allowance)) {
                expected.looser.push(Looser { pass, kernels, allowance });
            }
        }
        expected
    });
    case.passes = PASSES;
    case
}

/// Adds to what channel `c` of a batch norm may be off by what the convolution before it, `sums` with
/// its allowance, may be.
fn widen(
    allowances: &mut [Vec<f64>],
    (sums, allowance): (&Array, &[f64]),
    running: &Array,
    c: usize,
    gamma: f64,
    options: BatchNorm,
) {
    let channel = statistics(sums, running, c, options);
    let deviation = (channel.variance + f64::from(options.epsilon)).sqrt();
    let indices = || (c..sums.data.len()).step_by(sums.shape.c);
    let largest = indices().map(|at| allowance[at]).fold(0.0, f64::max);
    let batch = f64::from(u8::from(options.training));
    for at in indices() {
        let normalised = (sums.data[at] - channel.mean) / deviation;
        // Its own error, and through mean and deviation that of the others.
        let moved = allowance[at] + batch * largest * (1.0 + normalised.abs());
        allowances[0][at] += gamma.abs() / deviation * moved;
    }
    let moved = batch * f64::from(options.momentum) * largest;
    allowances[1][c] += moved;
    allowances[1][running.shape.c + c] += 2.0 * deviation * moved;
}
