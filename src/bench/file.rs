//! The file of a benchmark; `benches/README.md` documents it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ceiling::{BANDWIDTH, FLOPS, MATRIX_FLOPS};
use super::stopwatch::Summary;
use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// What [`BenchFile::schema`] says.
pub(super) const SCHEMA: &str = "wgrad-bench/1";

/// Everything measured by one run on one adapter.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BenchFile {
    /// Which fields there are: `wgrad-bench/1`.
    pub schema: String,
    /// When, in seconds since 1970.
    pub unix_time: u64,
    /// The program and the machine.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// As `wgrad devices --json` lists it.
    pub adapter: Value,
    /// Whether `--quick` was given.
    pub quick: bool,
    /// `f32` or `mixed`.
    #[serde(default = "single")]
    pub precision: String,
    /// What kernels were timed by: `timestamps` of the adapter, or the wall clock around a whole
    /// `queue`.
    pub clock: String,
    /// What the same process found right.
    pub verify: Checked,
    /// The losses of ten training steps.
    pub losses: Losses,
    /// The adapter's own limits.
    pub ceilings: Vec<Ceiling>,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// What files say that were written when there was nothing else.
fn single() -> String {
    "f32".into()
}

/// The outcome of `wgrad verify`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Checked {
    /// How many comparisons.
    pub comparisons: usize,
    /// How many of them were too far off.
    pub failed: usize,
    /// Largest error as a share of the allowance, by operation.
    pub worst: BTreeMap<String, f64>,
}

/// Ten training steps of `wgrad verify`'s network.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Losses {
    /// On this adapter.
    pub found: Vec<f64>,
    /// By PyTorch in f64.
    pub torch: Vec<f64>,
}

impl Losses {
    /// Largest relative difference from PyTorch's; none without losses.
    pub fn drift(&self) -> Option<f64> {
        let off = |(found, torch): (&f64, &f64)| (found - torch).abs() / torch;
        self.found.iter().zip(&self.torch).map(off).reduce(f64::max)
    }
}

/// What an adapter can do at most.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ceiling {
    /// Of what.
    pub name: String,
    /// `GFLOP/s` or `GB/s`.
    pub unit: String,
    /// In that unit.
    pub samples: Vec<f64>,
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, samples } = self;
        match Summary::of(samples) {
            Some(all) => {
                let spread = 100.0 * all.spread();
                write!(f, "ceiling: {name} {:.1} {unit} ± {spread:.0} %", all.median)
            }
            None => write!(f, "ceiling: {name} was not measured"),
        }
    }
}

/// What a row measures.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// From opening the adapter to the end of the first training step.
    Start,
    /// One pass of one operation.
    Operation,
    /// A training step.
    Training,
    /// Evaluation of a batch.
    Inference,
    /// An epoch of the loader by itself.
    Loader,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was measured.
    #[default]
    Measured,
    /// Its kernel did not pass verify, so it has no time.
    Unverified,
    /// The adapter's limits do not admit it.
    Unsupported,
    /// It would have taken too long, or something it needs is not there.
    Skipped,
    /// The device failed.
    Failed,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// What kind.
    pub group: Group,
    /// The operation or network.
    pub name: String,
    /// `forward`, `backward data`, …; empty where there is only one.
    pub pass: String,
    /// Sizes.
    pub shape: String,
    /// The kernel that ran; empty where there is no choice.
    pub kernel: String,
    /// Multiplications and additions; a training step counts as three forward passes. 0 where
    /// memory is what it costs.
    pub flops: f64,
    /// Bytes of every tensor read or written, each counted once; 0 for whole networks.
    pub bytes: f64,
    /// Images at a time; 0 where there are none.
    pub images: usize,
    /// Images that went through the network at once, if that was fewer.
    pub micro_batch: Option<usize>,
    /// Seconds each.
    pub samples: Vec<f64>,
    /// The ceilings that its share is of, measured between its own samples; where there are none, the
    /// file's are meant.
    #[serde(default)]
    pub beside: Vec<Ceiling>,
    /// Seconds that the host needed to record and submit each, where that is known.
    pub host_samples: Vec<f64>,
    /// Device memory, in bytes.
    pub device_bytes: Option<u64>,
    /// The most memory the process held meanwhile, in bytes.
    pub process_bytes: Option<u64>,
    /// What became of it.
    pub status: Status,
    /// Why there is no time.
    pub reason: Option<String>,
}

/// The titles of [`Row::line`]'s columns.
pub(super) const TITLE: &str = "    time ms  spread   GFLOP/s    GB/s  ceiling     img/s  what";

impl Row {
    /// A row of nothing yet.
    pub(super) fn new(group: Group) -> Self {
        Self {
            group,
            name: String::new(),
            pass: String::new(),
            shape: String::new(),
            kernel: String::new(),
            flops: 0.0,
            bytes: 0.0,
            images: 0,
            micro_batch: None,
            samples: Vec::new(),
            beside: Vec::new(),
            host_samples: Vec::new(),
            device_bytes: None,
            process_bytes: None,
            status: Status::Measured,
            reason: None,
        }
    }

    /// Takes the times away.
    pub(super) fn withhold(&mut self, status: Status, reason: String) {
        self.samples.clear();
        self.beside.clear();
        self.host_samples.clear();
        self.status = status;
        self.reason = Some(reason);
    }

    /// What is compared between files: everything that says what was measured.
    pub fn title(&self) -> String {
        let parts = [self.name.as_str(), &self.pass, &self.shape];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Median and quartiles, in seconds.
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.samples)
    }

    /// Images a second.
    pub fn images_per_second(&self) -> Option<f64> {
        let summary = self.summary().filter(|_| self.images > 0)?;
        Some(self.images as f64 / summary.median)
    }

    /// 1e9 operations a second.
    pub fn gflops(&self) -> Option<f64> {
        let summary = self.summary().filter(|_| self.flops > 0.0)?;
        Some(self.flops / summary.median * 1e-9)
    }

    /// 1e9 bytes a second.
    pub fn gbps(&self) -> Option<f64> {
        let summary = self.summary().filter(|_| self.bytes > 0.0)?;
        Some(self.bytes / summary.median * 1e-9)
    }

    /// The time that the ceilings allow as a share of the time taken: arithmetic and memory, each
    /// at its ceiling, at once; that of matrix units where they were used for numbers as they are. A
    /// Winograd kernel may exceed 1, since it does fewer operations than are counted, and one that splits
    /// f32 for such units, since it is laid beside the ceiling of f32.
    pub fn share(&self, ceilings: &[Ceiling]) -> Option<f64> {
        let ceiling = |name: &str| {
            let mut all = self.beside.iter().chain(ceilings);
            let found = all.find(|ceiling| ceiling.name == name)?;
            Some(Summary::of(&found.samples)?.median)
        };
        let of = |value: Option<f64>, name| Some(value? / ceiling(name)?);
        // Networks use such units where there are any.
        let whole = matches!(self.group, Group::Training | Group::Inference);
        let units = self.kernel.starts_with("cooperative")
            || whole && ceilings.iter().any(|ceiling| ceiling.name == MATRIX_FLOPS);
        let arithmetic = if units { MATRIX_FLOPS } else { FLOPS };
        let shares = [of(self.gflops(), arithmetic), of(self.gbps(), BANDWIDTH)];
        shares.into_iter().flatten().reduce(f64::max)
    }

    /// A line of the table.
    pub fn line(&self, ceilings: &[Ceiling]) -> String {
        let number = |value: Option<f64>, width: usize, digits: usize| match value {
            Some(value) => format!("{value:>width$.digits$}"),
            None => format!("{:>width$}", "-"),
        };
        let percent = |value: Option<f64>, width: usize| match value {
            Some(value) => format!("{:>width$.0} %", 100.0 * value),
            None => format!("{:>width$}  ", "-"),
        };
        let summary = self.summary();
        let mut line = [
            number(summary.map(|all| all.median * 1e3), 11, 3),
            percent(summary.map(|all| all.spread()), 5),
            number(self.gflops(), 9, 1),
            number(self.gbps(), 7, 1),
            percent(self.share(ceilings), 6),
            number(self.images_per_second(), 9, 1),
        ]
        .join(" ");
        line += &format!("  {}", self.title());
        if !self.kernel.is_empty() {
            line += &format!(" [{}]", self.kernel);
        }
        if let Some(host) = Summary::of(&self.host_samples) {
            line += &format!(", host {:.2} ms", host.median * 1e3);
        }
        for (bytes, what) in [(self.device_bytes, "device"), (self.process_bytes, "process")] {
            if let Some(bytes) = bytes {
                line += &format!(", {what} {} MB", bytes / 1_000_000);
            }
        }
        match &self.reason {
            Some(reason) => line + &format!(": {reason}"),
            None => line,
        }
    }
}

impl BenchFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] if it is not such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let file: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let what = match file["schema"].as_str() {
            Some(SCHEMA) => match serde_json::from_value(file) {
                Ok(file) => return Ok(file),
                Err(error) => format!("is damaged: {error}"),
            },
            Some(schema) => format!("its schema is {schema}, this program reads {SCHEMA}"),
            None => "not a file of `wgrad bench --json-file`".into(),
        };
        Err(Error::data(path, what))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text =
            self.text().map_err(|error| Error::data(path, format!("writing it: {error}")))?;
        write_atomically(path, |file| std::io::Write::write_all(file, text.as_bytes()))
    }

    /// As JSON, a measurement a line.
    fn text(&self) -> serde_json::Result<String> {
        let Value::Object(fields) = serde_json::to_value(self)? else { return Ok(String::new()) };
        let field = |(name, value): (&String, &Value)| match value {
            Value::Array(items) if items.iter().all(Value::is_object) => {
                let lines: Vec<_> = items.iter().map(|item| format!("  {item}")).collect();
                format!("\"{name}\": [\n{}\n]", lines.join(",\n"))
            }
            _ => format!("\"{name}\": {value}"),
        };
        let fields: Vec<_> = fields.iter().map(field).collect();
        Ok(format!("{{\n{}\n}}\n", fields.join(",\n")))
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        self.adapter["name"].as_str().unwrap_or("an adapter")
    }

    /// A property of the adapter, as text.
    pub fn property(&self, name: &str) -> &str {
        self.adapter[name].as_str().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_ceiling_measured_beside_the_row() {
        let ceiling = |samples: &[f64]| Ceiling {
            name: FLOPS.into(),
            unit: "GFLOP/s".into(),
            samples: samples.to_vec(),
        };
        let file = [ceiling(&[100.0])];
        let mut row = Row { flops: 1e9, samples: vec![0.02], ..Row::new(Group::Operation) };
        assert_eq!(row.share(&file), Some(0.5));
        row.beside = vec![ceiling(&[80.0, 20.0, 62.5])];
        assert_eq!(row.share(&file), Some(0.8));
    }

    #[test]
    fn rates_are_of_the_median_and_gone_when_it_is_withheld() {
        let ceiling = |name: &str, rate: f64| Ceiling {
            name: name.into(),
            unit: "G/s".into(),
            samples: vec![rate],
        };
        let ceilings = [ceiling(FLOPS, 4.0), ceiling(BANDWIDTH, 0.5), ceiling(MATRIX_FLOPS, 8.0)];
        let samples = vec![3.0, 2.0, 9.0];
        let row = Row { flops: 6e9, bytes: 1.2e9, samples, ..Row::new(Group::Operation) };
        assert_eq!((row.gflops(), row.images_per_second()), (Some(2.0), None));
        assert!((row.gbps().unwrap() - 0.4).abs() < 1e-12);
        assert!(
            (row.share(&ceilings).unwrap() - 0.8).abs() < 1e-12,
            "memory is nearer its ceiling"
        );
        let row = Row { bytes: 0.0, images: 6, ..row };
        assert_eq!((row.gbps(), row.images_per_second()), (None, Some(2.0)));
        assert_eq!(row.share(&ceilings), Some(0.5));
        // Matrix units have a ceiling of their own: where a kernel used them, and in networks where there
        // are any.
        let units = Row { kernel: "cooperative16".into(), ..row.clone() };
        let network = Row { group: Group::Inference, ..row.clone() };
        assert_eq!(units.share(&ceilings), Some(0.25));
        assert_eq!(network.share(&ceilings), Some(0.25));
        assert_eq!(network.share(&ceilings[..2]), Some(0.5));
        let mut withheld =
            Row { beside: ceilings.to_vec(), host_samples: vec![1.0], flops: 0.0, ..row };
        assert_eq!((withheld.gflops(), withheld.share(&ceilings)), (None, None));
        withheld.flops = 6e9;
        withheld.withhold(Status::Unverified, "it failed".into());
        let left = (withheld.samples.len(), withheld.beside.len(), withheld.host_samples.len());
        assert_eq!((left, withheld.images_per_second()), ((0, 0, 0), None));
    }
}
