//! Joining what several networks know: weights averaged along a line ([`interpolate`]) or among many
//! ([`soup`]), answers averaged ([`ensemble`]), or one network taught by others, which
//! is training with [`crate::train::Teachers`].
//!
//! Averages are taken in f64 on the host and rounded once. What an average of weights does to the
//! activations, batch norm's running statistics do not know: they are computed anew on the training
//! images. Every candidate is measured before and after that, on images to choose by (val) and, where
//! there are such, on images to report on (test).

mod average;
mod ensemble;
mod ingredient;
mod inspect;
mod interpolate;
mod journal;
mod judge;
mod kitchen;
mod lineage;
mod onnx;
mod score;
mod soup;

use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::train::config::{DataSource, check_image_size};
use crate::train::run_dir::check_empty;

pub use average::{Tensors, distance, weighted_sum};
pub use ensemble::{Ensemble, ensemble};
pub use inspect::{EnsembleInspection, MemberInspection, describe_ensemble};
pub use interpolate::interpolate;
pub use onnx::export_ensemble;
pub use score::Average;
pub use soup::{Recipe, soup};

/// What every fusion needs to know.
#[derive(Clone, Debug, Serialize)]
pub struct FuseConfig {
    /// The images to recalibrate, choose and report on.
    pub data: DataSource,
    /// Share of each class held out where the folder has no validation split.
    pub val_fraction: f64,
    /// Share of each class of the validation images that is kept for the report.
    pub test_fraction: f64,
    /// Side of the square input in pixels; none for the networks' own, which then must be one, or 224.
    pub image_size: Option<u32>,
    /// Images at a time, and of a batch of batch-norm statistics.
    pub batch_size: usize,
    /// Decides what is held out, and the order of recalibration.
    pub seed: u64,
    /// Threads that load images; 0 for one a core.
    pub workers: usize,
    /// Whether batch-norm statistics are computed anew.
    pub recalibrate: bool,
    /// Where to write; none for the next free name under `runs/`.
    #[serde(skip)]
    pub output_dir: Option<PathBuf>,
}

impl FuseConfig {
    /// Checks what no single option's type can, and that the folder to write to is free.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option, its value, and what it can be.
    pub fn check(&self) -> Result<()> {
        if self.recalibrate && self.batch_size < 2 {
            let what = "--batch-size 1: batch-norm statistics need two images at least; raise it, or \
                        leave the statistics with --no-recalibrate";
            return Err(Error::Usage(what.into()));
        }
        self.output_dir.as_deref().map_or(Ok(()), check_empty)?;
        self.image_size.map_or(Ok(()), check_image_size)
    }
}
