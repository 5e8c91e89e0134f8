//! Evaluating a network on labelled images.

use std::collections::VecDeque;

use super::Interrupt;
use super::metrics::{Metrics, Tally};
use super::network::Network;
use super::saving::HeldOut;
use crate::data::{Augment, Batch, Items, Loader, Order, Skipped, Transform};
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

    /// What else they are called; empty where the weights do not say.
    fn class_ids(&self) -> &[String];

    /// How images were held out of its training, where the weights say so; several where networks were
    /// trained on different images.
    fn held_out(&self) -> Vec<HeldOut>;

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

    fn class_ids(&self) -> &[String] {
        &self.class_ids
    }

    fn held_out(&self) -> Vec<HeldOut> {
        self.held_out.iter().cloned().collect()
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

/// How images are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Images at a time.
    pub batch_size: usize,
    /// Threads that load images; 0 for one a core.
    pub workers: usize,
    /// Whether the logits are the mean of the image's and its mirror image's.
    pub flip: bool,
}

/// Lets a network, or several together, answer every item, resized and cropped as in validation.
///
/// # Errors
/// [`crate::Error::Interrupted`], too many unreadable images, and what the device reported.
pub fn judge(
    gpu: &Gpu,
    classifier: &(impl Classifier + ?Sized),
    items: &Items,
    batch_size: usize,
    workers: usize,
    interrupt: &Interrupt,
) -> Result<Judged> {
    let mut tally = Tally::new(classifier.classes().len());
    let asking = Asking { batch_size, workers, flip: false };
    let failed = ask(gpu, classifier, items, asking, interrupt, |logits, batch| {
        tally.add(logits, &batch.labels, &batch.items);
    })?;
    Ok(Judged { metrics: tally.metrics(), failed })
}

/// Asks the network about every item, resized and cropped as in validation, and passes on the logits
/// (images × classes) of each batch. Returns the images that could not be read.
///
/// # Errors
/// Those of [`judge`].
pub fn ask(
    gpu: &Gpu,
    classifier: &(impl Classifier + ?Sized),
    items: &Items,
    asking: Asking,
    interrupt: &Interrupt,
    mut answered: impl FnMut(&[f32], &Batch),
) -> Result<Vec<Skipped>> {
    let mut failed = Vec::new();
    let mut pending: VecDeque<(Reply, Option<Reply>, Batch)> = VecDeque::new();
    let mut settle = |(answer, mirrored, batch): (Reply, Option<Reply>, Batch)| -> Result<()> {
        let mut logits = answer()?;
        if let Some(mirrored) = mirrored {
            let mirrored = mirrored()?;
            logits.iter_mut().zip(mirrored).for_each(|(to, other)| *to = (*to + other) / 2.0);
        }
        answered(&logits, &batch);
        Ok(())
    };
    let batch_size = classifier.images_at_a_time(gpu, asking.batch_size);
    for batch in in_order(items, classifier.image_size(), batch_size, asking.workers)? {
        interrupt.check()?;
        let mut batch = batch?;
        failed.append(&mut batch.failed);
        if batch.labels.is_empty() {
            continue;
        }
        let mut pixels = std::mem::take(&mut batch.pixels);
        let answer = classifier.answer(gpu, &pixels, batch.labels.len())?;
        let mirrored = match asking.flip {
            true => {
                mirror(&mut pixels, classifier.image_size() as usize);
                Some(classifier.answer(gpu, &pixels, batch.labels.len())?)
            }
            false => None,
        };
        pending.push_back((answer, mirrored, batch));
        if pending.len() > IN_FLIGHT
            && let Some(oldest) = pending.pop_front()
        {
            settle(oldest)?;
        }
    }
    pending.into_iter().try_for_each(settle)?;
    Ok(failed)
}

/// Turns left and right about in images `width` pixels wide.
fn mirror(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(3 * width) {
        bytemuck::cast_slice_mut::<u8, [u8; 3]>(row).reverse();
    }
}

/// Loads items in their order, without augmentation.
///
/// # Errors
/// Those of starting the loader.
pub fn in_order(items: &Items, size: u32, batch_size: usize, workers: usize) -> Result<Loader> {
    let order = Order { seed: 0, epoch: 0, shuffle: false, batch_size, drop_last: false };
    let transform = Transform { size, augment: Augment::None, auto_augment: None };
    Loader::new(items.clone(), order.batches(items.len()), transform, 0, 0, workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirroring_reverses_the_pixels_of_each_row() {
        let mut pixels: Vec<u8> = (0..12).collect();
        mirror(&mut pixels, 2);
        assert_eq!(pixels, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }
}
