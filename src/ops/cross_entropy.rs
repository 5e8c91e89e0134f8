//! Softmax cross-entropy with label smoothing s over K classes, summed over rows and divided by a
//! number the caller chooses:
//!
//! loss = Σ_rows (1 − s)·(lse(z) − z_label) + s·(lse(z) − mean(z)), over divisor,
//! with lse(z) = max(z) + log Σ exp(z − max(z)).
//!
//! d_z = (softmax(z) − target) · d_loss / divisor, with target = (1 − s)·[class = label] + s / K.

use super::Op;
use super::case::{Array, Case, EPSILON, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static FORWARD: Shader = shader!("cross_entropy_forward");
static REDUCE: Shader = shader!("cross_entropy_reduce");
static BACKWARD: Shader = shader!("cross_entropy_backward");

pub(super) const OP: Op =
    Op { name: "cross_entropy", shaders: &[&FORWARD, &REDUCE, &BACKWARD], cases };

/// Options of [`cross_entropy`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Share of each target that is spread evenly over all classes, 0 to 1.
    pub label_smoothing: f32,
    /// What the sum over rows is divided by: the rows of the whole batch, of which these may be a
    /// part, so that losses and gradients of the parts add up to the batch's mean.
    pub divisor: f32,
}

/// What [`cross_entropy`] computes.
pub struct CrossEntropyOutput {
    /// The loss, one number.
    pub loss: Var,
    /// Four numbers: the loss, rows whose label has the largest logit, rows whose label is among
    /// the five largest, rows. Of equal logits the first is taken for the larger.
    pub stats: Tensor,
}

/// Parameters of the shaders.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    classes: u32,
    c4: u32,
    smoothing: f32,
    /// One divided by the divisor.
    scale: f32,
    /// −∞ and NaN, which WGSL cannot spell.
    lowest: f32,
    nan: f32,
    /// Backward: whether to add to what `d_logits` holds.
    accumulate: u32,
}

impl Params {
    fn new(logits: Shape, options: CrossEntropy, accumulate: bool) -> Self {
        Self {
            rows: logits.n as u32,
            classes: logits.c as u32,
            c4: logits.c4() as u32,
            smoothing: options.label_smoothing,
            scale: 1.0 / options.divisor,
            lowest: f32::NEG_INFINITY,
            nan: f32::NAN,
            accumulate: accumulate.into(),
        }
    }
}

/// Class numbers on the device, as [`cross_entropy`] takes them.
///
/// # Errors
/// What the device reported.
pub fn labels(gpu: &Gpu, classes: &[u32]) -> Result<Slice> {
    let slice = gpu.lease(classes.len() as u64 * 4);
    gpu.upload(&slice, bytemuck::cast_slice(classes))?;
    Ok(slice)
}

/// The loss of `logits`, a matrix of rows × classes, against one label (u32) a row. NaN among the
/// logits of a row, or a label that is no class, makes the loss NaN and the row wrong.
///
/// # Errors
/// [`Error::Shape`] if the logits are no matrix, or there are fewer labels than rows.
pub fn cross_entropy(
    tape: &Tape,
    logits: &Var,
    labels: &Slice,
    options: CrossEntropy,
) -> Result<CrossEntropyOutput> {
    let (gpu, shape) = (tape.gpu(), logits.shape());
    if shape != Shape::matrix(shape.n, shape.c) || shape.is_empty() {
        return Err(Error::shape("cross_entropy", format!("logits {shape} are no matrix")));
    }
    if labels.bytes < shape.n as u64 * 4 {
        let what = format!("{} labels for logits {shape}", labels.bytes / 4);
        return Err(Error::shape("cross_entropy", what));
    }
    let params = Params::new(shape, options, false);
    let rows = gpu.lease(shape.n as u64 * 16);
    gpu.run(
        Kernel::new(&FORWARD),
        &params,
        &[logits.value().memory(), labels, &rows],
        gpu.groups(shape.n),
    );
    let loss = Tensor::empty(gpu, Shape::vector(1));
    let stats = Tensor::empty(gpu, Shape::vector(4));
    gpu.run(Kernel::new(&REDUCE), &params, &[&rows, loss.memory(), stats.memory()], [1, 1, 1]);
    let loss = tape.output("cross_entropy", loss, &[logits], || CrossEntropyBackward {
        slot: logits.slot(),
        logits: logits.value().clone(),
        labels: labels.clone(),
        rows,
        options,
    });
    Ok(CrossEntropyOutput { loss, stats })
}

struct CrossEntropyBackward {
    slot: Slot,
    logits: Tensor,
    labels: Slice,
    /// Of each row: the largest logit, Σ exp(logit − largest), and what the backward ignores.
    rows: Slice,
    options: CrossEntropy,
}

impl Backward for CrossEntropyBackward {
    fn backward(self: Box<Self>, d_loss: Tensor, grads: &mut Grads) -> Result<()> {
        let Some(d_logits) = grads.target(self.slot) else { return Ok(()) };
        let (gpu, shape) = (grads.gpu(), self.logits.shape());
        gpu.run(
            Kernel::new(&BACKWARD),
            &Params::new(shape, self.options, d_logits.accumulate),
            &[
                self.logits.memory(),
                &self.labels,
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
    let case = |rows: usize, classes: usize, fill: Fill, options: CrossEntropy| {
        let labels: Vec<u32> = (0..rows).map(|row| ((row * 7 + 3) % classes) as u32).collect();
        let (for_run, for_reference) = (labels.clone(), labels.clone());
        let CrossEntropy { label_smoothing, divisor } = options;
        Case::new(
            format!(
                "{rows} rows {classes} classes smoothing {label_smoothing} over {divisor} {fill:?}"
            ),
            vec![Input::variable(Shape::matrix(rows, classes)).filled(fill)],
            move |tape, inputs| {
                let labels = self::labels(tape.gpu(), &for_run)?;
                let output = cross_entropy(tape, &inputs[0], &labels, options)?;
                Ok(vec![output.loss, tape.constant(output.stats)])
            },
            move |inputs| reference(&inputs[0], &for_reference, options),
        )
        .gradient(move |inputs, d_loss| {
            vec![Some(reference_gradient(&inputs[0], &labels, options, d_loss.data[0]))]
        })
    };
    let plain = |rows: usize| CrossEntropy { label_smoothing: 0.0, divisor: rows as f32 };
    let smooth = |divisor: f32| CrossEntropy { label_smoothing: 0.1, divisor };
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        case(1, 2, unit, plain(1)),
        case(16, 10, Fill::Uniform(-8.0, 8.0), plain(16)),
        case(7, 10, Fill::Ties, smooth(32.0)),
        case(130, 5, Fill::Ties, plain(130)),
        case(3, 1000, Fill::Uniform(-20.0, 20.0), smooth(3.0)),
        case(5, 257, Fill::Uniform(-1e4, 1e4), plain(5)),
        case(4, 37, Fill::Extremes, plain(4)),
        Case { benchmark: true, ..case(256, 1000, unit, plain(256)) },
    ]
}

/// A row's logits less the largest, the sum of their exponentials, and the relative error of that
/// sum as a device computes it, in roundings.
struct Row {
    x: Vec<f64>,
    sum: f64,
    roundings: f64,
}

fn reference_row(logits: &Array, row: usize) -> Row {
    let classes = logits.shape.c;
    let z = &logits.data[row * classes..(row + 1) * classes];
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let x: Vec<f64> = z.iter().map(|z| z - largest).collect();
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    let of_exponentials: f64 = x.iter().map(|&x| x.exp() / sum * exp_roundings(x)).sum();
    Row { x, sum, roundings: of_exponentials + sum_roundings(classes) }
}

/// Relative error of exp(x) in roundings: WGSL grants 3 + 2·|x| units in the last place, which are
/// two roundings each, and the rounding of x itself moves the result by |x| roundings.
fn exp_roundings(x: f64) -> f64 {
    6.0 + 5.0 * x.abs()
}

/// As [`Expected::sums`].
fn sum_roundings(terms: usize) -> f64 {
    4.0 + 2.0 * (terms as f64).sqrt()
}

/// The loss and the statistics.
fn reference(logits: &Array, labels: &[u32], options: CrossEntropy) -> Vec<Expected> {
    let Shape { n, c: classes, .. } = logits.shape;
    let smoothing = f64::from(options.label_smoothing);
    let (mut total, mut magnitude, mut roundings) = (0.0, 0.0, 0.0);
    let (mut top1, mut top5) = (0.0, 0.0);
    for (row, &label) in labels.iter().enumerate() {
        let label = label as usize;
        let Row { x, sum, roundings: of_sum } = reference_row(logits, row);
        let mean = x.iter().sum::<f64>() / classes as f64;
        let loss = sum.ln() - (1.0 - smoothing) * x[label] - smoothing * mean;
        total += loss;
        magnitude += loss.abs();
        // WGSL grants log 2⁻²¹ = 8 roundings of one near one, 3 units in the last place elsewhere;
        // each of the three summands is rounded a few times on its way.
        roundings += of_sum + 8.0 + 6.0 * sum.ln();
        roundings += 4.0 * (sum.ln() + x[label].abs());
        roundings += (4.0 + sum_roundings(classes)) * smoothing * mean.abs();
        let ahead = |&other: &usize| x[other] > x[label] || (x[other] == x[label] && other < label);
        let ahead = (0..classes).filter(ahead).count();
        top1 += f64::from(u8::from(ahead < 1));
        top5 += f64::from(u8::from(ahead < 5));
    }
    roundings += sum_roundings(n) * magnitude;
    let divisor = f64::from(options.divisor);
    let (loss, allowance) = (total / divisor, EPSILON * roundings / divisor);
    vec![
        Expected::within(Array::new(Shape::vector(1), vec![loss]), vec![allowance]),
        Expected::within(
            Array::new(Shape::vector(4), vec![loss, top1, top5, n as f64]),
            vec![allowance, 0.0, 0.0, 0.0],
        ),
    ]
}

fn reference_gradient(
    logits: &Array,
    labels: &[u32],
    options: CrossEntropy,
    d_loss: f64,
) -> Expected {
    let classes = logits.shape.c;
    let (smoothing, divisor) = (f64::from(options.label_smoothing), f64::from(options.divisor));
    let (mut d_logits, mut allowance) = (Vec::new(), Vec::new());
    for (row, &label) in labels.iter().enumerate() {
        let Row { x, sum, roundings } = reference_row(logits, row);
        for (class, &x) in x.iter().enumerate() {
            let softmax = x.exp() / sum;
            let is_label = if class == label as usize { 1.0 } else { 0.0 };
            let target = smoothing / classes as f64 + (1.0 - smoothing) * is_label;
            let d = (softmax - target) * d_loss / divisor;
            // The division may be off by 2.5 units in the last place; the target and the three
            // products take a few roundings.
            let of_softmax = softmax * (exp_roundings(x) + roundings + 5.0);
            let of_factors = (of_softmax + 6.0 * target) * (d_loss / divisor).abs();
            d_logits.push(d);
            allowance.push(EPSILON * (of_factors + 5.0 * d.abs()) + f64::from(f32::MIN_POSITIVE));
        }
    }
    Expected::within(Array::new(logits.shape, d_logits), allowance)
}
