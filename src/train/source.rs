//! Where a phase's batches come from: images, or cached features of them.

use std::rc::Rc;
use std::sync::Arc;

use super::config::Config;
use super::features::Features;
use super::interrupt::Interrupt;
use super::network::Network;
use super::step::Inputs;
use super::teachers::Targets;
use super::validate::{Judged, judge};
use crate::data::{Item, Loader, Order, Skipped, Transform};
use crate::error::Result;
use crate::gpu::Gpu;

/// Where a phase's images come from.
pub enum Source {
    /// Cached features of the training and validation images.
    Features {
        /// Of the training images.
        train: Features,
        /// Of the validation images.
        val: Features,
        /// What the teachers make of the training images, where there are teachers.
        targets: Option<Rc<Targets>>,
    },
    /// The images themselves.
    Images {
        /// The training images.
        train: Arc<[Item]>,
        /// The validation images.
        val: Arc<[Item]>,
        /// What the teachers make of the training images, where there are teachers and images are
        /// always the same.
        targets: Option<Rc<Targets>>,
    },
}

/// A batch as a step takes it.
pub struct Batch {
    /// Bytes of the images, or nothing.
    pub pixels: Vec<u8>,
    /// Features of the images, or nothing.
    pub features: Vec<f32>,
    /// What the teachers make of the images, or nothing: images × classes.
    pub targets: Vec<f32>,
    /// The class of each image.
    pub labels: Vec<u32>,
    /// Images that could not be read.
    pub failed: Vec<Skipped>,
}

impl Batch {
    /// What the network takes.
    pub fn inputs(&self) -> Inputs<'_> {
        match self.pixels.is_empty() {
            true => Inputs::Features(&self.features),
            false => Inputs::Pixels(&self.pixels),
        }
    }
}

/// The batches of an epoch.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

impl Source {
    /// A batch of `images` as large as any, to plan with.
    pub fn blank(&self, network: &Network, images: usize) -> Batch {
        let side = network.image_size as usize;
        let (pixels, features) = match self {
            Self::Features { train, .. } => (0, train.size),
            Self::Images { .. } => (side * side * 3, 0),
        };
        Batch {
            pixels: vec![0; images * pixels],
            features: vec![0.0; images * features],
            targets: match self {
                Self::Features { targets: Some(_), .. } | Self::Images { targets: Some(_), .. } => {
                    vec![0.0; images * network.net.classes()]
                }
                _ => Vec::new(),
            },
            labels: vec![0; images],
            failed: Vec::new(),
        }
    }

    /// Training images there are.
    pub fn train_images(&self) -> usize {
        match self {
            Self::Features { train, .. } => train.labels.len(),
            Self::Images { train, .. } => train.len(),
        }
    }

    /// The images of each batch of an epoch (counted from 0 over the whole run); batches of fewer
    /// than `smallest` are left out.
    pub fn batches(&self, config: &Config, epoch: u32, smallest: usize) -> Vec<Vec<usize>> {
        let order = Order {
            seed: config.seed,
            epoch: epoch.into(),
            shuffle: config.shuffle,
            batch_size: config.step_images(),
            drop_last: config.drop_last,
        };
        let mut batches = order.batches(self.train_images());
        batches.retain(|batch| batch.len() >= smallest);
        batches
    }

    /// Loads `batches` of an epoch.
    ///
    /// # Errors
    /// Those of starting the loader.
    pub fn load<'a>(
        &'a self,
        config: &Config,
        network: &Network,
        epoch: u32,
        batches: Vec<Vec<usize>>,
    ) -> Result<Batches<'a>> {
        match self {
            Self::Features { train, targets, .. } => {
                let select = move |images: Vec<usize>| {
                    let (features, labels) = train.select(&images);
                    let items: Vec<usize> = images.iter().map(|&at| train.items[at]).collect();
                    let targets = selected(targets.as_ref(), &items);
                    let (pixels, failed) = (Vec::new(), Vec::new());
                    Ok(Batch { pixels, features, targets, labels, failed })
                };
                Ok(Box::new(batches.into_iter().map(select)))
            }
            Self::Images { train, targets, .. } => {
                let transform = Transform { size: network.image_size, augment: config.augment };
                let (seed, workers) = (config.seed, config.workers);
                let loader =
                    Loader::new(train.clone(), batches, transform, seed, epoch.into(), workers)?;
                let take = move |batch: Result<crate::data::Batch>| {
                    batch.map(|batch| Batch {
                        pixels: batch.pixels,
                        features: Vec::new(),
                        targets: selected(targets.as_ref(), &batch.items),
                        labels: batch.labels,
                        failed: batch.failed,
                    })
                };
                Ok(Box::new(loader.map(take)))
            }
        }
    }

    /// How good the network's answers to the validation images are; none without such.
    ///
    /// # Errors
    /// Those of [`judge`].
    pub fn validate(
        &self,
        gpu: &Gpu,
        network: &Network,
        config: &Config,
        interrupt: &Interrupt,
    ) -> Result<Option<Judged>> {
        let batch = config.batch_size;
        match self {
            Self::Features { val, .. } if !val.labels.is_empty() => {
                let metrics = val.judge(gpu, network, batch)?;
                Ok(Some(Judged { metrics, failed: Vec::new() }))
            }
            Self::Images { val, .. } if !val.is_empty() => {
                judge(gpu, network, val, batch, config.workers, interrupt).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn selected(targets: Option<&Rc<Targets>>, items: &[usize]) -> Vec<f32> {
    targets.map(|targets| targets.select(items)).unwrap_or_default()
}
