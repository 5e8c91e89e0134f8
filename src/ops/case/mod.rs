//! What a reference computes on, and how closely a device must follow it.
//!
//! A [`Case`] is one operation at one set of sizes: how to run it on a device, the same in f64, and
//! its gradients in f64. The tests, `wgrad verify` and `wgrad bench` all run over the cases, so an
//! operation cannot be added without being checked and measured. [`super::Op::cases`] adds each case
//! that has activations again with those stored in f16.

mod array;
mod expected;

use std::fmt;

use crate::autograd::{Tape, Var};
use crate::gpu::{Gpu, Plan};
use crate::tensor::{Dtype, Shape};
use crate::{Result, Tensor};

pub use array::{Array, Fill, filled};
pub use expected::{EPSILON, Expected, HALF_EPSILON, Looser, Worst, compare};

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

    /// What the inputs hold of gradients, for [`Case::execute_adding`]; each exact as it is stored.
    pub fn fill_held(&self) -> Vec<Array> {
        let fill = |(input, seed): (&Input, u64)| {
            let held = filled(input.shape, Fill::Uniform(-1.0, 1.0), seed);
            if self.gradient_dtype(input).is_half() { held.to_half() } else { held }
        };
        self.inputs.iter().zip(50..).map(fill).collect()
    }

    /// How the gradient by an input is stored: as an activation is, all others in f32.
    fn gradient_dtype(&self, input: &Input) -> Dtype {
        if input.role == Role::Activation { self.dtype } else { Dtype::F32 }
    }

    /// As [`Case::execute`], but the gradients are added to those that the inputs hold already.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn execute_adding(
        &self,
        gpu: &Gpu,
        arrays: &[Array],
        d_out: &Array,
        held: &[Array],
    ) -> Result<Vec<Option<Tensor>>> {
        let tape = Tape::new(gpu);
        let (mut leaves, mut sums) = (Vec::new(), Vec::new());
        for ((input, value), held) in self.inputs.iter().zip(self.tensors(gpu, arrays)?).zip(held) {
            if !input.differentiate {
                leaves.push(tape.constant(value));
                sums.push(None);
                continue;
            }
            let dtype = self.gradient_dtype(input);
            let sum = Tensor::from_host_as(gpu, held.shape, &held.to_f32(), dtype)?;
            leaves.push(tape.leaf_into(value, sum.clone(), true));
            sums.push(Some(sum));
        }
        let outputs = (self.run)(&tape, &leaves)?;
        let dtype = outputs[0].value().dtype();
        let seed = Tensor::from_host_as(gpu, d_out.shape, &d_out.to_f32(), dtype)?;
        tape.backward(&outputs[0], seed)?;
        Ok(sums)
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

/// A part of a case's name: what is given for `what`, if anything.
pub(in crate::ops) fn given(what: &str, value: Option<impl fmt::Display>) -> String {
    value.map_or_else(String::new, |value| format!(" {what} {value}"))
}
