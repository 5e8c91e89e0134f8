//! Which kernels have been found right in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::file::{Checked, Row as BenchRow, Status};
use crate::verify::{NETWORK, Row};

/// What `verify` said of everything it looked at.
pub struct Verified {
    comparisons: usize,
    failed: usize,
    /// Largest share of the allowance by operation; infinite shares are left out.
    worst: BTreeMap<&'static str, f64>,
    /// Operations with a failure that is not one kernel's.
    bad_ops: BTreeSet<&'static str>,
    good: BTreeSet<(&'static str, &'static str)>,
    bad: BTreeSet<(&'static str, &'static str)>,
}

impl Verified {
    /// Sorts out the rows of a verification.
    pub fn new(rows: &[Row]) -> Self {
        let mut verified = Self {
            comparisons: rows.len(),
            failed: rows.iter().filter(|row| !row.passed()).count(),
            worst: BTreeMap::new(),
            bad_ops: BTreeSet::new(),
            good: BTreeSet::new(),
            bad: BTreeSet::new(),
        };
        for row in rows {
            if let Some(share) = row.share().filter(|share| share.is_finite()) {
                let worst = verified.worst.entry(row.op).or_default();
                *worst = worst.max(share);
            }
            match (row.passed(), row.judged.is_empty()) {
                (true, _) => verified.good.extend(&row.judged),
                (false, true) => _ = verified.bad_ops.insert(row.op),
                (false, false) => verified.bad.extend(&row.judged),
            }
        }
        verified
    }

    /// Why a row of operation `op` by these kernels (pass, name) must not show a time; none if it may.
    pub fn objection(&self, op: &str, kernels: &[(&'static str, &'static str)]) -> Option<String> {
        if self.bad_ops.contains(op) {
            return Some(format!("{op} did not pass verify"));
        }
        kernels.iter().find_map(|kernel| {
            let (pass, name) = kernel;
            match (self.bad.contains(kernel), self.good.contains(kernel)) {
                (false, true) => None,
                (true, _) => Some(format!("{name} of {pass} did not pass verify")),
                (false, false) => Some(format!("no case of verify ran {name} of {pass}")),
            }
        })
    }

    /// A row of whole networks, without its times if those did not pass.
    pub fn hide(&self, mut row: BenchRow) -> BenchRow {
        if let Some(reason) = self.objection(NETWORK, &[]) {
            row.withhold(Status::Unverified, reason);
        }
        row
    }

    /// For the file.
    pub fn summary(&self) -> Checked {
        let worst = self.worst.iter().map(|(op, share)| ((*op).to_owned(), *share)).collect();
        Checked { comparisons: self.comparisons, failed: self.failed, worst }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} comparisons, {} failed", self.comparisons, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::Worst;
    use crate::verify::Verdict;

    fn row(op: &'static str, judged: &[(&'static str, &'static str)], share: f64) -> Row {
        let worst = Worst { share, position: [0; 4], found: 0.0, expected: 0.0, allowance: 1.0 };
        Row {
            op,
            case: String::new(),
            kernel: String::new(),
            judged: judged.to_vec(),
            what: String::new(),
            verdict: Verdict::Compared(worst),
        }
    }

    #[test]
    fn only_what_passed_everywhere_may_show_a_time() {
        let verified = Verified::new(&[
            row("conv2d", &[("forward", "a"), ("data", "a")], 0.5),
            row("conv2d", &[("forward", "b")], 0.5),
            row("conv2d", &[("forward", "b")], 1.5),
            row("relu", &[], 0.5),
            row("add", &[], 2.0),
        ]);
        assert_eq!(verified.objection("conv2d", &[("forward", "a"), ("data", "a")]), None);
        let reason = |op, kernels: &[_]| verified.objection(op, kernels).unwrap();
        assert!(reason("conv2d", &[("forward", "b")]).contains("did not pass"));
        assert!(reason("conv2d", &[("forward", "c")]).contains("no case"));
        assert!(reason("add", &[]).contains("add did not pass"));
        assert_eq!(verified.objection("relu", &[]), None);
        assert_eq!(verified.summary().failed, 2);
    }
}
