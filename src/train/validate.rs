//! Evaluating a network on labelled images.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Interrupt;
use super::metrics::{Metrics, Tally};
use super::network::Network;
use crate::data::{Augment, Item, Loader, Order, Skipped, Transform};
use crate::error::Result;
use crate::gpu::Gpu;

/// Batches whose answers may be on their way.
const IN_FLIGHT: usize = 2;

/// Logits that are on their way from the device, and how to wait for them.
pub type Reply = Box<dyn FnOnce() -> Result<Vec<f32>>>;

/// What answers images: a network, or several together.
pub trait Classifier {
    /// What the outputs stand for.
    fn classes(&self) -> &[String];

    /// Side of the square input in pixels.
    fn image_size(&self) -> u32;

    /// How many of `images` images the adapter can take at a time.
    fn images_at_a_time(&self, gpu: &Gpu, images: usize) -> usize;

    /// Logits of `count` images given as bytes.
    ///
    /// # Errors
    /// What the device reported.
    fn answer(&self, gpu: &Gpu, pixels: &[u8], count: usize) -> Result<Reply>;
}

impl Classifier for Network {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn image_size(&self) -> u32 {
        self.image_size
    }

    fn images_at_a_time(&self, gpu: &Gpu, images: usize) -> usize {
        self.images_at_a_time(gpu, images)
    }

    fn answer(&self, gpu: &Gpu, pixels: &[u8], count: usize) -> Result<Reply> {
        let answer = self.evaluate(gpu, pixels, count)?;
        Ok(Box::new(|| answer.wait()))
    }
}

/// What evaluating a network gave.
pub struct Judged {
    /// How good its answers were.
    pub metrics: Metrics,
    /// Images that could not be read.
    pub failed: Vec<Skipped>,
}

/// Lets a network, or several together, answer every item, resized and cropped as in validation.
///
/// # Errors
/// [`crate::Error::Interrupted`], too many unreadable images, and what the device reported.
pub fn judge(
    gpu: &Gpu,
    classifier: &(impl Classifier + ?Sized),
    items: &Arc<[Item]>,
    batch_size: usize,
    workers: usize,
    interrupt: &Interrupt,
) -> Result<Judged> {
    let mut tally = Tally::new(classifier.classes().len());
    let mut failed = Vec::new();
    let mut pending: VecDeque<(Reply, Vec<u32>)> = VecDeque::new();
    let batch_size = classifier.images_at_a_time(gpu, batch_size);
    for batch in in_order(items, classifier.image_size(), batch_size, workers)? {
        interrupt.check()?;
        let batch = batch?;
        failed.extend(batch.failed);
        if batch.labels.is_empty() {
            continue;
        }
        let answer = classifier.answer(gpu, &batch.pixels, batch.labels.len())?;
        pending.push_back((answer, batch.labels));
        if pending.len() > IN_FLIGHT
            && let Some((answer, labels)) = pending.pop_front()
        {
            tally.add(&answer()?, &labels);
        }
    }
    for (answer, labels) in pending {
        tally.add(&answer()?, &labels);
    }
    Ok(Judged { metrics: tally.metrics(), failed })
}

/// Loads items in their order, without augmentation.
///
/// # Errors
/// Those of starting the loader.
pub fn in_order(
    items: &Arc<[Item]>,
    size: u32,
    batch_size: usize,
    workers: usize,
) -> Result<Loader> {
    let order = Order { seed: 0, epoch: 0, shuffle: false, batch_size, drop_last: false };
    let transform = Transform { size, augment: Augment::None, auto_augment: None };
    Loader::new(items.clone(), order.batches(items.len()), transform, 0, 0, workers)
}
