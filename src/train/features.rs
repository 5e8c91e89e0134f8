//! What frozen layers make of images, computed once.

use super::config::Config;
use super::interrupt::Interrupt;
use super::metrics::{Metrics, Tally};
use super::network::{Answer, Network};
use super::validate::in_order;
use crate::Tape;
use crate::data::{Items, Skipped};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::nn::{Mode, Stage};

/// What the layers before a stage make of images, computed once: in evaluation, of the resized and
/// cropped image.
pub struct Features {
    /// The first stage that is not part of it.
    first: Stage,
    /// Images × features.
    pub values: Vec<f32>,
    /// The class of each image.
    pub labels: Vec<u32>,
    /// Which item each image is.
    pub items: Vec<usize>,
    /// Features of an image.
    pub size: usize,
}

impl Features {
    /// Runs the layers before `first` over every item. Images that cannot be read are left out and
    /// returned.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], too many unreadable images, and what the device reported.
    pub fn compute(
        gpu: &Gpu,
        network: &Network,
        first: Stage,
        items: &Items,
        config: &Config,
        interrupt: &Interrupt,
    ) -> Result<(Self, Vec<Skipped>)> {
        let size = network.activation(first, 1).len();
        let (values, labels, items_seen) = (Vec::new(), Vec::new(), Vec::new());
        let mut features = Self { first, values, labels, items: items_seen, size };
        let mut failed = Vec::new();
        let batch_size = network.images_at_a_time(gpu, config.batch_size);
        for batch in in_order(items, network.image_size, batch_size, config.workers)? {
            interrupt.check()?;
            let batch = batch?;
            failed.extend(batch.failed);
            if batch.labels.is_empty() {
                continue;
            }
            let answer = network.before(gpu, first, &batch.pixels, batch.labels.len())?;
            features.values.extend(answer.wait()?);
            features.labels.extend(batch.labels);
            features.items.extend(batch.items);
        }
        Ok((features, failed))
    }

    /// The features and classes of these images, counted on from the first after the last.
    pub fn select(&self, images: &[usize]) -> (Vec<f32>, Vec<u32>) {
        let count = self.labels.len();
        let images = || images.iter().map(|image| image % count);
        let rows = images().flat_map(|i| &self.values[i * self.size..(i + 1) * self.size]);
        (rows.copied().collect(), images().map(|i| self.labels[i]).collect())
    }

    /// How good the answers of the layers that follow are.
    ///
    /// # Errors
    /// What the device reported.
    pub fn judge(&self, gpu: &Gpu, network: &Network, batch_size: usize) -> Result<Metrics> {
        let mut tally = Tally::new(network.classes.len());
        let images: Vec<usize> = (0..self.labels.len()).collect();
        for images in images.chunks(network.images_at_a_time(gpu, batch_size)) {
            let (values, labels) = self.select(images);
            let tape = Tape::no_grad(gpu);
            let values = network.features(gpu, self.first, &values, images.len())?;
            let logits = network.after(&tape, self.first, values, Mode::EVAL)?;
            let items: Vec<usize> = images.iter().map(|&image| self.items[image]).collect();
            tally.add(&Answer::new(gpu, logits.value())?.wait()?, &labels, &items);
        }
        Ok(tally.metrics())
    }
}
