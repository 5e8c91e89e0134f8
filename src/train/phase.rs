//! What is trained for how long, and at which rates.

use super::config::{CacheFeatures, Config, LrScheduler};
use super::network::Network;
use crate::data::Mix;
use crate::nn::Stage;

/// Bytes of features that are kept in the host's memory unasked.
const MOST_CACHED: u64 = 2 << 30;

/// A part of a run with its own optimizer and schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What the console calls it.
    pub name: String,
    /// The first stage that is trained.
    pub train_from: Stage,
    /// How long.
    pub epochs: u32,
    /// The learning rate that the schedule multiplies.
    pub learning_rate: f64,
    /// How that changes.
    pub scheduler: LrScheduler,
    /// Epochs of the schedule, which phases may share.
    pub schedule_epochs: u32,
    /// Epochs of the schedule that are over when the phase begins.
    pub schedule_done: u32,
    /// Epochs of the schedule in which the rate rises linearly at first.
    pub warmup_epochs: u32,
}

impl Phase {
    /// The phases of a run: the classifier alone, then everything that is not frozen, all at once or
    /// a stage after the other.
    pub fn all(config: &Config) -> Vec<Self> {
        let mut phases = vec![Self {
            name: name(Stage::Head),
            train_from: Stage::Head,
            epochs: config.freeze_epochs,
            learning_rate: config.head_lr(),
            scheduler: config.head_lr_scheduler,
            schedule_epochs: config.freeze_epochs,
            schedule_done: 0,
            warmup_epochs: 0,
        }];
        let last = config.freeze.train_from();
        let stages = Stage::ALL.into_iter().rev().filter(|&stage| stage < Stage::Head);
        let mut done = 0;
        let mut add = |train_from: Stage, epochs: u32| {
            phases.push(Self {
                name: name(train_from),
                train_from,
                epochs,
                learning_rate: config.lr,
                scheduler: config.lr_scheduler,
                schedule_epochs: config.epochs,
                schedule_done: done,
                warmup_epochs: config.lr_warmup_epochs,
            });
            done += epochs;
            config.epochs - done
        };
        let mut left = config.epochs;
        if let Some(every) = config.unfreeze_every {
            for stage in stages.take_while(|&stage| stage > last) {
                left = add(stage, every.min(left));
            }
        }
        add(last, left);
        phases.into_iter().filter(|phase| phase.epochs > 0).collect()
    }

    /// Whether what the frozen layers make of so many images is to be computed once: where they see the same
    /// pixels in every epoch, or only the classifier is trained, and it does not take too much memory; or where
    /// the user says so.
    pub fn caches(&self, config: &Config, network: &Network, images: usize) -> bool {
        let bytes = network.activation(self.train_from, images).len() as u64 * 4;
        let unasked = self.train_from == Stage::Head || self.sees_same_pixels(config);
        self.train_from > Stage::Stem
            && match config.cache_features {
                CacheFeatures::Never => false,
                CacheFeatures::Always => true,
                CacheFeatures::Auto => bytes <= MOST_CACHED && unasked,
            }
    }

    /// Whether every epoch shows the network each image as the same pixels.
    pub fn sees_same_pixels(&self, config: &Config) -> bool {
        config.shows_same_pixels() && self.mix(config) == Mix::default()
    }

    /// How images are mixed: not at all while only the classifier is trained.
    pub fn mix(&self, config: &Config) -> Mix {
        match self.train_from {
            Stage::Head => Mix::default(),
            _ => Mix { mixup_alpha: config.mixup_alpha, cutmix_alpha: config.cutmix_alpha },
        }
    }
}

/// What the console calls the training of everything from a stage on.
fn name(train_from: Stage) -> String {
    match train_from {
        Stage::Stem => "the whole network".into(),
        Stage::Head => "the classifier".into(),
        stage => format!("{} and what follows it", stage.name()),
    }
}

/// How the learning rates of the stages compare, over a whole run.
#[derive(Clone, Debug)]
pub struct Rates {
    /// The first stage that any phase trains.
    first: Stage,
    /// The classifier's rate over that stage's.
    factor: f64,
    /// The stages that have a learning rate of their own in the files.
    told: Vec<Stage>,
}

impl Rates {
    /// With `lr_mult`, stages learn at rates from 1/`lr_mult` at the first stage trained to 1 at the
    /// classifier, and all of them are told; without it they learn alike and the classifier's rate
    /// stands for all.
    pub fn new(phases: &[Phase], lr_mult: Option<f64>) -> Self {
        let first = phases.iter().map(|phase| phase.train_from).min().unwrap_or(Stage::Head);
        let told = if lr_mult.is_some() { first } else { Stage::Head };
        Self {
            first,
            factor: lr_mult.unwrap_or(1.0),
            told: Stage::ALL.into_iter().filter(|&stage| stage >= told).collect(),
        }
    }

    /// What a stage's learning rate is multiplied by.
    pub fn of(&self, stage: Stage) -> f64 {
        let before_head = |stage: Stage| f64::from(Stage::Head as i32 - stage as i32);
        match before_head(self.first) {
            0.0 => 1.0,
            stages => self.factor.powf(-before_head(stage) / stages),
        }
    }

    /// How many rates are told.
    pub fn groups(&self) -> usize {
        self.told.len()
    }

    /// The rates to tell when `phase` learns at `learning_rate`; 0 for stages that it leaves alone.
    pub fn told(&self, phase: &Phase, learning_rate: f64) -> Vec<f64> {
        let rate = |&stage: &Stage| match stage < phase.train_from {
            true => 0.0,
            false => learning_rate * self.of(stage),
        };
        self.told.iter().map(rate).collect()
    }
}
