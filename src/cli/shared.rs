//! Options that several commands have.

use clap::{Args, ValueEnum};

use crate::error::Result;
use crate::gpu::{AdapterChoice, AdapterClass, Gpu, GpuOptions};
use crate::train::Console;

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
}

/// Which adapter, and how it computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adapter")]
pub struct ComputeOptions {
    #[command(flatten)]
    adapter: AdapterOptions,

    /// How numbers are stored and multiplied
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,

    /// Keep the shader compiler's bounds checks [default: off]
    #[arg(long)]
    checked: bool,
}

/// How numbers are stored and multiplied.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    /// Single precision throughout
    F32,
}

impl ComputeOptions {
    /// Opens the adapter and says which it is; a software adapter that nobody asked for is a
    /// warning.
    pub fn open(&self, console: &Console) -> Result<Gpu> {
        let Precision::F32 = self.precision;
        let choice = self.adapter.choice();
        let named = choice.adapter.is_some() || choice.backend.is_some();
        let gpu = Gpu::open(choice, GpuOptions { checked: self.checked, ..GpuOptions::default() })?;
        let report = gpu.report();
        let line = format!("{} ({}, {})", report.name, report.backend, report.driver);
        match report.class {
            AdapterClass::Software if !named => console.warning(format_args!(
                "no GPU found, so the processor computes: {line}; `wgrad devices` lists what there is"
            )),
            _ => console.note(format_args!("adapter: {line}")),
        }
        Ok(gpu)
    }
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
