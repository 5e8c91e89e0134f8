//! `wgrad verify`: every kernel on the user's own adapter against the reference.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::shared::{AdapterOptions, OutputOptions};
use crate::checkpoint::check_writable;
use crate::error::{Context, Error, Result};
use crate::gpu::{AdapterReport, Gpu, GpuOptions};
use crate::train::Console;
use crate::verify::{Drift, Row, Selection, Verdict, verify, worst_by_kernel};

/// Every kernel, forward and backward, and a whole network on the adapter against references in f64
///
/// Each operation runs on each of its cases with every kernel the adapter could choose, between
/// guard regions. An error is shown as a share of what rounding in f32 explains; above 1 is a
/// failure, and so is a write outside a tensor. The whole network's ten training steps are compared
/// with PyTorch's. Exits with 1 if anything failed.
#[derive(Args, Debug)]
pub struct Verify {
    #[command(flatten)]
    adapter: AdapterOptions,

    /// Only operations with this in their name; `network` is the whole network [default: all]
    #[arg(long, value_name = "PART")]
    op: Option<String>,

    /// Only cases with this in their name [default: all]
    #[arg(long, value_name = "PART")]
    case: Option<String>,

    /// Keep the shader compiler's bounds checks [default: off]
    #[arg(long)]
    checked: bool,

    /// Also writes every error and the network's ten losses to a JSON file, to lay adapters side by
    /// side [default: none]
    #[arg(long, value_name = "FILE")]
    drift: Option<PathBuf>,

    #[command(flatten)]
    output: OutputOptions,
}

/// How many comparisons there were.
#[derive(Default)]
struct Count {
    all: usize,
    failed: usize,
    unsupported: usize,
}

impl Verify {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        if let Some(path) = &self.drift {
            check_writable(path).context(|| "checking where the drift goes")?;
        }
        let selection = Selection { op: self.op.clone(), case: self.case.clone() };
        let mut drift = Drift::default();
        let mut count = Count::default();
        for found in self.adapter.found()? {
            if let Some(reason) = &found.report.unusable {
                let AdapterReport { name, backend, .. } = &found.report;
                console.warning(format_args!("{name} ({backend}) is unsupported: {reason}"));
                continue;
            }
            self.adapter(&found.report, &selection, &console, &mut count, &mut drift)?;
        }
        if let Some(path) = &self.drift {
            drift.write(path)?;
            console.note(format_args!("drift written to {}", path.display()));
        }
        match count {
            Count { all: 0, .. } => Err(Error::Usage(
                "nothing was checked: no adapter can run, or --op and --case fit no case together"
                    .into(),
            )),
            Count { failed: 0, .. } => Ok(()),
            Count { failed, all, .. } => {
                Err(Error::Gpu(format!("{failed} of {all} comparisons failed")))
            }
        }
    }

    fn adapter(
        &self,
        report: &AdapterReport,
        selection: &Selection,
        console: &Console,
        total: &mut Count,
        drift: &mut Drift,
    ) -> Result<()> {
        console.note(format_args!("{} ({}, {})", report.name, report.backend, report.driver));
        if !console.is_json() {
            console.line(Line::TITLE);
        }
        let started = Instant::now();
        let (mut count, mut told) = (Count::default(), Ok(()));
        let mut all = Vec::new();
        let options = GpuOptions { guards: true, checked: self.checked, ..GpuOptions::default() };
        let open = || Gpu::open_index(report.index, options);
        verify(open, selection, |rows| {
            count.all += rows.len();
            count.failed += rows.iter().filter(|row| !row.passed()).count();
            count.unsupported += rows.iter().filter(|row| row.share().is_none()).count();
            if told.is_ok() {
                told = tell(console, report, &rows);
            }
            all.extend(rows);
        })?;
        told?;
        console.note(format_args!(
            "{} comparisons, {} failed, {} unsupported, {:.1} s",
            count.all,
            count.failed,
            count.unsupported,
            started.elapsed().as_secs_f64()
        ));
        drift.add(report, &all);
        total.all += count.all;
        total.failed += count.failed;
        Ok(())
    }
}

fn tell(console: &Console, report: &AdapterReport, rows: &[Row]) -> Result<()> {
    if console.is_json() {
        return rows.iter().try_for_each(|row| {
            let mut object =
                serde_json::json!({ "adapter": report.name, "backend": report.backend });
            let record = serde_json::json!(row.record());
            if let (Some(object), Some(record)) = (object.as_object_mut(), record.as_object()) {
                object.extend(record.clone());
            }
            console.answer(object)
        });
    }
    for row in worst_by_kernel(rows) {
        match row.passed() {
            true => console.line(Line(row)),
            // A failure is told even to those who want quiet.
            false => console.answer(format_args!("{}\n    {row}", Line(row)))?,
        }
    }
    Ok(())
}

/// A line of the table.
struct Line<'a>(&'a Row);

impl Line<'_> {
    const TITLE: &'static str = "op               error  verdict  case, kernel";
}

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Row { op, case, kernel, .. } = self.0;
        let share = self.0.share().map_or("-".into(), |share| format!("{share:.3}"));
        write!(f, "{op:<15} {share:>6}  {:<7}  {case}", self.0.word())?;
        match &self.0.verdict {
            Verdict::Unsupported(reason) => write!(f, ": {reason}"),
            _ if kernel.is_empty() => Ok(()),
            _ => write!(f, "  [{kernel}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_why_a_case_is_unsupported() {
        let row = Row {
            op: "relu",
            case: "8 numbers".into(),
            kernel: "plain".into(),
            judged: Vec::new(),
            what: "start".into(),
            verdict: Verdict::Unsupported("no f16".into()),
        };
        assert!(Line(&row).to_string().ends_with("unsupported  8 numbers: no f16"));
    }
}
