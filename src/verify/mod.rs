//! Every operation, case and kernel on an adapter against the reference in f64, and the whole
//! network against PyTorch.

pub mod allowance;
mod drift;
mod everything;
pub mod formulas;
pub mod network;

pub use drift::{Drift, losses};
pub use everything::verify;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::gpu::Gpu;
use crate::ops::Op;
use crate::ops::case::{Array, Case, Expected, Worst, compare};
use crate::tensor::Tensor;

/// What became of a comparison.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It could be made; this is the element closest to, or furthest beyond, its allowance.
    Compared(Worst),
    /// The device failed, or wrote where it must not.
    Failed(String),
    /// The adapter cannot run the case, which is no failure; why.
    Unsupported(String),
}

/// The verdict on one output or gradient of one case with one choice of kernels.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation, or `network`.
    pub op: &'static str,
    /// Its sizes.
    pub case: String,
    /// The kernel that was forced, as `pass: kernel`; else those that were chosen, a `/` between
    /// passes; empty where there is no choice.
    pub kernel: String,
    /// The passes and kernels that the row judges: the one that was forced, or all that were chosen.
    pub judged: Vec<(&'static str, &'static str)>,
    /// What was compared: `output 0`, `gradient 1`, `layer1.0.conv1.weight`, …
    pub what: String,
    /// How it went.
    pub verdict: Verdict,
}

impl Row {
    /// Whether nothing is wrong: within its allowance, or not supported.
    pub fn passed(&self) -> bool {
        match &self.verdict {
            Verdict::Compared(worst) => worst.share <= 1.0,
            Verdict::Failed(_) => false,
            Verdict::Unsupported(_) => true,
        }
    }

    /// `pass`, `FAIL` or `unsupported`.
    pub fn word(&self) -> &'static str {
        match (&self.verdict, self.passed()) {
            (Verdict::Unsupported(_), _) => "unsupported",
            (_, true) => "pass",
            (_, false) => "FAIL",
        }
    }

    /// The largest error as a share of the allowance; infinite after a failure, none if unsupported.
    pub fn share(&self) -> Option<f64> {
        match &self.verdict {
            Verdict::Compared(worst) => Some(worst.share),
            Verdict::Failed(_) => Some(f64::INFINITY),
            Verdict::Unsupported(_) => None,
        }
    }

    /// The row as a line of `--json`. Shares above f64's range, as of NaN, are null.
    pub fn record(&self) -> Record<'_> {
        let (worst, reason) = match &self.verdict {
            Verdict::Compared(worst) => (Some(worst), None),
            Verdict::Failed(reason) | Verdict::Unsupported(reason) => (None, Some(reason.as_str())),
        };
        Record {
            op: self.op,
            case: &self.case,
            kernel: &self.kernel,
            what: &self.what,
            verdict: self.word(),
            share: worst.map(|worst| worst.share),
            position: worst.map(|worst| worst.position),
            found: worst.map(|worst| worst.found),
            expected: worst.map(|worst| worst.expected),
            allowance: worst.map(|worst| worst.allowance),
            reason,
        }
    }
}

/// A [`Row`] for programs.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    op: &'a str,
    case: &'a str,
    kernel: &'a str,
    what: &'a str,
    verdict: &'static str,
    share: Option<f64>,
    position: Option<[usize; 4]>,
    found: Option<f64>,
    expected: Option<f64>,
    allowance: Option<f64>,
    reason: Option<&'a str>,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, case, kernel, what, verdict, .. } = self;
        match verdict {
            Verdict::Compared(worst) => write!(f, "{op} ({case}) {kernel} {what}: {worst}"),
            Verdict::Failed(reason) => write!(f, "{op} ({case}) {kernel} {what}: {reason}"),
            Verdict::Unsupported(reason) => write!(f, "{op} ({case}): unsupported: {reason}"),
        }
    }
}

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Part of the operation's name; all if none.
    pub op: Option<String>,
    /// Part of the case's name; all if none.
    pub case: Option<String>,
}

/// Name of the check of the whole network among the operations'.
pub const NETWORK: &str = "network";

impl Selection {
    /// Whether operation `op` is selected.
    pub fn has_op(&self, op: &str) -> bool {
        self.op.as_ref().is_none_or(|part| op.contains(part.as_str()))
    }

    /// Whether a case of a selected operation is selected.
    pub fn has_case(&self, case: &str) -> bool {
        self.case.as_ref().is_none_or(|part| case.contains(part.as_str()))
    }
}

/// Checks one case with every kernel each of its passes offers.
pub fn check(gpu: &Gpu, op: &Op, case: &Case) -> Vec<Row> {
    let subject = Subject::new(op, case);
    if let Some(reason) = subject.unsupported(gpu) {
        return vec![subject.row(&Chosen::default(), "", Verdict::Unsupported(reason))];
    }
    gpu.forget_kernels();
    let (mut rows, chosen) = subject.run(gpu, None);
    // Now that the passes have been through `choose_kernel`, the other candidates are known.
    for &(pass, default) in &chosen {
        for name in gpu.offered_kernels(pass) {
            if name != default {
                rows.extend(subject.run(gpu, Some((pass, name))).0);
            }
        }
    }
    // Those of convolutions have sums in cases of their own.
    if case.passes.is_empty() {
        rows.extend(subject.run_adding(gpu));
    }
    rows
}

/// Checks one case with one kernel for one of its passes, where that is offered.
pub fn check_kernel(
    gpu: &Gpu,
    op: &Op,
    case: &Case,
    pass: &'static str,
    kernel: &'static str,
) -> Vec<Row> {
    Subject::new(op, case).run(gpu, Some((pass, kernel))).0
}

/// A case with everything that its results are compared with.
struct Subject<'a> {
    op: &'static str,
    case: &'a Case,
    inputs: Vec<Array>,
    outputs: Vec<Expected>,
    d_out: Option<Array>,
    gradients: Vec<Option<Expected>>,
}

/// The kernels a run is about.
#[derive(Default)]
struct Chosen {
    label: String,
    judged: Vec<(&'static str, &'static str)>,
}

impl<'a> Subject<'a> {
    fn new(op: &Op, case: &'a Case) -> Self {
        let inputs = case.fill();
        let half = case.dtype.is_half();
        let expected = |it: Expected| if half { it.through_half() } else { it };
        let outputs: Vec<_> = (case.reference)(&inputs).into_iter().map(expected).collect();
        let d_out = case.fill_gradient(outputs[0].values.shape);
        let gradient = case.gradient.as_ref();
        let gradients = gradient.map_or_else(Vec::new, |gradient| gradient(&inputs, &d_out));
        let gradients = gradients.into_iter().map(|it| it.map(expected)).collect();
        let d_out = gradient.map(|_| d_out);
        Self { op: op.name, case, inputs, outputs, d_out, gradients }
    }

    fn unsupported(&self, gpu: &Gpu) -> Option<String> {
        if !self.case.supported(gpu) {
            return Some("the adapter has no f16 in shaders".into());
        }
        let inputs = self.inputs.iter().map(|array| array.shape);
        let shapes = inputs.chain(self.outputs.iter().map(|output| output.values.shape));
        let largest = shapes.map(|shape| shape.bytes()).max().unwrap_or(0);
        (largest > gpu.binding_limit()).then(|| {
            let limit = gpu.binding_limit();
            format!("a tensor of {largest} bytes, the adapter binds {limit}")
        })
    }

    fn row(&self, chosen: &Chosen, what: impl Into<String>, verdict: Verdict) -> Row {
        Row {
            op: self.op,
            case: self.case.name.clone(),
            kernel: chosen.label.clone(),
            judged: chosen.judged.clone(),
            what: what.into(),
            verdict,
        }
    }

    /// Runs the case and judges it; with a kernel forced, if that is offered here. Returns the
    /// kernels that were chosen, too.
    fn run(
        &self,
        gpu: &Gpu,
        forced: Option<(&'static str, &'static str)>,
    ) -> (Vec<Row>, Vec<(&'static str, &'static str)>) {
        if let Some((pass, name)) = forced {
            gpu.force_kernel(pass, Some(name));
        }
        let executed = self.case.execute(gpu, &self.inputs, self.d_out.as_ref());
        if let Some((pass, _)) = forced {
            gpu.force_kernel(pass, None);
        }
        let by_pass = self.case.kernels(gpu);
        let label = match forced {
            Some((pass, name)) => format!("{pass}: {name}"),
            None => by_pass.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" / "),
        };
        let judged = forced.map_or_else(|| by_pass.clone(), |forced| vec![forced]);
        let chosen = Chosen { label, judged };
        let (outputs, gradients) = match executed {
            Ok(executed) => executed,
            Err(error) => {
                let row = self.row(&chosen, "run", Verdict::Failed(error.to_string()));
                return (vec![row], by_pass);
            }
        };
        let judge = |what: String, found: &Tensor, expected: &Expected| {
            self.judge(gpu, &chosen, &by_pass, what, found, expected)
        };
        let mut rows = Vec::new();
        for (index, (found, expected)) in outputs.iter().zip(&self.outputs).enumerate() {
            rows.push(judge(format!("output {index}"), found, expected));
        }
        for (index, (found, expected)) in gradients.iter().zip(&self.gradients).enumerate() {
            if let (Some(found), Some(expected)) = (found, expected) {
                rows.push(judge(format!("gradient {index}"), found, expected));
            }
        }
        rows.extend(self.guards(gpu, &chosen));
        (rows, by_pass)
    }

    /// Runs the case with gradients that are added to others, and judges these sums.
    fn run_adding(&self, gpu: &Gpu) -> Vec<Row> {
        let (Some(d_out), chosen) = (&self.d_out, Chosen::default()) else { return Vec::new() };
        let held = self.case.fill_held();
        let sums = match self.case.execute_adding(gpu, &self.inputs, d_out, &held) {
            Ok(sums) => sums,
            Err(error) => {
                return vec![self.row(&chosen, "adding", Verdict::Failed(error.to_string()))];
            }
        };
        let mut rows = Vec::new();
        for (index, (sum, expected)) in sums.iter().zip(&self.gradients).enumerate() {
            if let (Some(sum), Some(expected)) = (sum, expected) {
                let expected = expected.clone().added_to(&held[index]);
                let what = format!("gradient {index} added");
                rows.push(self.judge(gpu, &chosen, &[], what, sum, &expected));
            }
        }
        rows.extend(self.guards(gpu, &chosen));
        rows
    }

    /// Compares a result with what is expected of the kernels `by_pass`.
    fn judge(
        &self,
        gpu: &Gpu,
        chosen: &Chosen,
        by_pass: &[(&'static str, &'static str)],
        what: String,
        found: &Tensor,
        expected: &Expected,
    ) -> Row {
        let verdict = match found.download_checked(gpu) {
            Ok(None) => Verdict::Failed("padding is not zero".into()),
            Ok(Some(numbers)) if found.dtype().is_half() => {
                Verdict::Compared(compare(&numbers, &expected.stored_in_half(), by_pass))
            }
            Ok(Some(numbers)) => Verdict::Compared(compare(&numbers, expected, by_pass)),
            Err(error) => Verdict::Failed(error.to_string()),
        };
        self.row(chosen, what, verdict)
    }

    /// What to say if something was written around a tensor.
    fn guards(&self, gpu: &Gpu, chosen: &Chosen) -> Option<Row> {
        let error = gpu.check_guards().err()?;
        Some(self.row(chosen, "guards", Verdict::Failed(error.to_string())))
    }
}

/// The worst row of each choice of kernels, in order: what a table shows.
pub fn worst_by_kernel(rows: &[Row]) -> Vec<&Row> {
    let mut worst: BTreeMap<usize, &Row> = BTreeMap::new();
    let mut first = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        let place = *first.entry((row.op, &row.case, &row.kernel)).or_insert(index);
        let best = worst.entry(place).or_insert(row);
        if row.share() > best.share() || best.passed() && !row.passed() {
            *best = row;
        }
    }
    worst.into_values().collect()
}
