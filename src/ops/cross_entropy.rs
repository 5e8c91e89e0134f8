//! Softmax cross-entropy with label smoothing s over K classes, each row's target shared by two
//! labels a and b, classes weighted by w and rows by v; summed over rows and divided by a number the
//! caller chooses:
//!
//! loss = Σ_rows v · Σ_c w_c·t_c·(lse(z) − z_c), over divisor, with
//! t = (1 − s)·(λ·[c = a] + (1 − λ)·[c = b]) + s / K and lse(z) = max(z) + log Σ exp(z − max(z)).
//!
//! d_z = v·(softmax(z)·Σ_k w_k·t_k − w·t) · d_loss / divisor.

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

/// What a row is to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Target {
    /// The class that hits are counted by: of the two, the one with the larger share.
    pub label: u32,
    /// The class that the rest of the target belongs to; `label` where there is one class.
    pub other: u32,
    /// The share λ of the target that is `label`'s, 0 to 1.
    pub share: f32,
    /// What the row's loss is multiplied by.
    pub weight: f32,
}

impl From<u32> for Target {
    fn from(label: u32) -> Self {
        Self { label, other: label, share: 1.0, weight: 1.0 }
    }
}

/// Targets on the device, as [`cross_entropy`] takes them.
#[derive(Clone)]
pub struct Targets {
    rows: Slice,
    weights: Option<ClassWeights>,
}

impl Targets {
    /// One for each row.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu, targets: &[Target]) -> Result<Self> {
        let rows = gpu.lease(size_of_val(targets) as u64);
        gpu.upload(&rows, bytemuck::cast_slice(targets))?;
        Ok(Self { rows, weights: None })
    }

    /// The targets on the device.
    pub fn memory(&self) -> &Slice {
        &self.rows
    }

    /// The same with weights of the classes; without, each is 1.
    pub fn weighted(self, weights: Option<&ClassWeights>) -> Self {
        Self { weights: weights.cloned(), ..self }
    }
}

/// The weight of each class, on the device.
#[derive(Clone)]
pub struct ClassWeights {
    values: Tensor,
    mean: f32,
}

impl ClassWeights {
    /// One for each class, at least 0.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu, weights: &[f32]) -> Result<Self> {
        Ok(Self {
            values: Tensor::from_host(gpu, Shape::vector(weights.len()), weights)?,
            mean: mean(weights) as f32,
        })
    }
}

fn mean(weights: &[f32]) -> f64 {
    weights.iter().copied().map(f64::from).sum::<f64>() / weights.len() as f64
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
    /// Whether classes have weights of their own, and their mean.
    weighted: u32,
    mean_weight: f32,
    padding: [u32; 2],
}

impl Params {
    fn new(
        logits: Shape,
        weights: Option<&ClassWeights>,
        options: CrossEntropy,
        accumulate: bool,
    ) -> Self {
        Self {
            rows: logits.n as u32,
            classes: logits.c as u32,
            c4: logits.c4() as u32,
            smoothing: options.label_smoothing,
            scale: 1.0 / options.divisor,
            lowest: f32::NEG_INFINITY,
            nan: f32::NAN,
            accumulate: accumulate.into(),
            weighted: weights.is_some().into(),
            mean_weight: weights.map_or(1.0, |weights| weights.mean),
            padding: [0; 2],
        }
    }
}

/// Targets of one class each, on the device, as [`cross_entropy`] takes them.
///
/// # Errors
/// What the device reported.
pub fn labels(gpu: &Gpu, classes: &[u32]) -> Result<Targets> {
    Targets::new(gpu, &classes.iter().copied().map(Target::from).collect::<Vec<_>>())
}

/// The loss of `logits`, a matrix of rows × classes, against one target a row. NaN among the
/// logits of a row, or a label that is no class, makes the loss NaN and the row wrong.
///
/// With a divisor of Σ w_label it is PyTorch's `cross_entropy(z, labels, w)`; with the number of rows
/// it is that of class probabilities.
///
/// # Errors
/// [`Error::Shape`] if the logits are no matrix, or there are fewer targets than rows or other than
/// one weight a class.
pub fn cross_entropy(
    tape: &Tape,
    logits: &Var,
    targets: &Targets,
    options: CrossEntropy,
) -> Result<CrossEntropyOutput> {
    let (gpu, shape) = (tape.gpu(), logits.shape());
    if shape != Shape::matrix(shape.n, shape.c) || shape.is_empty() {
        return Err(Error::shape("cross_entropy", format!("logits {shape} are no matrix")));
    }
    let Targets { rows: targets, weights } = targets;
    if targets.bytes < (shape.n * size_of::<Target>()) as u64 {
        let count = targets.bytes as usize / size_of::<Target>();
        let what = format!("{count} targets for logits {shape}");
        return Err(Error::shape("cross_entropy", what));
    }
    if let Some(weights) = weights
        && weights.values.shape().c != shape.c
    {
        let what = format!("{} class weights for logits {shape}", weights.values.shape().c);
        return Err(Error::shape("cross_entropy", what));
    }
    let params = Params::new(shape, weights.as_ref(), options, false);
    let rows = gpu.lease(shape.n as u64 * 16);
    gpu.run(
        Kernel::new(&FORWARD),
        &params,
        &[logits.value().memory(), targets, class_weights(weights, targets), &rows],
        gpu.groups(shape.n),
    );
    let loss = Tensor::empty(gpu, Shape::vector(1));
    let stats = Tensor::empty(gpu, Shape::vector(4));
    gpu.run(Kernel::new(&REDUCE), &params, &[&rows, loss.memory(), stats.memory()], [1, 1, 1]);
    let loss = tape.output("cross_entropy", loss, &[logits], || CrossEntropyBackward {
        slot: logits.slot(),
        logits: logits.value().clone(),
        targets: targets.clone(),
        weights: weights.clone(),
        rows,
        options,
    });
    Ok(CrossEntropyOutput { loss, stats })
}

/// What stands where the shaders expect weights; anything, where there are none.
fn class_weights<'a>(weights: &'a Option<ClassWeights>, targets: &'a Slice) -> &'a Slice {
    weights.as_ref().map_or(targets, |weights| weights.values.memory())
}

struct CrossEntropyBackward {
    slot: Slot,
    logits: Tensor,
    targets: Slice,
    weights: Option<ClassWeights>,
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
            &Params::new(shape, self.weights.as_ref(), self.options, d_logits.accumulate),
            &[
                self.logits.memory(),
                &self.targets,
                class_weights(&self.weights, &self.targets),
                &self.rows,
                d_loss.memory(),
                d_logits.tensor.memory(),
            ],
            gpu.groups(shape.vec4s().div_ceil(64)),
        );
        Ok(())
    }
}

/// Targets and class weights of a case.
#[derive(Clone, Copy)]
enum Soft {
    /// One label a row, all alike.
    No,
    /// One label a row; classes and rows weigh differently.
    Weighted,
    /// Two labels a row, sometimes the same.
    Mixed,
    /// Both.
    MixedWeighted,
}

impl Soft {
    fn targets(self, rows: usize, classes: usize) -> Vec<Target> {
        let target = |row: usize| {
            let label = ((row * 7 + 3) % classes) as u32;
            let plain = Target::from(label);
            let weight = if matches!(self, Self::No | Self::Mixed) { 1.0 } else { 0.75 };
            match self {
                Self::No => plain,
                Self::Weighted => Target { weight, ..plain },
                Self::Mixed | Self::MixedWeighted => {
                    let other = ((row * 5 + 1) % classes) as u32;
                    let share = 0.5 + (row * 3 % 17) as f32 / 32.0;
                    Target { other, share, weight, ..plain }
                }
            }
        };
        (0..rows).map(target).collect()
    }

    fn weights(self, classes: usize) -> Option<Vec<f32>> {
        let weights = || (0..classes).map(|class| 0.25 + (class * 11 % 13) as f32 / 8.0).collect();
        matches!(self, Self::Weighted | Self::MixedWeighted).then(weights)
    }
}

fn cases() -> Vec<Case> {
    let case = |rows: usize, classes: usize, fill: Fill, options: CrossEntropy, soft: Soft| {
        let targets = soft.targets(rows, classes);
        let weights = soft.weights(classes);
        let for_run = (targets.clone(), weights.clone());
        let weights = weights.unwrap_or_else(|| vec![1.0; classes]);
        let for_reference = (targets.clone(), weights.clone());
        let CrossEntropy { label_smoothing, divisor } = options;
        let kind = match soft {
            Soft::No => "",
            Soft::Weighted => " weighted",
            Soft::Mixed => " mixed",
            Soft::MixedWeighted => " mixed weighted",
        };
        Case::new(
            format!(
                "{rows} rows {classes} classes smoothing {label_smoothing} over {divisor} {fill}\
                 {kind}"
            ),
            vec![Input::variable(Shape::matrix(rows, classes)).filled(fill)],
            move |tape, inputs| {
                let (targets, weights) = &for_run;
                let weights =
                    weights.as_ref().map(|weights| ClassWeights::new(tape.gpu(), weights));
                let weights = weights.transpose()?;
                let targets = Targets::new(tape.gpu(), targets)?.weighted(weights.as_ref());
                let output = cross_entropy(tape, &inputs[0], &targets, options)?;
                Ok(vec![output.loss, tape.constant(output.stats)])
            },
            move |inputs| reference(&inputs[0], &for_reference.0, &for_reference.1, options),
        )
        .gradient(move |inputs, d_loss| {
            let d_loss = d_loss.data[0];
            vec![Some(reference_gradient(&inputs[0], &targets, &weights, options, d_loss))]
        })
    };
    let plain = |rows: usize| CrossEntropy { label_smoothing: 0.0, divisor: rows as f32 };
    let smooth = |divisor: f32| CrossEntropy { label_smoothing: 0.1, divisor };
    let unit = Fill::Uniform(-1.0, 1.0);
    let wide = Fill::Uniform(-8.0, 8.0);
    vec![
        case(1, 2, unit, plain(1), Soft::No),
        case(16, 10, wide, plain(16), Soft::No),
        case(7, 10, Fill::Ties, smooth(32.0), Soft::No),
        case(130, 5, Fill::Ties, plain(130), Soft::No),
        case(3, 1000, Fill::Uniform(-20.0, 20.0), smooth(3.0), Soft::No),
        case(5, 257, Fill::Uniform(-1e4, 1e4), plain(5), Soft::No),
        // Where nothing but the largest logit itself will do as such: far apart, and far below zero.
        case(12, 301, Fill::Extremes, plain(12), Soft::No),
        case(8, 7, Fill::Uniform(-900.0, -300.0), plain(8), Soft::No),
        case(9, 7, wide, plain(9), Soft::Weighted),
        case(6, 300, wide, smooth(5.0), Soft::Weighted),
        case(19, 11, wide, plain(19), Soft::Mixed),
        case(8, 2, wide, smooth(8.0), Soft::Mixed),
        case(70, 261, Fill::Uniform(-20.0, 20.0), smooth(70.0), Soft::MixedWeighted),
        Case { benchmark: true, ..case(256, 1000, unit, plain(256), Soft::No) },
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

/// The two classes of a target, and the share of each.
fn parts(target: &Target) -> [(usize, f64); 2] {
    let share = f64::from(target.share);
    [(target.label as usize, share), (target.other as usize, 1.0 - share)]
}

/// The loss and the statistics.
fn reference(
    logits: &Array,
    targets: &[Target],
    weights: &[f32],
    options: CrossEntropy,
) -> Vec<Expected> {
    let Shape { n, c: classes, .. } = logits.shape;
    let smoothing = f64::from(options.label_smoothing);
    let w = |class: usize| f64::from(weights[class]);
    let (mut total, mut magnitude, mut roundings) = (0.0, 0.0, 0.0);
    let (mut top1, mut top5) = (0.0, 0.0);
    for (row, target) in targets.iter().enumerate() {
        let Row { x, sum, roundings: of_sum } = reference_row(logits, row);
        let even = smoothing / classes as f64;
        let weight = f64::from(target.weight);
        // Σ w·t, and −Σ w·t·x: that of the labels, and that of the even spread.
        let of_labels: f64 = parts(target).iter().map(|&(c, share)| share * w(c)).sum();
        let of_all = mean(weights) * smoothing;
        let whole = (1.0 - smoothing) * of_labels + of_all;
        let at_labels: f64 = parts(target).iter().map(|&(c, share)| -share * w(c) * x[c]).sum();
        let at_all: f64 = x.iter().enumerate().map(|(c, x)| -even * w(c) * x).sum();
        let loss = weight * (whole * sum.ln() + (1.0 - smoothing) * at_labels + at_all);
        total += loss;
        magnitude += loss.abs();
        // WGSL grants log 2⁻²¹ = 8 roundings of one near one, 3 units in the last place elsewhere;
        // each of the summands is rounded a few times on its way, most of them by weights.
        let of_log = of_sum + 8.0 + 6.0 * sum.ln();
        roundings += weight * whole * (of_log + 6.0 * sum.ln());
        roundings += weight * 6.0 * at_labels.abs();
        roundings += weight * (6.0 + sum_roundings(classes)) * at_all;
        let x_label = x[target.label as usize];
        let ahead = |&other: &usize| {
            x[other] > x_label || (x[other] == x_label && other < target.label as usize)
        };
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
    targets: &[Target],
    weights: &[f32],
    options: CrossEntropy,
    d_loss: f64,
) -> Expected {
    let classes = logits.shape.c;
    let (smoothing, divisor) = (f64::from(options.label_smoothing), f64::from(options.divisor));
    let (mut d_logits, mut allowance) = (Vec::new(), Vec::new());
    for (row, target) in targets.iter().enumerate() {
        let Row { x, sum, roundings } = reference_row(logits, row);
        let mut goal = vec![smoothing / classes as f64; classes];
        for (class, share) in parts(target) {
            goal[class] += (1.0 - smoothing) * share;
        }
        for (goal, &weight) in goal.iter_mut().zip(weights) {
            *goal *= f64::from(weight);
        }
        let whole: f64 = goal.iter().sum();
        let factor = f64::from(target.weight) * d_loss / divisor;
        for (&x, goal) in x.iter().zip(goal) {
            let softmax = x.exp() / sum;
            let d = (softmax * whole - goal) * factor;
            // The division may be off by 2.5 units in the last place; the target, its sum and the
            // products take a few roundings.
            let of_softmax = softmax * whole * (exp_roundings(x) + roundings + 11.0);
            let of_factors = (of_softmax + 8.0 * goal) * factor.abs();
            d_logits.push(d);
            allowance.push(EPSILON * (of_factors + 6.0 * d.abs()) + f64::from(f32::MIN_POSITIVE));
        }
    }
    Expected::within(Array::new(logits.shape, d_logits), allowance)
}
