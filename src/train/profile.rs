//! Where a step's time goes on the adapter: a table by kernel, and a trace for Chrome or Perfetto.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::console::Console;
use crate::checkpoint::write_atomically;
use crate::error::Result;
use crate::gpu::{Gpu, Timing};

/// Steps that the trace shows; the table counts all of them.
const TRACED_STEPS: u64 = 10;

/// Times gathered step by step.
pub struct Profile {
    path: PathBuf,
    steps: u64,
    /// Seconds and dispatches of each kernel.
    kernels: BTreeMap<String, (f64, u64)>,
    events: Vec<Value>,
    /// Where the next step begins on the trace's time line, in seconds.
    clock: f64,
}

impl Profile {
    /// Nothing gathered yet; the trace goes to `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            steps: 0,
            kernels: BTreeMap::new(),
            events: Vec::new(),
            clock: 0.0,
        }
    }

    /// Waits for the step just submitted and adds the times of its dispatches.
    ///
    /// # Errors
    /// What the device reported.
    pub fn add_step(&mut self, gpu: &Gpu) -> Result<()> {
        let timings = gpu.timings()?;
        for Timing { kernel, seconds, start } in &timings {
            let total = self.kernels.entry(kernel.label()).or_default();
            *total = (total.0 + seconds, total.1 + 1);
            if self.steps < TRACED_STEPS {
                self.events.push(json!({
                    "name": kernel.name(),
                    "ph": "X",
                    "ts": (self.clock + start) * 1e6,
                    "dur": seconds * 1e6,
                    "pid": 0,
                    "tid": 0,
                    "args": { "kernel": kernel.label(), "step": self.steps },
                }));
            }
        }
        self.clock += timings.last().map_or(0.0, |last| last.start + last.seconds);
        self.steps += 1;
        Ok(())
    }

    /// Prints the table and writes the trace; nothing before a step was done.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the trace cannot be written.
    pub fn finish(&self, console: &Console) -> Result<()> {
        if self.steps == 0 {
            return Ok(());
        }
        if self.kernels.is_empty() {
            console.warning("this adapter cannot time its dispatches, so there is no profile");
            return Ok(());
        }
        let steps = self.steps as f64;
        let total: f64 = self.kernels.values().map(|(seconds, _)| seconds).sum();
        let mut rows: Vec<_> = self.kernels.iter().collect();
        rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        console.line(format_args!(
            "profile of {} steps: {:.2} ms a step on the adapter",
            self.steps,
            1e3 * total / steps
        ));
        for (label, &(seconds, count)) in rows {
            console.line(row(label, (seconds / steps, count as f64 / steps), seconds / total));
        }
        let trace = json!({ "traceEvents": self.events, "displayTimeUnit": "ms" });
        write_atomically(&self.path, |file| Ok(serde_json::to_writer(file, &trace)?))?;
        console.line(format_args!(
            "trace of the first {} steps in {} (open it at ui.perfetto.dev or chrome://tracing)",
            self.steps.min(TRACED_STEPS),
            self.path.display()
        ));
        Ok(())
    }
}

/// A row of the table: of a kernel, what it takes and how often it runs in a step, and its share of all.
fn row(kernel: &str, (seconds, times): (f64, f64), share: f64) -> String {
    format!("  {:8.3} ms {:5.1} % {times:6.1}x  {kernel}", 1e3 * seconds, 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_seldom_runs_is_not_told_to_run_never() {
        assert_eq!(row("relu", (1e-3, 0.25), 0.5), "     1.000 ms  50.0 %    0.2x  relu");
    }
}
