//! Evaluating a network on labelled images.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Interrupt;
use super::metrics::{Metrics, Tally};
use super::network::{Answer, Network};
use crate::data::{Augment, Item, Loader, Order, Skipped, Transform};
use crate::error::Result;
use crate::gpu::Gpu;

/// Batches whose answers may be on their way.
const IN_FLIGHT: usize = 2;

/// What evaluating a network gave.
pub struct Judged {
    /// How good its answers were.
    pub metrics: Metrics,
    /// Images that could not be read.
    pub failed: Vec<Skipped>,
}

/// Lets the network answer every item, resized and cropped as in validation.
///
/// # Errors
/// [`crate::Error::Interrupted`], too many unreadable images, and what the device reported.
pub fn judge(
    gpu: &Gpu,
    network: &Network,
    items: &Arc<[Item]>,
    batch_size: usize,
    workers: usize,
    interrupt: &Interrupt,
) -> Result<Judged> {
    let mut tally = Tally::new(network.classes.len());
    let mut failed = Vec::new();
    let mut pending: VecDeque<(Answer, Vec<u32>)> = VecDeque::new();
    let batch_size = network.images_at_a_time(gpu, batch_size);
    for batch in in_order(items, network.image_size, batch_size, workers)? {
        interrupt.check()?;
        let batch = batch?;
        failed.extend(batch.failed);
        if batch.labels.is_empty() {
            continue;
        }
        let answer = network.evaluate(gpu, &batch.pixels, batch.labels.len())?;
        pending.push_back((answer, batch.labels));
        if pending.len() > IN_FLIGHT
            && let Some((answer, labels)) = pending.pop_front()
        {
            tally.add(&answer.wait()?, &labels);
        }
    }
    for (answer, labels) in pending {
        tally.add(&answer.wait()?, &labels);
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
