//! `wgrad fuse`: several networks into one, or into one answer.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::interrupt;
use super::shared::{ComputeOptions, OutputOptions, resolve_all};
use super::train::Distill;
use crate::checkpoint::Source;
use crate::error::Result;
use crate::fuse::{Average, FuseConfig, Recipe, ensemble, interpolate, soup};
use crate::gpu::Gpu;
use crate::train::config::DataSource;
use crate::train::{Console, Interrupt};

/// Joins networks: interpolation, soups, ensembles, distillation
#[derive(Args, Debug)]
pub struct Fuse {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Subcommand)]
enum Method {
    Interpolate(Interpolate),
    Soup(Soup),
    Ensemble(Ensemble),
    Distill(Box<Distill>),
}

impl Fuse {
    pub fn run(self) -> Result<()> {
        match self.method {
            Method::Interpolate(command) => command.run(),
            Method::Soup(command) => command.run(),
            Method::Ensemble(command) => command.run(),
            Method::Distill(command) => command.run(),
        }
    }
}

/// Weights on the line from A to B: (1 − α)·A + α·B, as WiSE-FT
///
/// Measures every α on the validation images and writes the best to weights/fused.safetensors and,
/// as a run's best is called, to weights/best.safetensors, the curve to curve.csv and curve.png, and
/// everything measured to results.jsonl. A pretrained network and its fine-tuned child have
/// classifiers for different classes: then the backbones are interpolated and the classifier that
/// is for the data's classes is kept. Batch-norm statistics are computed anew on the training
/// images, except where the result is A or B itself.
#[derive(Args, Debug)]
struct Interpolate {
    /// Where the line begins: FILE, a run's folder, bundled, imagenet or hf:REPO[/FILE]
    #[arg(value_name = "A")]
    a: Source,

    /// Where it ends
    #[arg(value_name = "B")]
    b: Source,

    /// The shares of B, each 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        num_args = 1..,
        default_values = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"],
        hide_default_value = true,
        help = "The shares of B, each 0 to 1 [default: 0 0.1 … 1]"
    )]
    alpha: Vec<f64>,

    /// Write every point of the line, to weights/alpha-SHARE.safetensors [default: only the best]
    #[arg(long)]
    save_all: bool,

    #[command(flatten)]
    options: FuseOptions,
}

impl Interpolate {
    fn run(self) -> Result<()> {
        let Self { a, b, alpha, save_all, options } = self;
        options.run(&[a, b], |gpu, config, paths, console, interrupt| {
            let ends = [paths[0].clone(), paths[1].clone()];
            interpolate(gpu, config, ends, &alpha, save_all, console, interrupt)
        })
    }
}

/// The average of several fine-tunes of one network
///
/// Measures every network on the validation images, then their ensemble, then the soup, with the
/// averaged and with recalibrated batch-norm statistics. Writes the soup to
/// weights/fused.safetensors and, as a run's best is called, to weights/best.safetensors, and
/// everything measured to results.jsonl.
#[derive(Args, Debug)]
struct Soup {
    /// The networks: FILE, a run's folder, bundled, imagenet or hf:REPO[/FILE]
    #[arg(value_name = "CKPT", required = true)]
    networks: Vec<Source>,

    /// Average all [default: --greedy]
    #[arg(long, conflicts_with = "greedy")]
    uniform: bool,

    /// From the best by validation accuracy downwards, average each that strictly improves it [default:
    /// on, unless --uniform]
    #[arg(long)]
    greedy: bool,

    #[command(flatten)]
    options: FuseOptions,
}

impl Soup {
    fn run(self) -> Result<()> {
        let recipe = if self.uniform { Recipe::Uniform } else { Recipe::Greedy };
        self.options.run(&self.networks, |gpu, config, paths, console, interrupt| {
            soup(gpu, config, paths, recipe, console, interrupt)
        })
    }
}

/// Several networks, of any depth, that answer together
///
/// Measures each and all together, and writes ensemble.json, which evaluate, predict and export take
/// for --weights. Classes are matched by name, or by the ids that weights may give them.
#[derive(Args, Debug)]
struct Ensemble {
    /// The networks: FILE, a run's folder, bundled, imagenet or hf:REPO[/FILE]
    #[arg(value_name = "CKPT", required = true)]
    networks: Vec<Source>,

    /// What is averaged
    #[arg(long, value_enum, default_value_t = Average::Probabilities)]
    average: Average,

    #[command(flatten)]
    options: FuseOptions,
}

impl Ensemble {
    fn run(self) -> Result<()> {
        let average = self.average;
        self.options.run(&self.networks, |gpu, config, paths, console, interrupt| {
            ensemble(gpu, config, paths, average, console, interrupt)
        })
    }
}

#[derive(Args, Debug)]
struct FuseOptions {
    #[command(flatten)]
    images: ImageOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    output: OutputOptions,

    /// A new or empty folder to write to [default: the first free of runs/fuse, runs/fuse-2, …]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    output_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Images")]
struct ImageOptions {
    /// A folder of class folders, or with train/ and val/ (and test/), or a .tar or .tar.gz archive
    /// of one, or a folder of such archives; demo is the bundled clip art
    #[arg(long, value_name = "DIR|ARCHIVE|demo", default_value = "demo")]
    data: DataSource,

    /// The share of each class held out for validation where the folder has no val/
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, allow_negative_numbers = true)]
    val_fraction: f64,

    /// The share of each class of the validation images that nothing is chosen by, where the folder
    /// has no test/: what is reported on it does not flatter
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    test_fraction: f64,

    /// Side of the square input in pixels; needed where the networks' own differ [default: the networks'
    /// own, else 224]
    #[arg(long, value_name = "N")]
    image_size: Option<u32>,

    /// Images at a time, also of a batch of batch-norm statistics
    #[arg(short, long, value_name = "N", default_value = "32")]
    batch_size: NonZero<usize>,

    /// Leave batch norm with the average of the networks' statistics, to see the harm [default: off]
    #[arg(long)]
    no_recalibrate: bool,

    /// Decides which images are held out, as the networks' own training did
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,

    /// Threads that load images; 0 for one a core
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = super::values::workers()
    )]
    workers: usize,
}

impl FuseOptions {
    /// Finds the networks, opens the adapter and hands over to `fuse`.
    fn run(
        self,
        networks: &[Source],
        fuse: impl FnOnce(&Gpu, FuseConfig, &[PathBuf], &Console, &Interrupt) -> Result<()>,
    ) -> Result<()> {
        let console = self.output.console();
        let interrupt = interrupt::install();
        let paths = resolve_all(networks, &console)?;
        let ImageOptions {
            data,
            val_fraction,
            test_fraction,
            image_size,
            batch_size,
            no_recalibrate,
            seed,
            workers,
        } = self.images;
        let config = FuseConfig {
            data,
            val_fraction,
            test_fraction,
            image_size,
            batch_size: batch_size.get(),
            seed,
            workers,
            recalibrate: !no_recalibrate,
            output_dir: self.output_dir,
        };
        config.check()?;
        let gpu = self.compute.open(&console)?;
        fuse(&gpu, config, &paths, &console, &interrupt)
    }
}
