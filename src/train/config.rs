//! What a training run does: every option of `finetune` and `pretrain`, resolved.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::metrics::Validation;
use super::phase::Phase;
use super::teachers::Lessons;
use crate::checkpoint::{HeadPolicy, Source};
use crate::data::{Augment, AutoAugment, demo_root};
use crate::error::{Error, Result};
use crate::nn::{Arch, BnPolicy, Noise, Stage};
use crate::optim::Algorithm;
use crate::optim::schedule::Schedule;

/// The five halvings of a ResNet leave a pixel of this many.
const MIN_IMAGE_SIZE: u32 = 32;
/// Pixels that growing images grow by, where both ends are multiples of that: a pixel of the last
/// layer's.
const COARSE_GROWTH: u32 = 32;
/// Pixels that they grow by elsewhere.
const FINE_GROWTH: u32 = 8;
/// As much as a checkpoint may say.
const MAX_IMAGE_SIZE: u32 = 8192;

/// Every option of a training run.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// The images.
    pub data: DataSource,
    /// Share of each class held out where the folder has no validation split.
    pub val_fraction: f64,
    /// What to start from.
    #[serde(serialize_with = "display")]
    pub weights: Source,
    /// The network; none for the weights' own, or resnet18 from random weights.
    #[serde(serialize_with = "display_some")]
    pub arch: Option<Arch>,
    /// What becomes of the weights' classifier.
    #[serde(serialize_with = "option_value")]
    pub head: HeadPolicy,
    /// Side of the square input in pixels; none for the weights' own, or 224.
    pub image_size: Option<u32>,
    /// Side of the training images in the first epoch of the whole network, from which they grow to
    /// `image_size`; none if they are of that size throughout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_image_size: Option<u32>,
    /// Whether blocks of random weights begin as the identity of their shortcuts.
    pub zero_init_residual: bool,
    /// Epochs of the whole network.
    pub epochs: u32,
    /// Epochs of the classifier alone, before.
    pub freeze_epochs: u32,
    /// Epochs from the unfreezing of a stage to that of the one before it; none to unfreeze all at
    /// once.
    pub unfreeze_every: Option<u32>,
    /// Images that go through the network at a time.
    pub batch_size: usize,
    /// Batches whose gradients add up to a step.
    pub accumulate: usize,
    /// Ends the run after this many steps, over all phases.
    pub max_steps: Option<u64>,
    /// Ends the run after this many epochs of its last phase without a better validation.
    pub patience: Option<u32>,
    /// What makes a validation better than another.
    pub best_by: BestBy,
    /// How gradients become updates.
    pub optimizer: Algorithm,
    /// Learning rate of the whole network.
    pub lr: f64,
    /// Whether a range test decides that.
    pub lr_auto: bool,
    /// Whether to do the range test and nothing else.
    pub lr_find: bool,
    /// Learning rate of the phase of the classifier alone; none for `head_over_lr` times `lr`.
    pub head_lr: Option<f64>,
    /// The classifier's learning rate over the whole network's where none is given. A new classifier
    /// has further to go.
    pub head_over_lr: f64,
    /// Earlier stages learn at `lr / lr_mult`, those between geometrically between; none for all alike.
    pub lr_mult: Option<f64>,
    /// How the rate changes in the whole network's epochs.
    pub lr_scheduler: LrScheduler,
    /// How the rate changes in the epochs of the classifier alone.
    pub head_lr_scheduler: LrScheduler,
    /// Epochs in which the rate rises linearly, at the start of the whole network's phase.
    pub lr_warmup_epochs: u32,
    /// Weight decay of everything but batch norm.
    pub weight_decay: f64,
    /// Weight decay of batch norm's weights and biases.
    pub norm_weight_decay: f64,
    /// Weight λ of the penalty ½λ‖θ−θ₀‖² to the backbone's starting weights; 0 for none.
    pub l2_sp: f64,
    /// Share of the target spread over all classes.
    pub label_smoothing: f64,
    /// Share that an average of the weights keeps at each step; none for no average.
    pub model_ema_decay: Option<f64>,
    /// α of MixUp; 0 for none.
    pub mixup_alpha: f64,
    /// α of CutMix; 0 for none.
    pub cutmix_alpha: f64,
    /// What makes classes of few images count as much as others.
    #[serde(serialize_with = "option_value")]
    pub balance: Balance,
    /// Share of the features that the classifier does not get to see.
    pub dropout: f64,
    /// Share of the images that skip the last block; earlier blocks are skipped less.
    pub stochastic_depth: f64,
    /// Largest norm that all gradients together may have.
    pub clip_grad_norm: Option<f64>,
    /// What is never trained.
    pub freeze: Freeze,
    /// Whether what frozen layers make of the images is computed once.
    pub cache_features: CacheFeatures,
    /// What batch norm does in the layers that are trained.
    pub bn: BnPolicy,
    /// How training images are varied.
    #[serde(serialize_with = "option_value")]
    pub augment: Augment,
    /// Random operations besides.
    #[serde(serialize_with = "option_value_some")]
    pub auto_augment: Option<AutoAugment>,
    /// Whether each epoch shuffles the images.
    pub shuffle: bool,
    /// Whether a last, smaller batch is left out.
    pub drop_last: bool,
    /// Networks to learn from besides the labels.
    #[serde(flatten)]
    pub lessons: Option<Lessons>,
    /// Decides everything random.
    pub seed: u64,
    /// Threads that load images; 0 for one a core.
    pub workers: usize,
    /// The short side, in pixels, that larger training images are resized to first.
    pub shrink_images: Option<u32>,
    /// Memory for images that are shown again, in MiB.
    pub cache_images: u64,
    /// Whether to keep only the inputs of blocks for the way back, and compute the rest again.
    pub recompute: bool,
    /// Whether to measure which kernels are the fastest before the first step of each phase.
    pub tune: bool,
    /// Where to write a trace of the dispatches' times; none to measure nothing.
    pub profile: Option<PathBuf>,
    /// Whether TensorBoard's event files are written.
    pub tensorboard: bool,
    /// When the state of the run is saved, besides at the end of each epoch.
    #[serde(serialize_with = "display")]
    pub save_every: SaveEvery,
    /// The folder of a run to go on with.
    #[serde(serialize_with = "lossy")]
    pub resume: Option<PathBuf>,
    /// The command line of the run.
    pub arguments: Vec<String>,
    /// Where to write; none for the next free name under `runs/`.
    #[serde(serialize_with = "lossy")]
    pub output_dir: Option<PathBuf>,
}

impl Config {
    /// The options that a run that is gone on with may have others of. Images and teachers are looked
    /// at themselves, wherever they lie.
    pub const MAY_CHANGE: &[&str] = &[
        "data",
        "teachers",
        "max_steps",
        "patience",
        "workers",
        "cache_images",
        "recompute",
        "tune",
        "profile",
        "save_every",
        "tensorboard",
        "resume",
        "arguments",
        "output_dir",
    ];

    /// Checks what no single option's type can.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option, its value, and what it can be.
    pub fn check(&self) -> Result<()> {
        if self.epochs == 0 && self.freeze_epochs == 0 {
            return wrong(
                "--epochs 0 and --freeze-epochs 0 leave nothing to train; raise one of them",
            );
        }
        if self.batch_size == 0 {
            return wrong("--batch-size 0: a step needs at least 1 image");
        }
        if self.accumulate == 0 {
            return wrong("--accumulate 0: a step needs at least 1 batch");
        }
        if let Some(every) = self.unfreeze_every {
            let stages = Stage::Head as u32 - self.freeze.train_from() as u32;
            if stages == 0 {
                return wrong("--unfreeze-every: --freeze backbone leaves nothing to unfreeze");
            }
            let needed = (stages - 1).saturating_mul(every).saturating_add(1);
            if every == 0 || self.epochs < needed {
                return wrong(format!(
                    "--unfreeze-every {every}: {stages} stages become free one after the other, \
                     which takes 1 epoch each at least and {needed} --epochs with this"
                ));
            }
        }
        if let Some(decay) = self.model_ema_decay {
            share("--model-ema-decay", decay)?;
        }
        if self.patience == Some(0) {
            return wrong("--patience 0 ends before anything can be better; it must be 1 or more");
        }
        if self.max_steps == Some(0) {
            return wrong("--max-steps 0 leaves nothing to train; leave it out to run every epoch");
        }
        if let Some(size) = self.image_size {
            check_image_size(size)?;
        }
        if self.shrink_images == Some(0) {
            return wrong(
                "--shrink-images 0 leaves nothing of an image; leave it out to keep them",
            );
        }
        if let (Some(first), Some(last)) = (self.first_image_size, self.image_size) {
            check_image_size(first)?;
            if first >= last || [first, last].iter().any(|size| !size.is_multiple_of(FINE_GROWTH)) {
                return wrong(format!(
                    "--image-size {first}..{last}: images grow from a smaller size to a larger, both \
                     multiples of {FINE_GROWTH}"
                ));
            }
        }
        if self.zero_init_residual && self.weights != Source::None {
            return wrong(
                "--zero-init-residual is about random weights; leave it out, or take --weights none",
            );
        }
        if self.head == HeadPolicy::Keep && self.weights == Source::None {
            return wrong(
                "--head keep: random weights have no classifier to keep; leave it out, or start from \
                 trained weights",
            );
        }
        share("--val-fraction", self.val_fraction)?;
        share("--label-smoothing", self.label_smoothing)?;
        not_negative("--lr", self.lr)?;
        not_negative("--head-lr", self.head_lr())?;
        not_negative("--weight-decay", self.weight_decay)?;
        not_negative("--norm-weight-decay", self.norm_weight_decay)?;
        not_negative("--l2-sp", self.l2_sp)?;
        not_negative("--mixup-alpha", self.mixup_alpha)?;
        not_negative("--cutmix-alpha", self.cutmix_alpha)?;
        for (option, value) in
            [("--dropout", self.dropout), ("--stochastic-depth", self.stochastic_depth)]
        {
            if !(0.0..1.0).contains(&value) {
                return wrong(format!("{option} {value}: it must be 0 or more and less than 1"));
            }
        }
        if self.balance == Balance::Sampler && !self.shuffle {
            return wrong(
                "--balance sampler shuffles; leave --no-shuffle out, or use --balance loss",
            );
        }
        if let Some(norm) = self.clip_grad_norm {
            positive("--clip-grad-norm", norm)?;
        }
        if let Some(factor) = self.lr_mult {
            positive("--lr-mult", factor)?;
        }
        if self.lr_warmup_epochs > 0 && self.lr_warmup_epochs >= self.epochs {
            return wrong(format!(
                "--lr-warmup-epochs {} leaves none of the {} epochs; lower it or raise --epochs",
                self.lr_warmup_epochs, self.epochs
            ));
        }
        self.lessons.as_ref().map_or(Ok(()), Lessons::check)?;
        if self.lessons.is_some() && self.mixup_alpha + self.cutmix_alpha > 0.0 {
            return wrong(
                "--mixup-alpha and --cutmix-alpha mix images, but teachers' answers are to whole \
                 ones; leave them out",
            );
        }
        self.check_cached()?;
        self.optimizer.check()?;
        self.lr_scheduler.check(self.lr_warmup_epochs)
    }

    /// Checks that no features are kept of images that are to come otherwise each time; the classifier
    /// alone sees them as validation does in any case.
    fn check_cached(&self) -> Result<()> {
        let cached = |phase: &Phase| (Stage::Layer1..Stage::Head).contains(&phase.train_from);
        if self.cache_features != CacheFeatures::Always || !Phase::all(self).iter().any(cached) {
            return Ok(());
        }
        for (option, given) in [
            ("--auto-augment", self.auto_augment.is_some()),
            ("--mixup-alpha", self.mixup_alpha > 0.0),
            ("--cutmix-alpha", self.cutmix_alpha > 0.0),
            ("an --image-size that grows", self.grows()),
        ] {
            if given {
                return wrong(format!(
                    "--cache-features always keeps what frozen layers make of each image as it is, so \
                     that {option} would do nothing; leave one of them out"
                ));
            }
        }
        Ok(())
    }

    /// Whether every epoch takes the same pixels of each image.
    pub fn shows_same_pixels(&self) -> bool {
        self.augment == Augment::None && self.auto_augment.is_none() && !self.grows()
    }

    /// Whether training images grow from epoch to epoch.
    pub fn grows(&self) -> bool {
        self.first_image_size.is_some()
    }

    /// Side of the training images in an epoch (counted from 0 over the whole run) of a network whose
    /// own size is `last`. Sizes that grow are equally many epochs each, as far as that is possible,
    /// and the last epoch has `last`.
    pub fn training_size(&self, epoch: u32, last: u32) -> u32 {
        let Some(first) = self.first_image_size else { return last };
        growing(first, last, self.freeze_epochs, self.epochs, epoch)
    }

    /// The learning rate of the phase of the classifier alone.
    pub fn head_lr(&self) -> f64 {
        self.head_lr.unwrap_or(self.head_over_lr * self.lr)
    }

    /// Images a step.
    pub fn step_images(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// What the network drops in training.
    pub fn noise(&self) -> Noise {
        Noise { dropout: self.dropout as f32, stochastic_depth: self.stochastic_depth as f32 }
    }
}

/// The size in an epoch of images that grow over `epochs` epochs, after `before` others at the last
/// size.
fn growing(first: u32, last: u32, before: u32, epochs: u32, epoch: u32) -> u32 {
    let Some(epoch) = epoch.checked_sub(before) else { return last };
    let whole = first.is_multiple_of(COARSE_GROWTH) && last.is_multiple_of(COARSE_GROWTH);
    let step = if whole { COARSE_GROWTH } else { FINE_GROWTH };
    let sizes = last.saturating_sub(first) / step + 1;
    let reached = (epoch + 1).saturating_mul(sizes).div_ceil(epochs.max(1));
    (first + (reached - 1) * step).min(last)
}

/// Checks the side of a network's input in pixels.
///
/// # Errors
/// [`Error::Usage`] with the sizes that are possible.
pub fn check_image_size(size: u32) -> Result<()> {
    if (MIN_IMAGE_SIZE..=MAX_IMAGE_SIZE).contains(&size) {
        return Ok(());
    }
    wrong(format!(
        "--image-size {size}: it must be {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, because a \
         ResNet halves it five times"
    ))
}

/// What makes classes of few images count as much as others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// Nothing
    None,
    /// Every class is drawn equally often in an epoch, those of few images repeatedly
    Sampler,
    /// The loss of an image is multiplied by the inverse of its class's share
    Loss,
}

/// Where the images come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// The clip art that comes with the program.
    Demo,
    /// A folder, or an archive.
    Folder(PathBuf),
}

impl DataSource {
    /// The folder or archive to scan.
    ///
    /// # Errors
    /// Those of [`demo_root`].
    pub fn root(&self) -> Result<PathBuf> {
        match self {
            Self::Demo => demo_root(),
            Self::Folder(folder) => Ok(folder.clone()),
        }
    }
}

impl FromStr for DataSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "demo" { Self::Demo } else { Self::Folder(text.into()) })
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("demo"),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

impl Serialize for DataSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Algorithm {
    /// The learning rate of the whole network if none is given.
    pub fn default_lr(&self) -> f64 {
        if matches!(self, Self::Sgd { .. }) { 0.01 } else { 0.001 }
    }

    fn check(&self) -> Result<()> {
        let &Self::Sgd { momentum, nesterov } = self else { return Ok(()) };
        share("--momentum", momentum)?;
        if nesterov && momentum == 0.0 {
            return wrong("--nesterov needs a --momentum above 0");
        }
        Ok(())
    }
}

/// How the learning rate changes within a phase, in epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum LrScheduler {
    /// It stays.
    Constant,
    /// It is multiplied by `gamma` every `size` epochs.
    Step {
        /// Epochs between two falls.
        size: u32,
        /// What a fall leaves.
        gamma: f64,
    },
    /// It falls to 0 along half a cosine.
    Cosine,
    /// It rises and falls: PyTorch's `OneCycleLR` with the learning rate as its highest.
    OneCycle {
        /// Share of the steps in which it rises.
        pct_start: f64,
        /// The highest rate over the first.
        div_factor: f64,
        /// The first rate over the last.
        final_div_factor: f64,
    },
}

impl LrScheduler {
    /// The schedule in steps, for epochs of `epoch_steps` of them.
    pub fn in_steps(&self, epoch_steps: u64) -> Schedule {
        match *self {
            Self::Constant => Schedule::Constant,
            Self::Step { size, gamma } => {
                Schedule::Step { size: u64::from(size) * epoch_steps, gamma }
            }
            Self::Cosine => Schedule::Cosine,
            Self::OneCycle { pct_start, div_factor: div, final_div_factor: div_final } => {
                Schedule::OneCycle { pct_start, div, div_final }
            }
        }
    }

    fn check(&self, warmup_epochs: u32) -> Result<()> {
        match *self {
            Self::Step { size: 0, .. } => wrong("--lr-step-size 0: it must be 1 epoch at least"),
            Self::Step { gamma, .. } => positive("--lr-gamma", gamma),
            Self::OneCycle { .. } if warmup_epochs > 0 => wrong(
                "--lr-warmup-epochs: onecycle warms up by itself; leave it out, or take \
                 --lr-scheduler cosine",
            ),
            Self::OneCycle { pct_start, div_factor, final_div_factor } => {
                share("--pct-start", pct_start)?;
                positive("--div-factor", div_factor)?;
                positive("--final-div-factor", final_div_factor)
            }
            _ => Ok(()),
        }
    }
}

/// Whether what frozen layers make of the images is computed once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CacheFeatures {
    /// Where it changes nothing (--augment none, and nothing else that varies, mixes or grows images), and
    /// where only the classifier is trained, which then sees images as validation does; up to 2 GiB.
    #[default]
    Auto,
    /// Wherever layers are frozen: they are never shown an augmented image; where more than the classifier
    /// is trained, not with --auto-augment, mixing or growing images.
    Always,
    /// Nowhere.
    Never,
}

/// What makes a validation better than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BestBy {
    /// More images right; of equals the lower loss.
    #[default]
    Accuracy,
    /// The lower loss; of equals more images right.
    Loss,
}

impl BestBy {
    /// Whether `val` is better than `best`; any with a finite loss is better than one without.
    pub fn is_better(self, val: &Validation, best: &Validation) -> bool {
        let rank = |&Validation { loss, top1, .. }: &Validation| match self {
            Self::Accuracy => (loss.is_finite(), top1, -loss),
            Self::Loss => (loss.is_finite(), -loss, top1),
        };
        rank(val) > rank(best)
    }
}

/// When the state of a run is saved, besides at the end of each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveEvery {
    /// At no other time.
    Epoch,
    /// After so many steps.
    Steps(u64),
    /// After so many seconds, but never so often that it takes more than 2 % of the time.
    Seconds(u64),
}

impl FromStr for SaveEvery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let positive = |digits: &str| digits.parse().ok().filter(|&number: &u64| number > 0);
        let parsed = match text.strip_suffix('s') {
            _ if text == "epoch" => Some(Self::Epoch),
            Some(seconds) => positive(seconds).map(Self::Seconds),
            None => positive(text).map(Self::Steps),
        };
        parsed.ok_or_else(|| "100 for steps, 60s for seconds, or epoch is expected".into())
    }
}

impl fmt::Display for SaveEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch => f.write_str("epoch"),
            Self::Steps(steps) => steps.fmt(f),
            Self::Seconds(seconds) => write!(f, "{seconds}s"),
        }
    }
}

/// What is never trained: everything up to and including it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Freeze {
    /// Nothing: everything is trained.
    None,
    /// The first convolution and its batch norm.
    Stem,
    /// Up to layer1.
    Layer1,
    /// Up to layer2.
    Layer2,
    /// Up to layer3.
    Layer3,
    /// Up to layer4: the same as backbone.
    Layer4,
    /// Everything but the classifier.
    Backbone,
}

impl Freeze {
    /// The first stage that is trained.
    pub fn train_from(self) -> Stage {
        match self {
            Self::None => Stage::Stem,
            Self::Stem => Stage::Layer1,
            Self::Layer1 => Stage::Layer2,
            Self::Layer2 => Stage::Layer3,
            Self::Layer3 => Stage::Layer4,
            Self::Layer4 | Self::Backbone => Stage::Head,
        }
    }
}

fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Usage(text.into()))
}

fn share(option: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    wrong(format!("{option} {value}: it is a share, from 0 up to but without 1"))
}

fn not_negative(option: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    wrong(format!("{option} {value}: it must be a number of 0 or more"))
}

fn positive(option: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    wrong(format!("{option} {value}: it must be a number above 0"))
}

fn display<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn display_some<S: Serializer>(
    value: &Option<impl fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

/// Serialises a path whose name may be no Unicode.
fn lossy<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// Serialises as what the option takes.
fn option_value<S: Serializer>(value: &impl ValueEnum, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_possible_value().map(|value| value.get_name().to_owned()).serialize(serializer)
}

/// Serialises an option that may be absent.
fn option_value_some<S: Serializer>(
    value: &Option<impl ValueEnum>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let name = |value: &_| ValueEnum::to_possible_value(value).map(|v| v.get_name().to_owned());
    value.as_ref().and_then(name).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freezing_leaves_what_comes_after() {
        let first = |freeze: Freeze| freeze.train_from();
        assert_eq!(first(Freeze::None), Stage::Stem);
        assert_eq!(first(Freeze::Layer2), Stage::Layer3);
        assert_eq!(first(Freeze::Backbone), Stage::Head);
        let frozen = Freeze::value_variants();
        assert!(frozen.is_sorted_by_key(|&freeze| first(freeze)), "each freezes more");
    }

    #[test]
    fn sizes_share_the_epochs_and_the_last_has_the_last() {
        let sizes = |first, last, freeze_epochs, epochs| -> Vec<u32> {
            let size = |epoch| growing(first, last, freeze_epochs, epochs, epoch);
            (0..freeze_epochs + epochs).map(size).collect()
        };
        assert_eq!(sizes(48, 64, 0, 9), [48, 48, 48, 56, 56, 56, 64, 64, 64]);
        assert_eq!(sizes(128, 224, 0, 4), [128, 160, 192, 224], "by 32");
        assert_eq!(sizes(48, 64, 2, 3), [64, 64, 48, 56, 64], "the classifier's at the end's");
        assert_eq!(sizes(48, 64, 0, 1), [64]);
        assert_eq!(sizes(48, 64, 0, 2), [56, 64]);
        assert_eq!(sizes(48, 64, 0, 4), [48, 56, 64, 64]);
    }

    #[test]
    fn schedules_count_epochs_outside_and_steps_inside() {
        let step = LrScheduler::Step { size: 2, gamma: 0.1 };
        assert_eq!(step.in_steps(30), Schedule::Step { size: 60, gamma: 0.1 });
        assert_eq!(LrScheduler::Cosine.in_steps(30), Schedule::Cosine);
    }

    #[test]
    fn a_validation_without_a_loss_is_worse_than_any_other() {
        let val = |top1, loss| Validation { loss, top1, top5: 1.0 };
        let nan = f64::NAN;
        for best_by in [BestBy::Accuracy, BestBy::Loss] {
            assert!(best_by.is_better(&val(0.5, 9.0), &val(0.5, nan)), "{best_by:?}");
            assert!(best_by.is_better(&val(0.1, 9.0), &val(0.9, nan)), "{best_by:?}");
            assert!(!best_by.is_better(&val(0.5, nan), &val(0.5, 9.0)), "{best_by:?}");
            assert!(!best_by.is_better(&val(0.5, nan), &val(0.5, nan)), "{best_by:?}");
            assert!(best_by.is_better(&val(0.6, 1.0), &val(0.5, 2.0)), "{best_by:?}");
        }
        assert!(BestBy::Accuracy.is_better(&val(0.6, 2.0), &val(0.5, 1.0)));
        assert!(BestBy::Loss.is_better(&val(0.5, 1.0), &val(0.6, 2.0)));
    }

    #[test]
    fn a_folder_can_be_called_demo() {
        let parse = |text: &str| text.parse::<DataSource>().unwrap();
        assert_eq!(parse("demo"), DataSource::Demo);
        assert_eq!(parse("./demo"), DataSource::Folder("./demo".into()));
    }
}
