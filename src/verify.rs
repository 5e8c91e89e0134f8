//! Every operation, case and kernel on an adapter against the reference in f64.

use std::collections::BTreeSet;

use crate::Result;
use crate::gpu::Gpu;
use crate::ops::case::{Case, Expected, Fill, Worst, compare, filled};
use crate::ops::{OPS, Op};
use crate::tensor::Tensor;

/// The verdict on one output or gradient of one case with one choice of kernels.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation.
    pub op: &'static str,
    /// Its sizes.
    pub case: String,
    /// The kernels that were forced, as `pass=kernel`; empty where there is no choice.
    pub kernel: String,
    /// What was compared: `output 0`, `gradient 1`, …
    pub what: String,
    /// The element closest to, or furthest beyond, its allowance.
    pub worst: Worst,
}

impl Row {
    /// Whether every element is within its allowance.
    pub fn passed(&self) -> bool {
        self.worst.share <= 1.0
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, case, kernel, what, worst } = self;
        write!(f, "{op} ({case}) {kernel} {what}: {worst}")
    }
}

/// Checks all cases of the operations whose name `select` accepts.
///
/// # Errors
/// What the device reported; a wrong result is not an error but a row that did not pass.
pub fn verify(gpu: &Gpu, select: impl Fn(&str) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for op in OPS.iter().filter(|op| select(op.name)) {
        for case in (op.cases)().iter().filter(|case| !case.benchmark) {
            rows.extend(check(gpu, op, case)?);
        }
    }
    Ok(rows)
}

/// Checks one case with every kernel each of its passes offers.
///
/// # Errors
/// What the device reported, and an overrun of a guard region on a device opened with guards.
pub fn check(gpu: &Gpu, op: &Op, case: &Case) -> Result<Vec<Row>> {
    let inputs = case.fill();
    let expected = (case.reference)(&inputs);
    let d_out = filled(expected[0].values.shape, Fill::Uniform(-1.0, 1.0), 99);
    let gradients = case.gradient.as_ref().map(|gradient| gradient(&inputs, &d_out));

    let mut rows = Vec::new();
    let mut forced = vec![(None, String::new())];
    let mut known = BTreeSet::new();
    while let Some((choice, kernel)) = forced.pop() {
        if let Some((pass, name)) = choice {
            gpu.force_kernel(pass, Some(name));
        }
        let d_out = gradients.as_ref().map(|_| &d_out);
        let executed = case.execute(gpu, &inputs, d_out);
        if let Some((pass, _)) = choice {
            gpu.force_kernel(pass, None);
        }
        let (outputs, found_gradients) = executed?;
        let mut judge = |what: String, found: &Tensor, expected: &Expected| -> Result<()> {
            let worst = compare(&found.download(gpu)?, expected);
            let (case, kernel) = (case.name.clone(), kernel.clone());
            rows.push(Row { op: op.name, case, kernel, what, worst });
            Ok(())
        };
        for (index, (found, expected)) in outputs.iter().zip(&expected).enumerate() {
            judge(format!("output {index}"), found, expected)?;
        }
        for (index, (found, expected)) in
            found_gradients.iter().zip(gradients.iter().flatten()).enumerate()
        {
            if let (Some(found), Some(expected)) = (found, expected) {
                judge(format!("gradient {index}"), found, expected)?;
            }
        }
        gpu.check_guards()?;
        // The first run used the default kernels; now that the passes have been through
        // `choose_kernel`, the others are known.
        for &pass in case.passes {
            for name in gpu.offered_kernels(pass) {
                if known.insert((pass, name)) {
                    forced.push((Some((pass, name)), format!("{pass}={name}")));
                }
            }
        }
    }
    Ok(rows)
}
