//! Where a phase's batches come from: images, or cached features of them.

use std::rc::Rc;

use super::config::{Balance, Config};
use super::features::Features;
use super::interrupt::Interrupt;
use super::network::Network;
use super::step::{Inputs, smallest_part};
use super::teachers::Targets;
use super::validate::{Judged, judge};
use crate::data::{Items, Loader, Mix, Order, Skipped, Transform, noise_key};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::Target;

/// Where a phase's images come from.
pub enum Source {
    /// Cached features of the training and validation images.
    Features {
        /// Of the training images.
        train: Rc<Features>,
        /// Of the validation images.
        val: Rc<Features>,
        /// What the teachers make of the training images, where there are teachers.
        targets: Option<Rc<Targets>>,
    },
    /// The images themselves.
    Images {
        /// The training images.
        train: Items,
        /// The validation images.
        val: Items,
        /// How training images are mixed.
        mix: Mix,
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
    /// Where images are mixed: the share of each that is its own; the rest is that of the one before.
    pub share: Option<f32>,
    /// What the dropping in the network follows from.
    pub noise_key: [u32; 2],
    /// Images that could not be read.
    pub failed: Vec<Skipped>,
}

impl Batch {
    /// What the network is to answer. Rows weigh so that the sum over them, divided by their number,
    /// is PyTorch's mean: over Σ `class_weights` of the labels, or over the images if they are mixed.
    pub fn targets(&self, class_weights: Option<&[f32]>) -> Vec<Target> {
        let count = self.labels.len();
        let Some(share) = self.share else {
            let weight = class_weights.map_or(1.0, |weights| {
                let total: f64 = self.labels.iter().map(|&l| f64::from(weights[l as usize])).sum();
                (count as f64 / total) as f32
            });
            let target = |&label: &u32| Target { weight, ..label.into() };
            return self.labels.iter().map(target).collect();
        };
        let target = |(at, &label): (usize, &u32)| {
            let other = self.labels[(at + count - 1) % count];
            let (label, other, share) =
                if share < 0.5 { (other, label, 1.0 - share) } else { (label, other, share) };
            Target { label, other, share, weight: 1.0 }
        };
        self.labels.iter().enumerate().map(target).collect()
    }

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
    /// A batch of `images` of `image_size` pixels as large as any, to plan with.
    pub fn blank(&self, network: &Network, image_size: u32, images: usize) -> Batch {
        let side = image_size as usize;
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
            share: None,
            noise_key: [0; 2],
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

    /// The class of each training image.
    fn train_labels(&self) -> Vec<u32> {
        match self {
            Self::Features { train, .. } => train.labels.clone(),
            Self::Images { train, .. } => train.iter().map(|item| item.label).collect(),
        }
    }

    /// What each of `classes` classes weighs in the loss for all to weigh alike together: n / (K·n_c)
    /// with n_c of n images in each of K classes; 1 on average over the images.
    pub fn class_weights(&self, classes: usize) -> Vec<f32> {
        let labels = self.train_labels();
        let mut counts = vec![0; classes];
        labels.iter().for_each(|&label| counts[label as usize] += 1);
        let present = counts.iter().filter(|&&count| count > 0).count();
        let weight = |count| match count {
            0 => 0.0,
            count => (labels.len() as f64 / (present * count) as f64) as f32,
        };
        counts.into_iter().map(weight).collect()
    }

    /// The images of each batch of an epoch (counted from 0 over the whole run); batches with a part of
    /// fewer than `smallest` are left out.
    pub fn batches(&self, config: &Config, epoch: u32, smallest: usize) -> Vec<Vec<usize>> {
        let order = Order {
            seed: config.seed,
            epoch: epoch.into(),
            shuffle: config.shuffle,
            batch_size: config.step_images(),
            drop_last: config.drop_last,
        };
        let mut batches = match config.balance {
            Balance::Sampler => order.balanced_batches(&self.train_labels()),
            Balance::None | Balance::Loss => order.batches(self.train_images()),
        };
        batches.retain(|batch| smallest_part(batch.len(), config.batch_size) >= smallest);
        batches
    }

    /// Loads `batches` of an epoch, with images of `image_size` pixels, but for the first `done`.
    ///
    /// # Errors
    /// Those of starting the loader.
    pub fn load<'a>(
        &'a self,
        config: &Config,
        image_size: u32,
        epoch: u32,
        mut batches: Vec<Vec<usize>>,
        done: usize,
    ) -> Result<Batches<'a>> {
        batches.drain(..done);
        let (seed, workers) = (config.seed, config.workers);
        let key = move |index: usize| noise_key(seed, epoch.into(), index);
        match self {
            Self::Features { train, targets, .. } => {
                let select = move |(index, images): (usize, Vec<usize>)| {
                    let (features, labels) = train.select(&images);
                    let item = |at: &usize| train.items[at % train.items.len()];
                    let items: Vec<usize> = images.iter().map(item).collect();
                    Ok(Batch {
                        pixels: Vec::new(),
                        features,
                        targets: selected(targets.as_ref(), &items),
                        labels,
                        share: None,
                        noise_key: key(index),
                        failed: Vec::new(),
                    })
                };
                Ok(Box::new((done..).zip(batches).map(select)))
            }
            Self::Images { train, mix, targets, .. } => {
                let transform = Transform {
                    size: image_size,
                    augment: config.augment,
                    auto_augment: config.auto_augment,
                };
                let size = transform.size;
                let loader =
                    Loader::new(train.clone(), batches, transform, seed, epoch.into(), workers)?;
                let take = move |batch: Result<crate::data::Batch>| {
                    let mut batch = batch?;
                    let index = done + batch.index;
                    Ok(Batch {
                        share: mix.apply(&mut batch.pixels, size, seed, epoch.into(), index),
                        pixels: batch.pixels,
                        features: Vec::new(),
                        targets: selected(targets.as_ref(), &batch.items),
                        labels: batch.labels,
                        noise_key: key(index),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(labels: &[u32], share: Option<f32>) -> Batch {
        Batch {
            pixels: vec![],
            features: vec![],
            targets: vec![],
            labels: labels.to_vec(),
            share,
            noise_key: [0; 2],
            failed: vec![],
        }
    }

    #[test]
    fn mixed_images_are_to_answer_their_own_class_and_that_of_the_one_before() {
        let targets = |share| -> Vec<_> {
            let targets = batch(&[3, 5, 8], Some(share)).targets(None);
            targets.iter().map(|it| (it.label, it.other, it.share, it.weight)).collect()
        };
        let own = [(3, 8, 0.75, 1.0), (5, 3, 0.75, 1.0), (8, 5, 0.75, 1.0)];
        assert_eq!(targets(0.75), own);
        // Hits are counted by the class with the larger share.
        let before = [(8, 3, 0.75, 1.0), (3, 5, 0.75, 1.0), (5, 8, 0.75, 1.0)];
        assert_eq!(targets(0.25), before);
    }

    #[test]
    fn rows_weigh_so_that_the_mean_is_over_the_weights_of_their_classes() {
        let weights = |class_weights| -> Vec<f32> {
            let targets = batch(&[0, 1, 1, 1], None).targets(class_weights);
            targets.iter().map(|it| it.weight).collect()
        };
        assert_eq!(weights(None), [1.0; 4]);
        // 4 images over 2 + 3·½.
        assert_eq!(weights(Some(&[2.0, 0.5][..])), [4.0 / 3.5; 4]);
    }
}
