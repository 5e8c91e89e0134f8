//! Training: what to do, how it went, and where that is written.

pub mod config;
pub mod console;
pub mod metrics;
mod predictor;
pub mod run_dir;

pub use config::Config;
pub use console::Console;
pub use predictor::Predictor;
pub use run_dir::RunDir;

use crate::cli::interrupt::Interrupt;
use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// Trains as `config` says, into a folder of its own under the name `name`.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(
    gpu: &Gpu,
    config: Config,
    name: &str,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<()> {
    interrupt.check()?;
    console.detail(format_args!("{name} on {}: {config:?}", gpu.report().name));
    Err(Error::Usage("training is not part of this build".into()))
}
