//! Options that several commands have.

use std::io::stdin;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::checkpoint::Source;
use crate::data::image_files;
use crate::error::{Context, Error, Result};
use crate::fuse::Ensemble;
use crate::gpu::{AdapterChoice, AdapterClass, FoundAdapter, Gpu, GpuOptions, adapters, choose};
use crate::metrics::is_answer;
use crate::tensor::Dtype;
use crate::train::config::check_image_size;
use crate::train::run_dir::newest_best;
use crate::train::{Classifier, Console, Network};

/// Which adapter.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adapter")]
pub struct AdapterOptions {
    /// An index from `wgrad devices` or a part of the name [default: WGPU_ADAPTER_NAME, else the
    /// best: discrete before integrated before software]
    #[arg(long, value_name = "INDEX|NAME-PART")]
    adapter: Option<String>,

    /// The interface to it [default: WGPU_BACKEND, else any]
    #[arg(long, value_enum)]
    backend: Option<Backend>,
}

/// The interfaces to adapters.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backend {
    Vulkan,
    Metal,
    Dx12,
    Gl,
}

impl AdapterOptions {
    /// What was asked for, on the command line or by the environment.
    pub fn choice(&self) -> AdapterChoice {
        let backend = self.backend.and_then(|backend| backend.to_possible_value());
        AdapterChoice {
            adapter: self.adapter.clone(),
            backend: backend.map(|value| value.get_name().to_owned()),
            power: None,
        }
        .or_environment()
    }

    /// The adapter that was asked for; with `--adapter all` every one of the backend.
    pub fn found(&self) -> Result<Vec<FoundAdapter>> {
        let choice = self.choice();
        if choice.adapter.as_deref() != Some("all") {
            return Ok(vec![choose(&choice)?]);
        }
        choice.of_backend(adapters())
    }
}

/// Which adapter, and how it computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adapter")]
pub struct ComputeOptions {
    #[command(flatten)]
    adapter: AdapterOptions,

    #[command(flatten)]
    precision: PrecisionOption,

    /// Keep the shader compiler's bounds checks [default: off]
    #[arg(long)]
    checked: bool,
}

/// How numbers are stored.
#[derive(Args, Clone, Copy, Debug)]
pub struct PrecisionOption {
    /// How numbers are stored; arithmetic is in single precision
    #[arg(long, value_enum, default_value_t = Precision::F32, help_heading = "Adapter")]
    precision: Precision,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    /// Single precision throughout
    F32,
    /// Activations, their gradients and the weights of convolutions in half precision; f32 where the
    /// adapter has none
    Mixed,
}

impl PrecisionOption {
    /// [`GpuOptions::mixed`] for an adapter that has f16 in shaders or not; says so if it is asked
    /// for and the adapter has not.
    pub fn resolve(self, f16: bool, adapter: &str, console: &Console) -> bool {
        let asked = matches!(self.precision, Precision::Mixed);
        if asked && !f16 {
            console.warning(format_args!(
                "{adapter} has no f16 in shaders, so --precision mixed is f32 here"
            ));
        }
        asked && f16
    }
}

impl ComputeOptions {
    /// Opens the adapter and says which it is; a software adapter that nobody asked for is a
    /// warning.
    pub fn open(&self, console: &Console) -> Result<Gpu> {
        self.open_with(console, GpuOptions::default())
    }

    /// [`ComputeOptions::open`] with more to ask of the device.
    pub fn open_with(&self, console: &Console, options: GpuOptions) -> Result<Gpu> {
        let choice = self.adapter.choice();
        let named = choice.adapter.is_some() || choice.backend.is_some();
        let found = choose(&choice)?;
        let mixed = self.precision.resolve(found.report.f16, &found.report.name, console);
        let options = GpuOptions { checked: self.checked, mixed, ..options };
        let gpu = Gpu::open_adapter(found, options)?;
        let tuned = crate::tune::load(&gpu);
        check_matrix_units(&gpu, console)?;
        let report = gpu.report();
        let line = format!("{} ({}, {})", report.name, report.backend, report.driver);
        match report.class {
            AdapterClass::Software if !named => console.warning(format_args!(
                "no GPU found, so the processor computes: {line}; `wgrad devices` lists what there is"
            )),
            _ => console.note(format_args!("adapter: {line}")),
        }
        if tuned > 0 {
            console.note(format_args!("{tuned} choices of kernels by an earlier --tune are used"));
        }
        Ok(gpu)
    }
}

/// Before matrix units are used, which on a processor that plays GPU they are not unless asked for,
/// sees that they are right; says so if they are not.
fn check_matrix_units(gpu: &Gpu, console: &Console) -> Result<()> {
    if gpu.class() == AdapterClass::Software {
        return Ok(());
    }
    let dtype = if gpu.mixed() { Dtype::F16 } else { Dtype::F32 };
    if let Some(wrong) = crate::tune::check_matrix_units_once(gpu, dtype)? {
        console.warning(format_args!("the adapter's matrix units are not used: {wrong}"));
    }
    Ok(())
}

/// How much is told, and to whom.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputOptions {
    /// One JSON object a line on standard output, everything else on standard error [default: off]
    #[arg(long)]
    json: bool,

    /// Only answers, warnings and errors [default: off]
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// More details [default: off]
    #[arg(short, long)]
    verbose: bool,
}

impl OutputOptions {
    /// The console that was asked for.
    pub fn console(&self) -> Console {
        Console::new(self.quiet, self.verbose, self.json)
    }
}

/// Which trained network.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Network")]
pub struct NetworkOptions {
    /// The checkpoint, or a run's folder for its best [default: the newest
    /// runs/*/weights/best.safetensors]
    #[arg(long, value_name = "FILE|RUN|bundled|imagenet|hf:REPO[/FILE]")]
    weights: Option<Source>,

    #[command(flatten)]
    image_size: ImageSizeOption,
}

impl NetworkOptions {
    /// Finds and loads the network, and says which it is.
    pub fn load(&self, gpu: &Gpu, console: &Console) -> Result<Network> {
        let image_size = self.image_size.checked()?;
        let path = trained(self.weights.as_ref(), console)?;
        if Ensemble::is_manifest(&path) {
            let what = "an ensemble is several networks; name one of them";
            return Err(Error::Usage(format!("{}: {what}", path.display())));
        }
        load_network(gpu, &path, image_size, console)
    }
}

/// Which trained network, or several that answer together.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Network")]
pub struct ClassifierOptions {
    /// The checkpoint, an ensemble.json that `wgrad fuse ensemble` wrote, or a run's folder for its best
    /// [default: the newest runs/*/weights/best.safetensors]
    #[arg(long, value_name = "FILE|RUN|bundled|imagenet|hf:REPO[/FILE]")]
    weights: Option<Source>,

    #[command(flatten)]
    image_size: ImageSizeOption,

    /// Images at a time
    #[arg(short, long, value_name = "N", default_value = "32")]
    batch_size: NonZero<usize>,
}

impl ClassifierOptions {
    /// Finds and loads the network or the networks, and says which they are.
    pub fn load(&self, gpu: &Gpu, console: &Console) -> Result<Box<dyn Classifier>> {
        let image_size = self.image_size.checked()?;
        let path = trained(self.weights.as_ref(), console)?;
        if !Ensemble::is_manifest(&path) {
            return Ok(Box::new(load_network(gpu, &path, image_size, console)?));
        }
        let ensemble = Ensemble::load(gpu, &path, image_size)?;
        console.note(format_args!(
            "ensemble: {} networks, {} classes, {} px, from {}",
            ensemble.members().len(),
            ensemble.classes().len(),
            ensemble.image_size(),
            path.display()
        ));
        Ok(Box::new(ensemble))
    }

    /// Images at a time.
    pub fn batch_size(&self) -> usize {
        self.batch_size.get()
    }
}

/// How large images are when the network sees them.
#[derive(Args, Clone, Copy, Debug)]
struct ImageSizeOption {
    /// Side of the square input in pixels [default: the weights' own, else 224]
    #[arg(long, value_name = "N", help_heading = "Network")]
    image_size: Option<u32>,
}

impl ImageSizeOption {
    fn checked(self) -> Result<Option<u32>> {
        self.image_size.map_or(Ok(()), check_image_size)?;
        Ok(self.image_size)
    }
}

fn load_network(
    gpu: &Gpu,
    path: &Path,
    image_size: Option<u32>,
    console: &Console,
) -> Result<Network> {
    let network = Network::load(gpu, path, image_size)?;
    console.note(format_args!(
        "network: {}, {} classes, {} px, from {}",
        network.net.arch(),
        network.classes.len(),
        network.image_size,
        path.display()
    ));
    Ok(network)
}

/// The file of a trained network, downloaded first if need be; the newest run's best if none is named.
pub fn trained(weights: Option<&Source>, console: &Console) -> Result<PathBuf> {
    let Some(source) = weights else { return newest_best() };
    source
        .resolve(&mut console.download(source))?
        .ok_or_else(|| Error::Usage("none: there is nothing to ask; name a checkpoint".into()))
}

/// The files of networks to fuse, downloaded first if need be.
pub fn resolve_all(networks: &[Source], console: &Console) -> Result<Vec<PathBuf>> {
    let find = |source: &Source| {
        let path = source
            .resolve(&mut console.download(source))
            .context(|| format!("finding the network {source}"))?;
        path.ok_or_else(|| Error::Usage("none: there is nothing to fuse; name a checkpoint".into()))
    };
    networks.iter().map(find).collect()
}

/// Checks that the network's logits for the image at `path` are an answer.
///
/// # Errors
/// [`Error::Data`] if they are not.
pub fn check_answer(path: &Path, logits: &[f32]) -> Result<()> {
    if is_answer(logits) {
        return Ok(());
    }
    let what = "the network's answer is no number, for a sum in it overflows; take other weights, and \
                --precision f32 if this was mixed";
    Err(Error::data(path, what))
}

/// Images that were told about and left out.
pub struct Skips<'a> {
    console: &'a Console,
    first: Option<PathBuf>,
    count: usize,
}

impl<'a> Skips<'a> {
    /// None yet.
    pub fn new(console: &'a Console) -> Self {
        Self { console, first: None, count: 0 }
    }

    /// Tells of an image that is left out because of `error`.
    pub fn add(&mut self, path: &Path, error: &Error) {
        self.console.warning(format_args!("{error}; skipped"));
        self.first.get_or_insert_with(|| path.to_owned());
        self.count += 1;
    }

    /// Fails if there were any, now that all others are answered.
    pub fn into_result(self) -> Result<()> {
        let Some(path) = self.first else { return Ok(()) };
        let what = match self.count {
            1 => "was skipped; the warning says why".to_owned(),
            count => {
                format!("was skipped, and so were {} more; the warnings say why", count - 1)
            }
        };
        Err(Error::data(path, what))
    }
}

/// The image files that arguments name: files, folders, and `-` for a list of both on standard input.
pub fn expand(arguments: &[PathBuf], skips: &mut Skips) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for argument in arguments {
        if argument.as_os_str() == "-" {
            for line in stdin().lines() {
                let line = line.map_err(Error::io("standard input"))?;
                if !line.is_empty() {
                    expand_path(Path::new(&line), &mut images, skips);
                }
            }
        } else {
            expand_path(argument, &mut images, skips);
        }
    }
    Ok(images)
}

fn expand_path(path: &Path, images: &mut Vec<PathBuf>, skips: &mut Skips) {
    if !path.is_dir() {
        return images.push(path.to_owned());
    }
    match image_files(path) {
        Ok((found, others)) => {
            if !others.is_empty() {
                skips.console.note(format_args!("{}: left out {others}", path.display()));
            }
            if found.is_empty() {
                skips.add(path, &Error::data(path, "the folder holds no image"));
            }
            images.extend(found);
        }
        Err(error) => skips.add(path, &error),
    }
}
