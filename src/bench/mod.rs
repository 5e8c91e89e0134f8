//! How fast an adapter is: its own ceilings, every operation's passes, whole steps, start and memory.
//!
//! Nothing is timed that is not known to be right: the same process first checks every kernel, and a
//! row whose kernel did not pass shows no time. Files (`benches/README.md`) hold raw samples; what
//! is derived from them is derived when they are read.

mod ceiling;
pub mod compare;
mod file;
mod memory;
mod network;
mod ops;
pub mod page;
mod stopwatch;
mod verified;

pub use file::{BenchFile, Ceiling, Group, Row, Status};
pub use stopwatch::Summary;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::gpu::{AdapterClass, AdapterReport, Gpu, GpuOptions, Shader};
use crate::provenance::Provenance;
use crate::tensor::Dtype;
use crate::train::Console;
use crate::tune;
use crate::verify::{Selection, losses, verify};
use ceiling::Yardsticks;
use stopwatch::{Clock, Effort, Stopwatch};
use verified::Verified;

/// The shaders that measure ceilings.
pub const SHADERS: &[&Shader] = &[&ceiling::FMA, &ceiling::MATRIX, &ceiling::COPY];

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Fewer networks and shorter samples: about a minute on two cores.
    pub quick: bool,
    /// Part of the names of the operations to measure; if given, nothing else is.
    pub op: Option<String>,
    /// Whether to find the fastest kernels first.
    pub tune: bool,
    /// Whether activations are stored in f16, where the adapter can.
    pub mixed: bool,
}

/// Measures the adapter at place `index` of [`crate::gpu::adapters`] and tells each row as it is known.
///
/// # Errors
/// What the device reported outside a row; a row that could not be measured says why.
pub fn run(index: usize, settings: &Settings, console: &Console) -> Result<BenchFile> {
    if let Some(part) = &settings.op
        && ops::cases(Some(part), AdapterClass::Software, Dtype::F32).next().is_none()
    {
        let what = format!("--op {part}: no operation with a benchmark has that in its name");
        return Err(Error::Usage(what));
    }
    let effort = if settings.quick { Effort::QUICK } else { Effort::FULL };
    let mut table = Table { console, rows: Vec::new() };
    let whole = settings.op.is_none();
    let plain = GpuOptions { mixed: settings.mixed, ..Default::default() };

    if settings.tune {
        let gpu = open(index, plain)?;
        let mut problems = ops::problems(&gpu, settings.op.as_deref())?;
        if whole {
            problems.extend(network::problems(&gpu, &effort)?);
        }
        console.note(format_args!("tuning {} passes", problems.len()));
        tune::tune(&gpu, &problems, |tuned| console.line(tuned))?;
    }

    // Networks come first: the first step while nothing is warm, and all of them while the process
    // holds nothing else. They are told once they are known to be right.
    let mut networks = Vec::new();
    if whole {
        console.note("measuring whole networks");
        networks.push(network::first_step(index, plain)?);
        let gpu = open(index, plain)?;
        network::measure(&gpu, &effort, |row| networks.push(row))?;
    }

    let gpu = open(index, plain)?;
    let (report, dtype) = (gpu.report().clone(), Dtype::of_activations(&gpu));
    drop(gpu);
    let clock = clock(&report);
    let timed = open(index, GpuOptions { profile: clock == Clock::Timestamps, ..plain })?;
    let stopwatch = Stopwatch::new(&timed, clock);
    console.line(format_args!(
        "{} ({}, {}); {} precision; timed by {clock}",
        report.name,
        report.backend,
        report.driver,
        precision(dtype)
    ));
    let ceilings = Yardsticks::find(&stopwatch, &effort, dtype)?.ceilings();

    let guards = GpuOptions { guards: true, ..Default::default() };
    let selection = Selection { op: settings.op.clone(), case: None };
    let mut checked = Vec::new();
    verify(|| open(index, guards), &selection, |rows| checked.extend(rows))?;
    let verified = Verified::new(&checked);
    console.line(format_args!("verify: {verified}"));
    // Once more, since an adapter that others use too may have been slow.
    // In short samples, which rows will be laid beside.
    let yardsticks = Yardsticks::find(&stopwatch, &Effort::QUICK, dtype)?;
    let ceilings = ceiling::higher(ceilings, yardsticks.ceilings());
    ceilings.iter().for_each(|ceiling| console.line(ceiling));

    table.title(&ceilings);
    for row in networks {
        table.tell(verified.hide(row), &ceilings);
    }
    if whole {
        network::loader(&effort, |row| table.tell(row, &ceilings));
    }
    for (op, case) in ops::cases(settings.op.as_deref(), report.class, dtype) {
        for row in ops::measure(&stopwatch, &yardsticks, &effort, op, &case, &verified) {
            table.tell(row, &ceilings);
        }
    }
    let (found, torch) = losses(&checked).into_iter().unzip();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(BenchFile {
        schema: file::SCHEMA.into(),
        unix_time: since_1970.as_secs(),
        provenance: Provenance::default(),
        adapter: serde_json::json!(report),
        quick: settings.quick,
        precision: precision(dtype).into(),
        clock: clock.to_string(),
        verify: verified.summary(),
        losses: file::Losses { found, torch },
        ceilings,
        rows: table.rows,
    })
}

/// As `--precision` has it.
fn precision(dtype: Dtype) -> &'static str {
    if dtype.is_half() { "mixed" } else { "f32" }
}

/// On a processor that plays GPU, the wall clock is exact and drivers' timestamps are not.
fn clock(report: &AdapterReport) -> Clock {
    match report.timestamps && report.class != AdapterClass::Software {
        true => Clock::Timestamps,
        false => Clock::Queue,
    }
}

fn open(index: usize, options: GpuOptions) -> Result<Gpu> {
    let gpu = Gpu::open_index(index, options)?;
    tune::load(&gpu);
    Ok(gpu)
}

/// Rows, told as they come.
struct Table<'a> {
    console: &'a Console,
    rows: Vec<Row>,
}

impl Table<'_> {
    fn title(&self, ceilings: &[Ceiling]) {
        if !ceilings.is_empty() {
            self.console.line(file::TITLE);
        }
    }

    fn tell(&mut self, row: Row, ceilings: &[Ceiling]) {
        self.console.line(row.line(ceilings));
        self.console.event(&row);
        self.rows.push(row);
    }
}
