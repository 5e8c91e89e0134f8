//! What a reference computes on, and how closely a device must follow it.
//!
//! A [`Case`] is one operation at one set of sizes: how to run it on a device, the same in f64, and
//! its gradients in f64. The tests, `wgrad verify` and `wgrad bench` all run over the cases, so an
//! operation cannot be added without being checked and measured.

use crate::autograd::{Tape, Var};
use crate::gpu::{Gpu, Plan};
use crate::tensor::Shape;
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

impl Expected {
    /// Results that may be off by `allowance`, element by element.
    pub fn within(values: Array, allowance: Vec<f64>) -> Self {
        Self { values, allowance, looser: Vec::new() }
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
    /// Uniform in −1…1, times powers of ten from 1e-15 to 1e15 that vary by channel.
    Extremes,
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
}

impl Input {
    /// An input in −1…1 to differentiate by.
    pub fn variable(shape: Shape) -> Self {
        Self { shape, fill: Fill::Uniform(-1.0, 1.0), differentiate: true }
    }

    /// An input that is not differentiated by.
    pub fn constant(shape: Shape, fill: Fill) -> Self {
        Self { shape, fill, differentiate: false }
    }

    /// The input filled otherwise.
    pub fn filled(self, fill: Fill) -> Self {
        Self { fill, ..self }
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
        }
    }

    /// The case with gradients.
    pub fn gradient(
        mut self,
        gradient: impl Fn(&[Array], &Array) -> Vec<Option<Expected>> + 'static,
    ) -> Self {
        self.gradient = Some(Box::new(gradient));
        self
    }

    /// The inputs' numbers, the same every time, each exact in f32.
    pub fn fill(&self) -> Vec<Array> {
        self.inputs
            .iter()
            .zip(1..)
            .map(|(input, seed)| filled(input.shape, input.fill, seed))
            .collect()
    }

    /// Puts the inputs on a tape.
    ///
    /// # Errors
    /// What the device reported.
    pub fn upload(&self, tape: &Tape, arrays: &[Array]) -> Result<Vec<Var>> {
        let upload = |(input, array): (&Input, &Array)| {
            let tensor = Tensor::from_host(tape.gpu(), array.shape, &array.to_f32())?;
            Ok(if input.differentiate { tape.leaf(tensor) } else { tape.constant(tensor) })
        };
        self.inputs.iter().zip(arrays).map(upload).collect()
    }

    /// What running the operation, forward and backward, takes. Nothing is run.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn plan(&self, gpu: &Gpu) -> Result<Plan> {
        gpu.plan(|| {
            let tape = Tape::new(gpu);
            let input = |input: &Input| {
                let value = Tensor::empty(gpu, input.shape);
                if input.differentiate { tape.leaf(value) } else { tape.constant(value) }
            };
            let inputs: Vec<_> = self.inputs.iter().map(input).collect();
            let outputs = (self.run)(&tape, &inputs)?;
            if self.gradient.is_some() {
                let seed = Tensor::empty(gpu, outputs[0].shape());
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
        let inputs = self.upload(&tape, arrays)?;
        let outputs = (self.run)(&tape, &inputs)?;
        let values = outputs.iter().map(|output| output.value().clone()).collect();
        let Some(d_out) = d_out else { return Ok((values, Vec::new())) };
        let seed = Tensor::from_host(gpu, d_out.shape, &d_out.to_f32())?;
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

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
        assert!(Expected::sums(array, &[1.0], 4608).allowance[0] < 2e-5);
    }
}
