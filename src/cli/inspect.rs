//! `wgrad inspect`: what a checkpoint holds.

use std::fmt::Display;

use clap::Args;
use serde::Serialize;

use super::shared::{OutputOptions, trained};
use crate::checkpoint::{Source, describe};
use crate::error::{Context, Result};
use crate::fuse::{Ensemble, describe_ensemble};
use crate::train::Console;

/// What a checkpoint holds: architecture, classes, tensors, dtype, provenance
#[derive(Args, Debug)]
pub struct Inspect {
    /// The checkpoint, an ensemble.json, or a run's folder for its best
    #[arg(value_name = "FILE|RUN|bundled|imagenet|hf:REPO[/FILE]")]
    file: Source,

    #[command(flatten)]
    output: OutputOptions,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let doing = || "reading the checkpoint";
        let path = trained(Some(&self.file), &console).context(doing)?;
        match Ensemble::is_manifest(&path) {
            true => tell(&console, describe_ensemble(&path).context(doing)?),
            false => tell(&console, describe(&path).context(doing)?),
        }
    }
}

fn tell(console: &Console, found: impl Display + Serialize) -> Result<()> {
    match console.is_json() {
        true => console.answer_json(&found),
        false => console.answer(found),
    }
}
