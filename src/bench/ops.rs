//! The passes of every operation at the sizes its benchmark cases have.

use super::ceiling::Yardsticks;
use super::file::{Ceiling, Group, Row, Status};
use super::stopwatch::{Effort, Stopwatch};
use super::verified::Verified;
use crate::error::Result;
use crate::gpu::{AdapterClass, Gpu, Problem};
use crate::ops::case::Case;
use crate::ops::{OPS, Op};
use crate::tensor::{Dtype, Tensor};
use crate::{Tape, Var};

/// Bytes that the repetitions of one sample may hold at a time.
const MOST_BYTES: u64 = 512 << 20;

/// Part of an operation that is timed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    /// The gradient by one input alone; its place among the inputs.
    By(usize),
    /// All gradients.
    Backward,
}

impl Pass {
    /// The passes of a case: a matrix product's gradients are as large as itself and timed one by
    /// one.
    fn of(case: &Case) -> Vec<Self> {
        match (case.gradient.is_some(), case.passes.len()) {
            (false, _) => vec![Self::Forward],
            (true, 3) => vec![Self::Forward, Self::By(0), Self::By(1)],
            (true, _) => vec![Self::Forward, Self::Backward],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::By(0) => "backward data",
            Self::By(_) => "backward weight",
            Self::Backward => "backward",
        }
    }

    fn differentiates(self, case: &Case, input: usize) -> bool {
        let wanted = match self {
            Self::By(which) => input == which,
            Self::Forward | Self::Backward => true,
        };
        wanted && case.inputs[input].differentiate
    }
}

/// The benchmark cases of the operations with `part` in their name, as `dtype` has them, that an adapter of
/// this class finishes soon.
pub(super) fn cases(
    part: Option<&str>,
    class: AdapterClass,
    dtype: Dtype,
) -> impl Iterator<Item = (&'static Op, Case)> {
    let soon = move |case: &Case| !case.for_gpus || class != AdapterClass::Software;
    let selected = OPS.iter().filter(move |op| part.is_none_or(|part| op.name.contains(part)));
    selected.flat_map(move |op| {
        let cases: Vec<_> =
            op.cases().into_iter().filter(|case| case.benchmark && soon(case)).collect();
        // What mixed precision leaves alone is measured as it is.
        let found = cases.iter().any(|case| case.dtype == dtype);
        let wanted = move |case: &Case| case.dtype == dtype || (!found && dtype.is_half());
        cases.into_iter().filter(wanted).map(move |case| (op, case))
    })
}

/// The choices between kernels that the cases make.
pub(super) fn problems(gpu: &Gpu, part: Option<&str>) -> Result<Vec<Problem>> {
    let dtype = Dtype::of_activations(gpu);
    let plans = cases(part, gpu.class(), dtype).filter(|(_, case)| !case.passes.is_empty());
    let plans = plans.map(|(_, case)| case.plan(gpu)).collect::<Result<Vec<_>>>()?;
    gpu.trim();
    Ok(plans.into_iter().flat_map(|plan| plan.problems).collect())
}

/// A row for each pass of a case.
pub(super) fn measure(
    stopwatch: &Stopwatch<'_>,
    yardsticks: &Yardsticks<'_>,
    effort: &Effort,
    op: &'static Op,
    case: &Case,
    verified: &Verified,
) -> Vec<Row> {
    let row = |pass: Pass| Row {
        name: op.name.into(),
        pass: pass.name().into(),
        shape: case.name.clone(),
        flops: case.flops,
        ..Row::new(Group::Operation)
    };
    let failed = |pass, status, reason| {
        let mut row = row(pass);
        row.withhold(status, reason);
        row
    };
    let passes = Pass::of(case);
    let limit = stopwatch.gpu.binding_limit();
    if let Some(input) = case.inputs.iter().find(|input| input.shape.bytes() > limit) {
        let reason =
            format!("an input of {} bytes, the adapter binds {limit}", input.shape.bytes());
        let unsupported = |pass| failed(pass, Status::Unsupported, reason.clone());
        return passes.into_iter().map(unsupported).collect();
    }
    let subject = match Subject::new(stopwatch, yardsticks, case) {
        Ok(subject) => subject,
        Err(error) => return vec![failed(passes[0], Status::Failed, error.to_string())],
    };
    let measure = |pass| match subject.samples(effort, pass) {
        Err(error) => Some(failed(pass, Status::Failed, error.to_string())),
        Ok(None) => None,
        Ok(Some(Measured { samples, beside, kernels, bytes })) => {
            let names: Vec<_> = kernels.iter().map(|(_, name)| *name).collect();
            let mut row = Row { samples, beside, bytes, kernel: names.join(" / "), ..row(pass) };
            if let Some(reason) = verified.objection(op.name, &kernels) {
                row.withhold(Status::Unverified, reason);
            }
            Some(row)
        }
    };
    let rows = passes.into_iter().filter_map(measure).collect();
    stopwatch.gpu.trim();
    rows
}

struct Measured {
    samples: Vec<f64>,
    beside: Vec<Ceiling>,
    kernels: Vec<(&'static str, &'static str)>,
    /// Each tensor read or written counted once.
    bytes: f64,
}

/// A case with its inputs on the device.
struct Subject<'a> {
    stopwatch: &'a Stopwatch<'a>,
    yardsticks: &'a Yardsticks<'a>,
    case: &'a Case,
    inputs: Vec<Tensor>,
}

impl<'a> Subject<'a> {
    fn new(
        stopwatch: &'a Stopwatch<'a>,
        yardsticks: &'a Yardsticks<'a>,
        case: &'a Case,
    ) -> Result<Self> {
        let inputs = case.tensors(stopwatch.gpu, &case.fill())?;
        Ok(Self { stopwatch, yardsticks, case, inputs })
    }

    fn forward(&self, pass: Pass) -> Result<(Tape, Vec<Var>)> {
        let tape = Tape::new(self.stopwatch.gpu);
        let wanted = |index| pass.differentiates(self.case, index);
        let inputs = self.case.attach(&tape, &self.inputs, wanted);
        let outputs = (self.case.run)(&tape, &inputs)?;
        Ok((tape, outputs))
    }

    /// Dispatches of a backward pass.
    fn dispatches(&self, pass: Pass, d_y: &Tensor) -> Result<usize> {
        let gpu = self.stopwatch.gpu;
        let forward = gpu.plan(|| self.forward(pass).map(|_| ()))?;
        let both = gpu.plan(|| {
            let (tape, outputs) = self.forward(pass)?;
            tape.backward(&outputs[0], d_y.clone()).map(|_| ())
        })?;
        Ok(both.dispatches - forward.dispatches)
    }

    /// None if the pass has nothing to compute, as the gradient of a sum.
    fn samples(&self, effort: &Effort, pass: Pass) -> Result<Option<Measured>> {
        let (stopwatch, gpu) = (self.stopwatch, self.stopwatch.gpu);
        let (tape, outputs) = self.forward(pass)?;
        drop(tape);
        let total = |tensors: &mut dyn Iterator<Item = u64>| tensors.sum::<u64>() as f64;
        let read = total(&mut self.inputs.iter().map(bytes));
        let written = total(&mut outputs.iter().map(|output| bytes(output.value())));
        let most = (MOST_BYTES as f64 / (read + written)).max(1.0) as usize;
        let beside = self.yardsticks.beside(self.case.flops > 0.0);
        if pass == Pass::Forward {
            gpu.forget_kernels();
            let (samples, beside) = stopwatch.sample(effort, most, beside, |repeats| {
                stopwatch.time(|| (0..repeats).try_for_each(|_| self.forward(pass).map(|_| ())))
            })?;
            let kernels = self.case.kernels(gpu);
            return Ok(Some(Measured { samples, beside, kernels, bytes: read + written }));
        }
        let (shape, dtype) = (outputs[0].shape(), outputs[0].value().dtype());
        drop(outputs);
        let d_y = self.case.fill_gradient(shape);
        let d_y = Tensor::from_host_as(gpu, shape, &d_y.to_f32(), dtype)?;
        if self.dispatches(pass, &d_y)? == 0 {
            return Ok(None);
        }
        let (samples, beside) = stopwatch.sample(effort, most, beside, |repeats| {
            let recorded: Vec<_> =
                (0..repeats).map(|_| self.forward(pass)).collect::<Result<_>>()?;
            gpu.finish()?;
            gpu.forget_kernels();
            stopwatch.time(|| {
                recorded.into_iter().try_for_each(|(tape, outputs)| {
                    // An operation may overwrite the gradient it is given if nobody else holds it.
                    tape.backward(&outputs[0], d_y.clone()).map(|_| ())
                })
            })
        })?;
        let gradients = (0..self.inputs.len()).filter(|&at| pass.differentiates(self.case, at));
        let gradients = total(&mut gradients.map(|at| bytes(&self.inputs[at])));
        // A matrix product's gradient by one operand does not read that operand.
        let unread = if matches!(pass, Pass::By(_)) { gradients } else { 0.0 };
        let bytes = bytes(&d_y) as f64 + read - unread + gradients;
        Ok(Some(Measured { samples, beside, kernels: self.case.kernels(gpu), bytes }))
    }
}

/// Bytes of a tensor on the device.
fn bytes(tensor: &Tensor) -> u64 {
    tensor.memory().bytes
}
