//! Every operation, case and kernel on an adapter against the reference in f64, and the whole
//! network against PyTorch.

pub mod allowance;
mod drift;
pub mod formulas;
pub mod network;

pub use drift::{Drift, losses};

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{AdapterClass, Gpu, Kernel};
use crate::ops::case::{Array, Case, Expected, Worst, compare};
use crate::ops::{OPS, Op};
use crate::tensor::{Dtype, Tensor};

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

/// Checks what is selected on the adapter that `open` opens, and hands over the rows of each case, in
/// the order of the operations.
///
/// A processor that plays GPU compiles kernels one at a time on each opened device, which is most of
/// the work: there, several devices share it.
///
/// # Errors
/// Those of `open`.
pub fn verify(
    open: impl Fn() -> Result<Gpu> + Sync,
    class: AdapterClass,
    selection: &Selection,
    mut report: impl FnMut(Vec<Row>),
) -> Result<()> {
    let units = units(selection);
    let most = if class == AdapterClass::Software { MOST_DEVICES } else { 1 };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let (sender, done) = mpsc::channel();
    let work = |sender: mpsc::Sender<_>| -> Result<()> {
        let gpu = open()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(number) else { return Ok(()) };
            // The receiver is there until every sender is gone.
            unit.check(&gpu, selection, |rows| _ = sender.send((number, Some(rows))));
            _ = sender.send((number, None));
            gpu.trim();
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..most.min(cores).min(units.len()))
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(|| work(sender))
            })
            .collect();
        drop(sender);
        let mut waiting: BTreeMap<usize, Vec<Option<Vec<Row>>>> = BTreeMap::new();
        let mut current = 0;
        for (number, rows) in done {
            waiting.entry(number).or_default().push(rows);
            while let Some(ready) = waiting.remove(&current) {
                let finished = ready.iter().any(Option::is_none);
                ready.into_iter().flatten().for_each(&mut report);
                if !finished {
                    break;
                }
                current += 1;
            }
        }
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Opened devices that share the work at most.
const MOST_DEVICES: usize = 4;

/// What one device checks in one go, since it compiles the same kernels.
enum Unit {
    Operation(&'static Op, Dtype),
    Network,
}

/// The selected units, in order.
fn units(selection: &Selection) -> Vec<Unit> {
    let ops = OPS.iter().filter(|op| selection.has_op(op.name));
    let both = |op| [Dtype::F32, Dtype::F16].map(|dtype| Unit::Operation(op, dtype));
    let network = selection.has_op(NETWORK) && selection.has_case(network::NAME);
    ops.flat_map(both).chain(network.then_some(Unit::Network)).collect()
}

impl Unit {
    fn check(&self, gpu: &Gpu, selection: &Selection, mut report: impl FnMut(Vec<Row>)) {
        let (op, dtype) = match self {
            Self::Operation(op, dtype) => (op, *dtype),
            Self::Network => return report(network::check(gpu)),
        };
        let mut cases = op.cases();
        cases.retain(|case| {
            case.dtype == dtype && !case.benchmark && selection.has_case(&case.name)
        });
        // What does not compile is told of the cases that need it.
        _ = gpu.compile(kernels(gpu, &cases));
        cases.iter().for_each(|case| report(check(gpu, op, case)));
    }
}

/// Every kernel that checking the cases runs. Nothing is run.
fn kernels(gpu: &Gpu, cases: &[Case]) -> HashSet<Kernel> {
    let mut kernels = HashSet::new();
    let mut plan = |case: &Case| {
        // A case that cannot be planned cannot be run, which its check tells.
        let plan = case.plan(gpu);
        kernels.extend(plan.iter().flat_map(|plan| plan.kernels()).map(|(kernel, _)| kernel));
    };
    for case in cases.iter().filter(|case| case.supported(gpu)) {
        gpu.forget_kernels();
        plan(case);
        for &pass in case.passes {
            for name in gpu.offered_kernels(pass) {
                gpu.force_kernel(pass, Some(name));
                plan(case);
                gpu.force_kernel(pass, None);
            }
        }
    }
    kernels
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
            let verdict = match found.download(gpu) {
                Ok(numbers) if found.dtype().is_half() => {
                    Verdict::Compared(compare(&numbers, &expected.stored_in_half(), &by_pass))
                }
                Ok(numbers) => Verdict::Compared(compare(&numbers, expected, &by_pass)),
                Err(error) => Verdict::Failed(error.to_string()),
            };
            self.row(&chosen, what, verdict)
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
        if let Err(error) = gpu.check_guards() {
            rows.push(self.row(&chosen, "guards", Verdict::Failed(error.to_string())));
        }
        (rows, by_pass)
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
