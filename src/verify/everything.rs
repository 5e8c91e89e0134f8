//! All that is selected, one operation after the other, on as many devices as it takes.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{NETWORK, Row, Selection, check, network};
use crate::error::Result;
use crate::gpu::{Gpu, Kernel};
use crate::ops::case::Case;
use crate::ops::{OPS, Op};
use crate::tensor::Dtype;

/// Opened devices that share the work at most.
const MOST_DEVICES: usize = 4;

/// Checks what is selected on the adapter that `open` opens, and hands over the rows of each case, in
/// the order of the operations.
///
/// Several devices share the work, most of which is the host's: references in f64, and compiling kernels,
/// which a processor that plays GPU does one at a time on each device.
///
/// # Errors
/// Those of `open`.
pub fn verify(
    open: impl Fn() -> Result<Gpu> + Sync,
    selection: &Selection,
    mut report: impl FnMut(Vec<Row>),
) -> Result<()> {
    let units = units(selection);
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
        let workers: Vec<_> = (0..MOST_DEVICES.min(cores).min(units.len()))
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
