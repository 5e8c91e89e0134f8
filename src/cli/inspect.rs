//! `wgrad inspect`: what a checkpoint holds.

use std::path::PathBuf;

use clap::Args;

use crate::checkpoint::describe;
use crate::error::{Context, Result};
use crate::train::Console;

/// What a checkpoint holds: architecture, classes, tensors, dtype, provenance
#[derive(Args, Debug)]
pub struct Inspect {
    /// The safetensors file
    file: PathBuf,

    /// The same as one JSON object [default: off]
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let found = describe(&self.file).context(|| "reading the checkpoint")?;
        let console = Console::new(false, false, self.json);
        match self.json {
            true => console.answer_json(&found),
            false => console.answer(found),
        }
    }
}
