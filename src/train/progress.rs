//! Where a run is.

use serde::{Deserialize, Serialize};

use super::metrics::Validation;
use super::step::Done;

/// Where a run is, between two steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epochs done, over all phases.
    pub epoch: u32,
    /// Steps begun, over all phases.
    pub step: u64,
    /// Steps begun in this phase.
    pub phase_step: u64,
    /// Batches of this epoch that have been taken, with those too small for a step.
    pub batches: usize,
    /// What this epoch's steps gave.
    pub totals: Totals,
    /// The best epoch so far; none before the first validation.
    pub best: Option<Best>,
    /// What the run took so far.
    pub seconds: f64,
    /// Device memory at the end of the latest epoch; 0 where that was not noted.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Whether nothing is left to do.
    pub complete: bool,
    /// The choices of kernels by `--tune` that the latest steps went by, as [`crate::tune::digest`]
    /// has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<String>,
}

/// An epoch and how the network did after it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Counts from 1.
    pub epoch: u32,
    /// How the network did.
    pub val: Validation,
}

/// What the steps of an epoch gave together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Images seen.
    pub images: usize,
    /// Sum of their losses.
    loss: f64,
    /// Images that were right.
    right: f64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// What the steps took.
    pub seconds: f64,
}

impl Totals {
    /// Adds a step.
    pub fn add(&mut self, done: &Done) {
        let images = done.batch.labels.len();
        self.images += images;
        self.loss += done.loss * images as f64;
        self.right += done.right;
        self.learning_rate = done.learning_rate;
        self.seconds += done.seconds;
    }

    /// Mean loss, each image's before the update of its step.
    pub fn loss(&self) -> f64 {
        self.loss / self.images as f64
    }

    /// Share of the images that were right.
    pub fn top1(&self) -> f64 {
        self.right / self.images as f64
    }
}
