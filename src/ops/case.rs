//! What a reference computes on, and how closely a device must follow it.
//!
//! A [`Case`] is one operation at one set of sizes: how to run it on a device, the same in f64, and
//! its gradients in f64. The tests, `wgrad verify` and `wgrad bench` all run over the cases, so an
//! operation cannot be added without being checked and measured. [`super::Op::cases`] adds each case
//! that has activations again with those stored in f16.

use std::fmt;

use half::f16;

use crate::autograd::{Tape, Var};
use crate::gpu::{Gpu, Plan};
use crate::tensor::{Dtype, Shape};
use crate::{Result, Tensor};

/// Numbers on the host, in f64, channels last, without padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The sizes.
    pub shape: Shape,
    /// One number for each element, channels fastest.
    pub data: Vec<f64>,
}

impl Array {
    /// All zeros.
    pub fn zeros(shape: Shape) -> Self {
        Self { shape, data: vec![0.0; shape.len()] }
    }

    /// An array of these numbers.
    ///
    /// # Panics
    /// If there is not one number for each element.
    pub fn new(shape: Shape, data: Vec<f64>) -> Self {
        assert_eq!(data.len(), shape.len(), "an array {shape} of {} numbers", data.len());
        Self { shape, data }
    }

    /// Index of an element.
    pub fn at(&self, n: usize, h: usize, w: usize, c: usize) -> usize {
        ((n * self.shape.h + h) * self.shape.w + w) * self.shape.c + c
    }

    /// The same array with every element changed.
    pub fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        Self::new(self.shape, self.data.iter().map(|&value| change(value)).collect())
    }

    /// The same array with every element rounded to f16.
    pub fn to_half(&self) -> Self {
        self.map(|value| f16::from_f64(value).to_f64())
    }

    /// Numbers rounded to f32, as a device gets them.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&value| value as f32).collect()
    }
}

/// What a device should compute, and how far from it rounding may take it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The exact numbers (to f64).
    pub values: Array,
    /// For each element, the largest error that f32 arithmetic explains.
    pub allowance: Vec<f64>,
    /// The same for kernels that go by another formula.
    pub looser: Vec<Looser>,
    /// For each element, how far it moves if every activation that is stored on the way to it moves
    /// by its own size; empty where there is none.
    pub intermediates: Vec<f64>,
}

/// What kernels that add up other, larger numbers may be off by.
#[derive(Clone, Debug)]
pub struct Looser {
    /// The pass whose choice decides.
    pub pass: &'static str,
    /// What the names of the kernels begin with.
    pub kernels: &'static str,
    /// For each element, the largest error that f32 arithmetic explains.
    pub allowance: Vec<f64>,
}

/// Unit roundoff of f32.
pub const EPSILON: f64 = f32::EPSILON as f64 / 2.0;
/// Unit roundoff of f16.
pub const HALF_EPSILON: f64 = 1.0 / 2048.0;

impl Expected {
    /// Results that may be off by `allowance`, element by element.
    pub fn within(values: Array, allowance: Vec<f64>) -> Self {
        Self { values, allowance, looser: Vec::new(), intermediates: Vec::new() }
    }

    /// Results that f32 arithmetic gets exactly right, such as a maximum.
    pub fn exact(values: Array) -> Self {
        let allowance = vec![0.0; values.data.len()];
        Self::within(values, allowance)
    }

    /// Results of sums of `terms` products. `magnitudes` holds Σ|term| of each element.
    ///
    /// The rounding errors of a sum of k terms are at most about k·ε·Σ|term|; they behave like a
    /// random walk, so what is allowed grows with √k: 4 + 2√k roundings of the whole sum.
    pub fn sums(values: Array, magnitudes: &[f64], terms: usize) -> Self {
        Self::within(values, Self::allowances(magnitudes, terms))
    }

    /// The allowances of [`Expected::sums`].
    pub fn allowances(magnitudes: &[f64], terms: usize) -> Vec<f64> {
        let roundings = 4.0 + 2.0 * (terms as f64).sqrt();
        // Below the smallest normal number devices may flush to zero.
        let allow =
            |magnitude: &f64| roundings * EPSILON * magnitude + f64::from(f32::MIN_POSITIVE);
        magnitudes.iter().map(allow).collect()
    }

    /// The same results, of which some kernels may be further off.
    pub fn or_by(mut self, looser: Looser) -> Self {
        self.looser.push(looser);
        self
    }

    /// The same results, on the way to which activations are stored; see
    /// [`Expected::intermediates`].
    pub fn through(mut self, intermediates: Vec<f64>) -> Self {
        self.intermediates = intermediates;
        self
    }

    /// What may be expected where activations on the way are stored in f16.
    pub fn through_half(mut self) -> Self {
        let intermediates = std::mem::take(&mut self.intermediates);
        for allowance in self.allowances_mut() {
            for (allowance, moved) in allowance.iter_mut().zip(&intermediates) {
                *allowance += HALF_EPSILON * moved;
            }
        }
        self
    }

    /// What may be expected if the results are stored in f16: rounded once more, and perhaps flushed
    /// to zero below the smallest normal number.
    pub fn stored_in_half(&self) -> Self {
        let mut stored = self.clone();
        for allowance in stored.allowances_mut() {
            for (allowance, value) in allowance.iter_mut().zip(&self.values.data) {
                let largest = value.abs() + *allowance;
                let share = if largest < f16::MIN_POSITIVE.to_f64() { 1.0 } else { HALF_EPSILON };
                *allowance += share * largest;
            }
        }
        stored
    }

    /// Every element's allowances, those of all kernels.
    pub fn allowances_mut(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        let looser = self.looser.iter_mut().map(|looser| &mut looser.allowance);
        std::iter::once(&mut self.allowance).chain(looser)
    }

    /// What is allowed if these kernels (pass, name) were chosen.
    pub fn allowance_of(&self, kernels: &[(&'static str, &'static str)]) -> &[f64] {
        let applies = |looser: &&Looser| {
            let chosen = kernels.iter().find(|(pass, _)| *pass == looser.pass);
            chosen.is_some_and(|(_, name)| name.starts_with(looser.kernels))
        };
        self.looser.iter().find(applies).map_or(&self.allowance, |looser| &looser.allowance)
    }

    /// Results of a fixed number of operations on numbers of the size of the result.
    pub fn rounded(values: Array, roundings: f64) -> Self {
        let allow = |value: &f64| roundings * EPSILON * value.abs() + f64::from(f32::MIN_POSITIVE);
        let allowance = values.data.iter().map(allow).collect();
        Self::within(values, allowance)
    }
}

/// How an input of a case is filled.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Evenly between the two bounds.
    Uniform(f64, f64),
    /// Multiples of a quarter between -2 and 2: exact in f32, and many ties.
    Ties,
    /// Evenly in −1…1 for the first so many of the third index, zero beyond: a convolution's weight
    /// whose input channels are padded.
    Channels(usize),
    /// Uniform in −1…1, times powers of ten from 1e-15 to 1e15 that vary by channel; from 1e-3 to
    /// 1e3 in f16.
    Extremes,
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(low, high) => write!(f, "in {low} to {high}"),
            Self::Ties => f.write_str("ties"),
            Self::Channels(channels) => write!(f, "of {channels} channels"),
            Self::Extremes => f.write_str("extremes"),
        }
    }
}

/// A part of a case's name: what is given for `what`, if anything.
pub(super) fn given(what: &str, value: Option<impl fmt::Display>) -> String {
    value.map_or_else(String::new, |value| format!(" {what} {value}"))
}

/// How an input is stored in mixed precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In f32 all the same: vectors of parameters, statistics, what the loss is made of.
    Single,
    /// In f16, and so is its gradient.
    Activation,
    /// In f16, and its gradient in f32.
    Weight,
}

/// An input of a case.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Its sizes.
    pub shape: Shape,
    /// What it holds.
    pub fill: Fill,
    /// Whether gradients by it are checked.
    pub differentiate: bool,
    /// How it is stored in mixed precision.
    pub role: Role,
}

impl Input {
    /// An input in −1…1 to differentiate by.
    pub fn variable(shape: Shape) -> Self {
        let fill = Fill::Uniform(-1.0, 1.0);
        Self { shape, fill, differentiate: true, role: Role::Single }
    }

    /// An input that is not differentiated by.
    pub fn constant(shape: Shape, fill: Fill) -> Self {
        Self { shape, fill, differentiate: false, role: Role::Single }
    }

    /// The input filled otherwise.
    pub fn filled(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    /// An input that is an activation.
    pub fn activation(self) -> Self {
        Self { role: Role::Activation, ..self }
    }

    /// An input that is the weight of a convolution.
    pub fn weight(self) -> Self {
        Self { role: Role::Weight, ..self }
    }

    /// How it is stored in a case of this type.
    fn dtype(&self, case: Dtype) -> Dtype {
        if self.role == Role::Single { Dtype::F32 } else { case }
    }
}

type Run = dyn Fn(&Tape, &[Var]) -> Result<Vec<Var>>;
type Reference = dyn Fn(&[Array]) -> Vec<Expected>;
type Gradient = dyn Fn(&[Array], &Array) -> Vec<Option<Expected>>;

/// One operation at one set of sizes.
pub struct Case {
    /// The sizes and options, for people to read.
    pub name: String,
    /// What goes in.
    pub inputs: Vec<Input>,
    /// The operation on a device; gradients are taken of the first output.
    pub run: Box<Run>,
    /// The outputs in f64.
    pub reference: Box<Reference>,
    /// The gradients by each input in f64, given the first output's; none for an operation that is
    /// not differentiated.
    pub gradient: Option<Box<Gradient>>,
    /// Passes whose kernel the operation chooses, as [`Gpu::choose_kernel`] names them; every
    /// choice is checked.
    pub passes: &'static [&'static str],
    /// Multiplications and additions of the forward pass; 0 if memory is what it costs.
    pub flops: f64,
    /// Whether the case is there to be timed: large, and checked by its smaller siblings.
    pub benchmark: bool,
    /// Whether it is to be timed on GPUs alone: so large that nobody would wait for a processor.
    pub for_gpus: bool,
    /// How activations are stored.
    pub dtype: Dtype,
}

impl Case {
    /// A case of an operation that chooses no kernel.
    pub fn new(
        name: impl Into<String>,
        inputs: Vec<Input>,
        run: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + 'static,
        reference: impl Fn(&[Array]) -> Vec<Expected> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            inputs,
            run: Box::new(run),
            reference: Box::new(reference),
            gradient: None,
            passes: &[],
            flops: 0.0,
            benchmark: false,
            for_gpus: false,
            dtype: Dtype::F32,
        }
    }

    /// The case with activations stored in f16.
    pub fn in_half(mut self) -> Self {
        self.dtype = Dtype::F16;
        self.name += " f16";
        self
    }

    /// Whether any input is stored otherwise in mixed precision.
    pub fn has_activations(&self) -> bool {
        self.inputs.iter().any(|input| input.role != Role::Single)
    }

    /// Whether the device can run the case at all.
    pub fn supported(&self, gpu: &Gpu) -> bool {
        self.dtype == Dtype::F32 || gpu.has_f16()
    }

    /// The case with gradients.
    pub fn gradient(
        mut self,
        gradient: impl Fn(&[Array], &Array) -> Vec<Option<Expected>> + 'static,
    ) -> Self {
        self.gradient = Some(Box::new(gradient));
        self
    }

    /// The inputs' numbers, the same every time, each exact as it is stored.
    pub fn fill(&self) -> Vec<Array> {
        let fill = |(input, seed): (&Input, u64)| match (input.dtype(self.dtype), input.fill) {
            (Dtype::F32, fill) => filled(input.shape, fill, seed),
            (Dtype::F16, Fill::Extremes) => {
                let c = input.shape.c;
                let unit = filled(input.shape, Fill::Uniform(-1.0, 1.0), seed);
                let power = |at: usize| 10f64.powi((at % c) as i32 % 7 - 3);
                let data = unit.data.iter().enumerate().map(|(at, value)| value * power(at));
                Array::new(input.shape, data.collect()).to_half()
            }
            (Dtype::F16, fill) => filled(input.shape, fill, seed).to_half(),
        };
        self.inputs.iter().zip(1..).map(fill).collect()
    }

    /// The gradient by the first output that the case's gradients are checked with.
    pub fn fill_gradient(&self, shape: Shape) -> Array {
        let d_out = filled(shape, Fill::Uniform(-1.0, 1.0), 99);
        if self.dtype.is_half() { d_out.to_half() } else { d_out }
    }

    /// The inputs' numbers on the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn tensors(&self, gpu: &Gpu, arrays: &[Array]) -> Result<Vec<Tensor>> {
        let upload = |(input, array): (&Input, &Array)| {
            Tensor::from_host_as(gpu, array.shape, &array.to_f32(), input.dtype(self.dtype))
        };
        self.inputs.iter().zip(arrays).map(upload).collect()
    }

    /// Puts the inputs on a tape, to differentiate by those that `wanted` says.
    pub fn attach(
        &self,
        tape: &Tape,
        tensors: &[Tensor],
        wanted: impl Fn(usize) -> bool,
    ) -> Vec<Var> {
        let attach = |(index, tensor): (usize, &Tensor)| {
            let input = self.inputs[index];
            let tensor = tensor.clone();
            match wanted(index) && input.differentiate {
                false => tape.constant(tensor),
                true if self.dtype.is_half() && input.role == Role::Weight => {
                    let gradient = Tensor::empty(tape.gpu(), input.shape);
                    tape.leaf_into(tensor, gradient, false)
                }
                true => tape.leaf(tensor),
            }
        };
        tensors.iter().enumerate().map(attach).collect()
    }

    /// What running the operation, forward and backward, takes. Nothing is run.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn plan(&self, gpu: &Gpu) -> Result<Plan> {
        gpu.plan(|| {
            let tape = Tape::new(gpu);
            let input = |input: &Input| Tensor::empty_as(gpu, input.shape, input.dtype(self.dtype));
            let tensors: Vec<_> = self.inputs.iter().map(input).collect();
            let outputs = (self.run)(&tape, &self.attach(&tape, &tensors, |_| true))?;
            if self.gradient.is_some() {
                let output = outputs[0].value();
                let seed = Tensor::empty_as(gpu, output.shape(), output.dtype());
                tape.backward(&outputs[0], seed)?;
            }
            Ok(())
        })
    }

    /// The kernels (pass, name) that the operation chose when it last ran.
    pub fn kernels(&self, gpu: &Gpu) -> Vec<(&'static str, &'static str)> {
        let chosen = |&pass| Some((pass, gpu.chosen_kernel(pass)?));
        self.passes.iter().filter_map(chosen).collect()
    }

    /// Runs the operation forward, and backward from `d_out`; returns the outputs and the gradient
    /// by each input that is differentiated by.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn execute(
        &self,
        gpu: &Gpu,
        arrays: &[Array],
        d_out: Option<&Array>,
    ) -> Result<(Vec<Tensor>, Vec<Option<Tensor>>)> {
        let tape = Tape::new(gpu);
        let inputs = self.attach(&tape, &self.tensors(gpu, arrays)?, |_| true);
        let outputs = (self.run)(&tape, &inputs)?;
        let values: Vec<_> = outputs.iter().map(|output| output.value().clone()).collect();
        let Some(d_out) = d_out else { return Ok((values, Vec::new())) };
        let dtype = values[0].dtype();
        let seed = Tensor::from_host_as(gpu, d_out.shape, &d_out.to_f32(), dtype)?;
        let mut grads = tape.backward(&outputs[0], seed)?;
        Ok((values, inputs.iter().map(|input| grads.take(input)).collect()))
    }
}

/// An array filled reproducibly; every number is exact in f32.
pub fn filled(shape: Shape, fill: Fill, seed: u64) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ shape.len() as u64;
    let mut unit = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let number = |index: usize| {
        let value = match fill {
            Fill::Uniform(low, high) => low + (high - low) * unit(),
            Fill::Channels(channels) if index / shape.c % shape.w >= channels => 0.0,
            Fill::Channels(_) => 2.0 * unit() - 1.0,
            Fill::Ties => (unit() * 17.0).floor() / 4.0 - 2.0,
            Fill::Extremes => {
                let power = (index % shape.c) as i32 % 7 - 3;
                (2.0 * unit() - 1.0) * 10f64.powi(5 * power)
            }
        };
        f64::from(value as f32)
    };
    Array::new(shape, (0..shape.len()).map(number).collect())
}

/// The element of a result that used up most of its allowance.
#[derive(Clone, Debug)]
pub struct Worst {
    /// Error as a share of the allowance; above 1 is a failure.
    pub share: f64,
    /// Where.
    pub position: [usize; 4],
    /// What the device computed.
    pub found: f64,
    /// What it should have.
    pub expected: f64,
    /// How far off it may be.
    pub allowance: f64,
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share, position, found, expected, allowance } = self;
        write!(
            f,
            "at {position:?}: found {found:e}, expected {expected:e} ± {allowance:.1e} ({share:.2} of the allowance)"
        )
    }
}

/// Compares a device's numbers with what is expected of the kernels (pass, name) that made them.
///
/// Missing or surplus numbers, NaN and infinities where none belong count as infinitely wrong.
pub fn compare(
    found: &[f32],
    expected: &Expected,
    kernels: &[(&'static str, &'static str)],
) -> Worst {
    let (values, allowance) = (&expected.values, expected.allowance_of(kernels));
    let Shape { h, w, c, .. } = values.shape;
    let mut worst =
        Worst { share: 0.0, position: [0; 4], found: 0.0, expected: 0.0, allowance: 0.0 };
    if found.len() != values.data.len() {
        worst.share = f64::INFINITY;
        return worst;
    }
    for (index, (&found, &expected)) in found.iter().zip(&values.data).enumerate() {
        let (found, allowance) = (f64::from(found), allowance[index]);
        let error = (found - expected).abs();
        let share = match error {
            _ if found == expected => 0.0,
            _ if error.is_finite() && allowance > 0.0 => error / allowance,
            _ => f64::INFINITY,
        };
        if share > worst.share {
            let position = [index / (h * w * c), index / (w * c) % h, index / c % w, index % c];
            worst = Worst { share, position, found, expected, allowance };
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(values: &[f64]) -> Expected {
        let array = Array::new(Shape::vector(values.len()), values.to_vec());
        Expected::sums(array, &vec![1.0; values.len()], 16)
    }

    #[test]
    fn comparisons_fail_when_they_should() {
        let expected = expected(&[1.0, 2.0, 3.0]);
        assert_eq!(compare(&[1.0, 2.0, 3.0], &expected, &[]).share, 0.0);
        let close = compare(&[1.0, 2.0 + 2e-7, 3.0], &expected, &[]);
        assert!(close.share > 0.0 && close.share < 1.0, "{close}");
        let off = compare(&[1.0, 2.0, 3.0 + 1e-5], &expected, &[]);
        assert!(off.share > 1.0 && off.position == [0, 0, 0, 2], "{off}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(compare(&[1.0, bad, 3.0], &expected, &[]).share, f64::INFINITY);
        }
        assert_eq!(compare(&[1.0, 2.0], &expected, &[]).share, f64::INFINITY);
        assert_eq!(compare(&[1.0, 2.0, 3.0, 4.0], &expected, &[]).share, f64::INFINITY);
    }

    #[test]
    fn exact_results_allow_nothing() {
        let exact = Expected::exact(Array::new(Shape::vector(1), vec![1.0]));
        assert_eq!(compare(&[1.0], &exact, &[]).share, 0.0);
        assert_eq!(compare(&[1.0 + f32::EPSILON], &exact, &[]).share, f64::INFINITY);
    }

    #[test]
    fn allowances_stay_tight() {
        // A dot product of 4608 terms of size one may be off by 2e-5 of Σ|term|, not more.
        let array = Array::new(Shape::vector(1), vec![0.0]);
        assert!(Expected::sums(array.clone(), &[1.0], 4608).allowance[0] < 2e-5);
        // Half a unit in the last place of f16, and no more than a flush to zero takes.
        for (value, allowance) in [(0.0, 0.0), (1.0, 2f64.powi(-11)), (1e-5, 1e-5)] {
            let stored = Expected::exact(array.map(|_| value)).stored_in_half();
            assert_eq!(stored.allowance[0], allowance);
        }
    }
}
