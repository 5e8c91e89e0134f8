//! What is trained for how long: the classifier on cached features, or the network on images.

use std::sync::Arc;

use super::config::Config;
use super::interrupt::Interrupt;
use super::metrics::{Metrics, Tally};
use super::network::{Answer, Network};
use super::step::Inputs;
use super::validate::{Judged, in_order, judge};
use crate::Tape;
use crate::data::{Item, Loader, Order, Skipped, Transform};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::nn::{Mode, Stage};
use crate::tensor::{Shape, Tensor};

/// A part of a run with its own optimizer and schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What the console calls it.
    pub name: &'static str,
    /// The first stage that is trained.
    pub train_from: Stage,
    /// How long.
    pub epochs: u32,
    /// The learning rate that the schedule multiplies.
    pub learning_rate: f64,
    /// Epochs in which the rate rises linearly at first.
    pub warmup_epochs: u32,
}

impl Phase {
    /// The phases of a run: the classifier alone, then everything that is not frozen.
    pub fn all(config: &Config) -> Vec<Self> {
        let train_from = config.freeze.train_from();
        let phases = [
            Self {
                name: "the classifier",
                train_from: Stage::Head,
                epochs: config.freeze_epochs,
                learning_rate: config.head_lr,
                warmup_epochs: 0,
            },
            Self {
                name: match train_from {
                    Stage::Stem => "the whole network",
                    Stage::Head => "the classifier",
                    _ => "the layers that are not frozen",
                },
                train_from,
                epochs: config.epochs,
                learning_rate: config.lr,
                warmup_epochs: config.lr_warmup_epochs,
            },
        ];
        phases.into_iter().filter(|phase| phase.epochs > 0).collect()
    }

    /// Whether the backbone is frozen, so that its features can be computed once.
    pub fn caches(&self) -> bool {
        self.train_from == Stage::Head
    }
}

/// What the frozen backbone makes of images, computed once: in evaluation, of the resized and
/// cropped image.
pub struct Features {
    /// Images × features.
    pub values: Vec<f32>,
    /// The class of each image.
    pub labels: Vec<u32>,
    size: usize,
}

impl Features {
    /// Runs the backbone over every item. Images that cannot be read are left out and returned.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], too many unreadable images, and what the device reported.
    pub fn compute(
        gpu: &Gpu,
        network: &Network,
        items: &Arc<[Item]>,
        config: &Config,
        interrupt: &Interrupt,
    ) -> Result<(Self, Vec<Skipped>)> {
        let size = network.net.arch().features();
        let mut features = Self { values: Vec::new(), labels: Vec::new(), size };
        let mut failed = Vec::new();
        let batch_size = network.images_at_a_time(gpu, config.batch_size);
        for batch in in_order(items, network.image_size, batch_size, config.workers)? {
            interrupt.check()?;
            let batch = batch?;
            failed.extend(batch.failed);
            if batch.labels.is_empty() {
                continue;
            }
            let answer = network.features(gpu, &batch.pixels, batch.labels.len())?;
            features.values.extend(answer.wait()?);
            features.labels.extend(batch.labels);
        }
        Ok((features, failed))
    }

    /// The features and classes of these images.
    pub fn select(&self, images: &[usize]) -> (Vec<f32>, Vec<u32>) {
        let rows = images.iter().flat_map(|&i| &self.values[i * self.size..(i + 1) * self.size]);
        (rows.copied().collect(), images.iter().map(|&i| self.labels[i]).collect())
    }

    /// How good the classifier's answers to these images are.
    ///
    /// # Errors
    /// What the device reported.
    pub fn judge(&self, gpu: &Gpu, network: &Network, batch_size: usize) -> Result<Metrics> {
        let mut tally = Tally::new(network.classes.len());
        let images: Vec<usize> = (0..self.labels.len()).collect();
        for images in images.chunks(batch_size) {
            let (values, labels) = self.select(images);
            let tape = Tape::no_grad(gpu);
            let shape = Shape::matrix(images.len(), self.size);
            let features = tape.constant(Tensor::from_host(gpu, shape, &values)?);
            let logits = network.net.classify(&tape, &features, Mode::EVAL)?;
            tally.add(&Answer::new(gpu, logits.value())?.wait()?, &labels);
        }
        Ok(tally.metrics())
    }
}

/// Where a phase's images come from.
pub enum Source {
    /// Cached features of the training and validation images.
    Features {
        /// Of the training images.
        train: Features,
        /// Of the validation images.
        val: Features,
    },
    /// The images themselves.
    Images {
        /// The training images.
        train: Arc<[Item]>,
        /// The validation images.
        val: Arc<[Item]>,
    },
}

/// A batch as a step takes it.
pub struct Batch {
    /// Bytes of the images, or nothing.
    pub pixels: Vec<u8>,
    /// Features of the images, or nothing.
    pub features: Vec<f32>,
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

    /// The batches of an epoch (counted from 0 over the whole run), and how many there are. Batches
    /// of fewer than `smallest` images are left out.
    ///
    /// # Errors
    /// Those of starting the loader.
    pub fn epoch<'a>(
        &'a self,
        config: &Config,
        network: &Network,
        epoch: u32,
        smallest: usize,
    ) -> Result<(Batches<'a>, usize)> {
        let order = Order {
            seed: config.seed,
            epoch: epoch.into(),
            shuffle: config.shuffle,
            batch_size: config.batch_size,
            drop_last: config.drop_last,
        };
        let mut batches = order.batches(self.train_images());
        batches.retain(|batch| batch.len() >= smallest);
        let count = batches.len();
        match self {
            Self::Features { train, .. } => {
                let select = move |images: Vec<usize>| {
                    let (features, labels) = train.select(&images);
                    Ok(Batch { pixels: Vec::new(), features, labels, failed: Vec::new() })
                };
                Ok((Box::new(batches.into_iter().map(select)), count))
            }
            Self::Images { train, .. } => {
                let transform = Transform { size: network.image_size, augment: config.augment };
                let (seed, workers) = (config.seed, config.workers);
                let loader =
                    Loader::new(train.clone(), batches, transform, seed, epoch.into(), workers)?;
                let take = |batch: Result<crate::data::Batch>| {
                    batch.map(|batch| Batch {
                        pixels: batch.pixels,
                        features: Vec::new(),
                        labels: batch.labels,
                        failed: batch.failed,
                    })
                };
                Ok((Box::new(loader.map(take)), count))
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
