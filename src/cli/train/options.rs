//! Options of what is trained, on which images, for how long, and where what comes of it goes.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::checkpoint::{HeadPolicy, Source};
use crate::data::{Augment, AutoAugment};
use crate::nn::{Arch, BnPolicy};
use crate::train::config::{Balance, BestBy, CacheFeatures, DataSource, Freeze, SaveEvery};

#[derive(Args, Debug)]
#[command(next_help_heading = "Images")]
pub struct DataOptions {
    /// A folder of class folders, or with train/ and val/ (and test/), or a .tar or .tar.gz archive
    /// of one, or a folder of such archives; demo is the bundled clip art
    #[arg(long, value_name = "DIR|ARCHIVE|demo", default_value = "demo")]
    pub data: DataSource,

    /// The share of each class held out for validation where the folder has no val/
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, allow_negative_numbers = true)]
    pub val_fraction: f64,

    /// How training images are varied
    #[arg(long, value_enum, default_value_t = Augment::Light)]
    pub augment: Augment,

    /// Random operations besides --augment, on PIL images as torchvision defines them [default: none]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub auto_augment: Option<AutoAugment>,

    /// The same as --augment none
    #[arg(long, conflicts_with = "augment")]
    pub no_augment: bool,

    /// Take images in the folder's order, by class, then by path [default: shuffled every epoch]
    #[arg(long)]
    pub no_shuffle: bool,

    /// Leave out a last batch that is smaller than the others; one of a single image is always left out
    /// at 32 px while batch norm is trained, for that needs two values a channel [default: off]
    #[arg(long)]
    pub drop_last: bool,

    /// Threads that load images; 0 for one a core
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = crate::cli::values::workers()
    )]
    pub workers: usize,

    /// Resize larger training images to this short side before they are varied: of large photographs,
    /// more stay in memory and less is to be read every epoch [default: keep them]
    #[arg(long, value_name = "PIXELS")]
    pub shrink_images: Option<u32>,

    /// Memory for decoded images in MiB: those that fit are not decoded anew in every epoch
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub cache_images: u32,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct NetworkOptions {
    /// What to start from; a run's folder stands for its best, imagenet is timm/resnet18.tv_in1k from the
    /// Hugging Face Hub
    #[arg(
        long,
        value_name = "FILE|RUN|bundled|imagenet|hf:REPO[/FILE]|none",
        default_value = "bundled"
    )]
    pub weights: Source,

    /// resnet18, resnet34, resnet50, resnet101 or resnet152 [default: the weights' own; resnet18
    /// with --weights none]
    #[arg(long, value_name = "NAME", value_parser = Arch::from_name)]
    pub arch: Option<Arch>,

    /// Side of the square input in pixels; 48..64 has the training images grow from 48 to 64 over the
    /// epochs of the whole network, by 32 px where both are multiples of that, else by 8
    /// [default: the weights' own, else 224]
    #[arg(long, value_name = "N|N..M")]
    pub image_size: Option<ImageSize>,

    /// Start with the last batch norm's weight of every block at 0, so that blocks begin as their
    /// shortcuts; with --weights none [default: off]
    #[arg(long)]
    pub zero_init_residual: bool,

    /// What becomes of the weights' classifier
    #[arg(long, value_enum, default_value_t = HeadPolicy::Auto)]
    pub head: HeadPolicy,

    /// What is never trained: everything up to and including it
    #[arg(long, value_enum, default_value_t = Freeze::None)]
    pub freeze: Freeze,

    /// Whether what frozen layers make of the images is computed once
    #[arg(long, value_enum, default_value_t = CacheFeatures::Auto)]
    pub cache_features: CacheFeatures,

    /// What batch norm does in the layers that are trained; in frozen layers it is always frozen
    #[arg(long, value_enum, default_value_t = BnPolicy::Train)]
    pub bn: BnPolicy,
}

/// What `--image-size` takes.
#[derive(Clone, Copy, Debug)]
pub struct ImageSize {
    pub first: Option<u32>,
    pub last: u32,
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pixels = |text: &str| text.parse::<u32>().ok();
        let parsed = match text.split_once("..") {
            None => pixels(text).map(|last| Self { first: None, last }),
            Some((first, last)) => pixels(first).zip(pixels(last)).map(|(first, last)| {
                let first = Some(first);
                Self { first, last }
            }),
        };
        parsed.ok_or_else(|| "a number of pixels is expected, or two as in 48..64".into())
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Length")]
pub struct LengthOptions {
    /// Epochs of the whole network
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub epochs: u32,

    /// Epochs of the classifier alone, before those [default: 1; 0 with --weights none]
    #[arg(long, value_name = "N")]
    pub freeze_epochs: Option<u32>,

    /// Unfreeze a stage, from the last to the first, every N of those epochs [default: all at once]
    #[arg(long, value_name = "N")]
    pub unfreeze_every: Option<u32>,

    /// Images that go through the network at a time
    #[arg(short, long, value_name = "N", default_value_t = 16)]
    pub batch_size: usize,

    /// Batches whose gradients add up to one step; each is normalised by itself, so that batch norm
    /// still sees --batch-size images
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub accumulate: usize,

    /// Stop after this many steps; an epoch that this cuts short never becomes the best [default: none]
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,

    /// Stop when N epochs in a row of the last phase bring no better validation [default: never]
    #[arg(long, value_name = "N")]
    pub patience: Option<u32>,

    /// What makes a validation better than another
    #[arg(long, value_enum, default_value_t = BestBy::Accuracy)]
    pub best_by: BestBy,

    /// Decides everything random
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub struct FolderOptions {
    /// A new or empty folder to write to [default: the first free of runs/finetune,
    /// runs/finetune-2, …]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Go on with the run in DIR as if it had never stopped, with the options it was begun with
    /// [default: a new run]
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,

    /// When to save what --resume needs, besides at the end of each epoch: 100 (steps), 30s, epoch
    /// (never); seconds are stretched so that saving takes 2 % of the time at most
    #[arg(long, value_name = "N", default_value = "60s")]
    pub save_every: SaveEvery,

    /// Time every kernel of every step on the adapter: a table, and a trace for Chrome or Perfetto
    /// in FILE [default: off]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,

    /// Also write event files for TensorBoard: curves, pictures, options, and how weights and
    /// gradients are distributed after each epoch [default: off]
    #[arg(long)]
    pub tensorboard: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Regularisation")]
pub struct RegularisationOptions {
    /// Weight X of the penalty ½X·‖θ−θ₀‖² to the starting weights; batch norm and classifier are free
    /// of it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub l2_sp: f64,

    /// The share of the target spread over all classes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub label_smoothing: f64,

    /// Average the weights and batch norm's statistics: at each step the average keeps X of itself; it
    /// is validated too, and best.safetensors is the best average [default: off]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub model_ema_decay: Option<f64>,

    /// Blend each image and its target with those of another, in a proportion drawn from Beta(X, X) for
    /// each batch: MixUp, typically 0.2; not while only the classifier is trained [default: off]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub mixup_alpha: f64,

    /// Replace a rectangle of each image by another's, of an area drawn from Beta(X, X): CutMix,
    /// typically 1; with --mixup-alpha, each batch has one of the two; not while only the classifier is
    /// trained [default: off]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub cutmix_alpha: f64,

    /// What makes classes of few images count as much as others
    #[arg(long, value_enum, default_value_t = Balance::None)]
    pub balance: Balance,

    /// The share of the features that is dropped before the classifier
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub dropout: f64,

    /// The share of the images that skip the last block; the first is never skipped, those between
    /// linearly between
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub stochastic_depth: f64,

    /// The largest norm that all gradients together may have [default: none]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub clip_grad_norm: Option<f64>,
}
