//! What a student has yet to learn from its teachers (Hinton, Vinyals and Dean, 2015): the divergence
//! of its probabilities q from theirs p, both softened by a temperature T, summed over rows and
//! divided by a number the caller chooses:
//!
//! loss = T²·Σ_rows Σ_c p_c·(log p_c − log q_c), over divisor, with q = softmax(z / T).
//!
//! d_z = T·(q·Σp − p) · d_loss / divisor. T² keeps the gradient's size when T changes.
//!
//! The teachers' p is the mean of softmax(t / T) over them, made by [`soften`].

use super::Op;
use super::case::{Array, Case, EPSILON, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static SOFTEN: Shader = shader!("distillation_soften");
static FORWARD: Shader = shader!("distillation_forward");
static REDUCE: Shader = shader!("distillation_reduce");
static BACKWARD: Shader = shader!("distillation_backward");

pub(super) const OP: Op =
    Op { name: "distillation", shaders: &[&SOFTEN, &FORWARD, &REDUCE, &BACKWARD], cases };

/// Options of [`distillation`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// What logits are divided by before they become probabilities, above 0.
    pub temperature: f32,
    /// What the sum over rows is divided by, as in [`CrossEntropy`](super::CrossEntropy).
    pub divisor: f32,
}

/// What [`distillation`] computes.
pub struct DistillationOutput {
    /// The loss, one number.
    pub loss: Var,
    /// Four numbers: the loss, two zeros, rows.
    pub stats: Tensor,
}

/// Parameters of the shaders.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    classes: u32,
    c4: u32,
    temperature: f32,
    /// What a row's probabilities, loss or gradient are multiplied by.
    scale: f32,
    /// Whether to add to what the output holds.
    accumulate: u32,
}

impl Params {
    fn new(logits: Shape, temperature: f32, scale: f32, accumulate: bool) -> Self {
        Self {
            rows: logits.n as u32,
            classes: logits.c as u32,
            c4: logits.c4() as u32,
            temperature,
            scale,
            accumulate: accumulate.into(),
        }
    }
}

fn check(op: &'static str, logits: Shape, targets: Shape) -> Result<()> {
    if logits != Shape::matrix(logits.n, logits.c) || logits.is_empty() {
        return Err(Error::shape(op, format!("logits {logits} are no matrix")));
    }
    if logits != targets {
        return Err(Error::shape(op, format!("targets {targets} for logits {logits}")));
    }
    Ok(())
}

/// Writes `share`·softmax(`logits` / `temperature`), row by row, to `targets`, or adds it to what is
/// there.
///
/// # Errors
/// [`Error::Shape`] if the logits are no matrix or the targets have another shape.
pub fn soften(
    gpu: &Gpu,
    logits: &Tensor,
    temperature: f32,
    share: f32,
    targets: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let shape = logits.shape();
    check("distillation", shape, targets.shape())?;
    let params = Params::new(shape, temperature, share, accumulate);
    let slices = [logits.memory(), targets.memory()];
    gpu.run(Kernel::new(&SOFTEN), &params, &slices, gpu.groups(shape.n));
    Ok(())
}

/// The loss of `logits`, a matrix of rows × classes, against `targets`, the probabilities that
/// [`soften`] makes of teachers' logits at the same temperature.
///
/// # Errors
/// [`Error::Shape`] if the logits are no matrix or the targets have another shape.
pub fn distillation(
    tape: &Tape,
    logits: &Var,
    targets: &Tensor,
    options: Distillation,
) -> Result<DistillationOutput> {
    let (gpu, shape) = (tape.gpu(), logits.shape());
    check("distillation", shape, targets.shape())?;
    let Distillation { temperature, divisor } = options;
    let params = Params::new(shape, temperature, temperature * temperature / divisor, false);
    let rows = gpu.lease(shape.n as u64 * 16);
    gpu.run(
        Kernel::new(&FORWARD),
        &params,
        &[logits.value().memory(), targets.memory(), &rows],
        gpu.groups(shape.n),
    );
    let loss = Tensor::empty(gpu, Shape::vector(1));
    let stats = Tensor::empty(gpu, Shape::vector(4));
    gpu.run(Kernel::new(&REDUCE), &params, &[&rows, loss.memory(), stats.memory()], [1, 1, 1]);
    let loss = tape.output("distillation", loss, &[logits], || DistillationBackward {
        slot: logits.slot(),
        logits: logits.value().clone(),
        targets: targets.clone(),
        rows,
        options,
    });
    Ok(DistillationOutput { loss, stats })
}

struct DistillationBackward {
    slot: Slot,
    logits: Tensor,
    targets: Tensor,
    /// Of each row: the largest logit, Σ exp((logit − largest) / T), the loss, Σ targets.
    rows: Slice,
    options: Distillation,
}

impl Backward for DistillationBackward {
    fn backward(self: Box<Self>, d_loss: Tensor, grads: &mut Grads) -> Result<()> {
        let Some(d_logits) = grads.target(self.slot) else { return Ok(()) };
        let (gpu, shape) = (grads.gpu(), self.logits.shape());
        let Distillation { temperature, divisor } = self.options;
        gpu.run(
            Kernel::new(&BACKWARD),
            &Params::new(shape, temperature, temperature / divisor, d_logits.accumulate),
            &[
                self.logits.memory(),
                self.targets.memory(),
                &self.rows,
                d_loss.memory(),
                d_logits.tensor.memory(),
            ],
            gpu.groups(shape.vec4s().div_ceil(64)),
        );
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let loss = |rows: usize, classes: usize, fill: Fill, temperature: f32, divisor: f32| {
        let options = Distillation { temperature, divisor };
        let shape = Shape::matrix(rows, classes);
        Case::new(
            format!("{rows} rows {classes} classes T {temperature} over {divisor} {fill}"),
            vec![
                Input::variable(shape).filled(fill),
                // Any numbers above 0 will do; probabilities are of this size.
                Input::constant(shape, Fill::Uniform(0.0, 2.0 / classes as f64)),
            ],
            move |tape, inputs| {
                let output = distillation(tape, &inputs[0], inputs[1].value(), options)?;
                Ok(vec![output.loss, tape.constant(output.stats)])
            },
            move |inputs| reference(&inputs[0], &inputs[1], options),
        )
        .gradient(move |inputs, d_loss| {
            let [logits, targets] = inputs else { unreachable!("two inputs") };
            vec![Some(reference_gradient(logits, targets, options, d_loss.data[0])), None]
        })
    };
    let softened = |rows: usize, classes: usize, fill: Fill, temperature: f32, teachers: usize| {
        let input = Input::constant(Shape::matrix(rows, classes), fill);
        Case::new(
            format!("soften {rows} rows {classes} classes of {teachers} T {temperature} {fill}"),
            vec![input; teachers],
            move |tape, inputs| {
                let targets = Tensor::empty(tape.gpu(), inputs[0].shape());
                for (at, logits) in inputs.iter().enumerate() {
                    let share = 1.0 / teachers as f32;
                    soften(tape.gpu(), logits.value(), temperature, share, &targets, at > 0)?;
                }
                Ok(vec![tape.constant(targets)])
            },
            move |inputs| vec![reference_softened(inputs, temperature)],
        )
    };
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        loss(1, 2, unit, 1.0, 1.0),
        loss(16, 10, Fill::Uniform(-8.0, 8.0), 4.0, 16.0),
        loss(7, 11, Fill::Ties, 2.0, 32.0),
        loss(130, 5, Fill::Ties, 0.5, 130.0),
        loss(3, 1000, Fill::Uniform(-20.0, 20.0), 3.0, 3.0),
        loss(5, 257, Fill::Uniform(-100.0, 100.0), 20.0, 5.0),
        // Where nothing but the largest logit itself will do as such: far apart, and far below zero.
        loss(12, 301, Fill::Extremes, 2.0, 12.0),
        loss(8, 7, Fill::Uniform(-900.0, -300.0), 2.0, 8.0),
        softened(1, 2, unit, 1.0, 1),
        softened(9, 10, Fill::Uniform(-8.0, 8.0), 4.0, 3),
        softened(3, 257, Fill::Uniform(-20.0, 20.0), 2.0, 2),
        softened(12, 301, Fill::Extremes, 2.0, 2),
        softened(8, 7, Fill::Uniform(-900.0, -300.0), 2.0, 2),
        softened(8, 1, Fill::Uniform(-900.0, -300.0), 2.0, 2),
        Case { benchmark: true, ..loss(256, 1000, unit, 4.0, 256.0) },
    ]
}

/// A row's logits less the largest over T, the sum of their exponentials, and the relative error of
/// that sum as a device computes it, in roundings.
struct Row {
    u: Vec<f64>,
    sum: f64,
    roundings: f64,
}

fn reference_row(logits: &Array, row: usize, temperature: f32) -> Row {
    let classes = logits.shape.c;
    let z = &logits.data[row * classes..(row + 1) * classes];
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let u: Vec<f64> = z.iter().map(|z| (z - largest) / f64::from(temperature)).collect();
    let sum: f64 = u.iter().map(|u| u.exp()).sum();
    let of_exponentials: f64 = u.iter().map(|&u| u.exp() / sum * exp_roundings(u)).sum();
    Row { u, sum, roundings: of_exponentials + sum_roundings(classes) }
}

/// Relative error of exp(u) in roundings: WGSL grants 3 + 2·|u| units in the last place, which are two
/// roundings each; the difference and the quotient that u is may be six roundings off.
fn exp_roundings(u: f64) -> f64 {
    6.0 + 10.0 * u.abs()
}

/// As [`Expected::sums`].
fn sum_roundings(terms: usize) -> f64 {
    4.0 + 2.0 * (terms as f64).sqrt()
}

fn row_of(array: &Array, row: usize) -> &[f64] {
    &array.data[row * array.shape.c..(row + 1) * array.shape.c]
}

/// The loss and the statistics.
fn reference(logits: &Array, targets: &Array, options: Distillation) -> Vec<Expected> {
    let Shape { n, c: classes, .. } = logits.shape;
    let (mut total, mut magnitude, mut roundings) = (0.0, 0.0, 0.0);
    for row in 0..n {
        let Row { u, sum, roundings: of_sum } = reference_row(logits, row, options.temperature);
        let log_sum = sum.ln();
        let mut of_row = 0.0;
        for (&p, u) in row_of(targets, row).iter().zip(u).filter(|(p, _)| **p > 0.0) {
            total += p * (p.ln() - u + log_sum);
            // WGSL grants log 2⁻²¹ = 8 roundings of one near one, 3 units in the last place
            // elsewhere; the summands are rounded a few times on their way.
            let logs = 8.0 + 6.0 * p.ln().abs() + 8.0 + 6.0 * log_sum + of_sum;
            let summands = p.ln().abs() + u.abs() + log_sum;
            roundings += p * (logs + 6.0 * u.abs() + 3.0 * summands);
            of_row += p * summands;
        }
        roundings += sum_roundings(classes) * of_row;
        magnitude += of_row;
    }
    roundings += (sum_roundings(n) + 4.0) * magnitude;
    let scale = f64::from(options.temperature).powi(2) / f64::from(options.divisor);
    let (loss, allowance) = (total * scale, EPSILON * roundings * scale);
    vec![
        Expected::within(Array::new(Shape::vector(1), vec![loss]), vec![allowance]),
        Expected::within(
            Array::new(Shape::vector(4), vec![loss, 0.0, 0.0, n as f64]),
            vec![allowance, 0.0, 0.0, 0.0],
        ),
    ]
}

fn reference_gradient(
    logits: &Array,
    targets: &Array,
    options: Distillation,
    d_loss: f64,
) -> Expected {
    let Shape { n, c: classes, .. } = logits.shape;
    let scale = f64::from(options.temperature) / f64::from(options.divisor) * d_loss;
    let (mut d_logits, mut allowance) = (Vec::new(), Vec::new());
    for row in 0..n {
        let Row { u, sum, roundings } = reference_row(logits, row, options.temperature);
        let p = row_of(targets, row);
        let total: f64 = p.iter().sum();
        for (&p, u) in p.iter().zip(u) {
            let q = u.exp() / sum * total;
            let d = (q - p) * scale;
            let of_q = q * (exp_roundings(u) + roundings + 6.0 + sum_roundings(classes));
            d_logits.push(d);
            let of_factors = (of_q + p) * scale.abs() + 6.0 * d.abs();
            allowance.push(EPSILON * of_factors + f64::from(f32::MIN_POSITIVE));
        }
    }
    Expected::within(Array::new(logits.shape, d_logits), allowance)
}

fn reference_softened(teachers: &[Array], temperature: f32) -> Expected {
    let shape = teachers[0].shape;
    let mut targets = Array::zeros(shape);
    let mut allowance = vec![f64::from(f32::MIN_POSITIVE); targets.data.len()];
    for logits in teachers {
        for row in 0..shape.n {
            let Row { u, sum, roundings } = reference_row(logits, row, temperature);
            for (class, u) in u.into_iter().enumerate() {
                let at = row * shape.c + class;
                let p = u.exp() / sum / teachers.len() as f64;
                targets.data[at] += p;
                // The quotient, the share, and each sum of the teachers after.
                let of_sums = 7.0 + teachers.len() as f64;
                allowance[at] += EPSILON * p * (exp_roundings(u) + roundings + of_sums);
            }
        }
    }
    Expected::within(targets, allowance)
}
