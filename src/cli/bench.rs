//! `wgrad bench`: how fast an adapter is, to a file, and files side by side.

use std::path::PathBuf;

use clap::Args;

use super::shared::{AdapterOptions, OutputOptions, PrecisionOption};
use crate::bench::{BenchFile, Settings, compare, page, run};
use crate::checkpoint::{check_writable, write_atomically};
use crate::error::{Context, Error, Result};
use crate::gpu::choose;

/// The adapter's own ceilings, every operation's passes, whole training steps; files to compare
///
/// Every kernel is checked first, and one that is wrong shows no time. With --compare nothing is
/// measured.
#[derive(Args, Debug)]
pub struct Bench {
    #[command(flatten)]
    adapter: AdapterOptions,
    #[command(flatten)]
    precision: PrecisionOption,

    /// Fewer networks and shorter samples, about a minute on two cores [default: off]
    #[arg(long)]
    quick: bool,

    /// Only operations with this in their name, and no networks [default: everything]
    #[arg(long, value_name = "PART")]
    op: Option<String>,

    /// First measure which kernels are the fastest on this adapter, and keep that for later runs
    /// [default: off]
    #[arg(long)]
    tune: bool,

    /// Writes what was measured, raw samples included, to share and to compare [default: none]
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,

    /// Compares files that --json-file wrote [default: none]
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["quick", "op", "tune", "json_file"])]
    compare: Vec<PathBuf>,

    /// Writes a page with tables and charts, of the files compared or else of what was measured
    /// [default: none]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    #[command(flatten)]
    output: OutputOptions,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        for path in [&self.json_file, &self.html].into_iter().flatten() {
            check_writable(path).context(|| "checking where the benchmark goes")?;
        }
        let files = match self.compare.is_empty() {
            true => {
                let adapter = choose(&self.adapter.choice())?.report;
                let mixed = self.precision.resolve(adapter.f16, &adapter.name, &console);
                let settings = Settings { quick: self.quick, op: self.op, tune: self.tune, mixed };
                let file = run(adapter.index, &settings, &console)
                    .context(|| format!("measuring {}", adapter.name))?;
                if let Some(path) = &self.json_file {
                    file.write(path)?;
                    console.note(format_args!("written to {}", path.display()));
                }
                vec![file]
            }
            false => {
                let read =
                    |path: &PathBuf| BenchFile::read(path).context(|| "comparing benchmarks");
                let files = self.compare.iter().map(read).collect::<Result<Vec<_>>>()?;
                match console.is_json() {
                    true => {
                        let mut objects = compare::objects(&files).into_iter();
                        objects.try_for_each(|object| console.answer(object))?;
                    }
                    false => console.answer(compare::table(&files).trim_end())?,
                }
                files
            }
        };
        if let Some(path) = &self.html {
            let page = page::html(&files);
            write_atomically(path, |file| std::io::Write::write_all(file, page.as_bytes()))?;
            console.note(format_args!("page written to {}", path.display()));
        }
        let failed: usize = files.iter().map(|file| file.verify.failed).sum();
        match self.compare.is_empty() && failed > 0 {
            true => Err(Error::Gpu(format!("{failed} comparisons failed; see `wgrad verify`"))),
            false => Ok(()),
        }
    }
}
