//! The command line: one file a command, each options → configuration → call.

mod bench;
mod devices;
mod evaluate;
mod explain;
mod export;
mod fuse;
mod inspect;
pub mod interrupt;
mod predict;
mod shared;
mod train;
mod values;
mod verify;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// Fine-tunes residual networks on any GPU: one binary, no CUDA, no Python.
///
/// Exit codes: 0 success, 1 the work failed, 2 wrong usage, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "wgrad", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Finetune(train::Finetune),
    Pretrain(train::Pretrain),
    Evaluate(evaluate::Evaluate),
    Predict(predict::Predict),
    Explain(explain::Explain),
    Fuse(fuse::Fuse),
    Verify(verify::Verify),
    Bench(bench::Bench),
    Devices(devices::Devices),
    Inspect(inspect::Inspect),
    Export(export::Export),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// Whatever kept it from being done; see [`Error::exit_code`](crate::Error::exit_code).
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Finetune(command) => command.run(),
            Command::Pretrain(command) => command.run(),
            Command::Evaluate(command) => command.run(),
            Command::Predict(command) => command.run(),
            Command::Explain(command) => command.run(),
            Command::Fuse(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Devices(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Export(command) => command.run(),
        }
    }
}
