//! `wgrad finetune` and `wgrad pretrain`: the same trainer from pretrained and from random weights.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Command, ValueEnum};

use super::interrupt;
use super::shared::{ComputeOptions, OutputOptions, resolve_all};
use crate::checkpoint::{HeadPolicy, Source};
use crate::data::{Augment, AutoAugment};
use crate::error::{Error, Result};
use crate::gpu::GpuOptions;
use crate::nn::{Arch, BnPolicy};
use crate::optim::Algorithm;
use crate::train::config::{
    Balance, BestBy, CacheFeatures, Config, DataSource, Freeze, LrScheduler, SaveEvery,
};
use crate::train::run_dir::read_json;
use crate::train::{Console, Lessons, RunDir};

/// Learning rate of sgd from random weights, for 256 images a step: that of He et al. (2016), scaled
/// with the images of a step as Goyal et al. (2017) do.
const SCRATCH_LR: f64 = 0.1;

/// Pretrained network + labelled images → fine-tuned network, metrics, pictures
#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct Finetune {
    #[command(flatten)]
    options: TrainOptions,
}

/// The same trainer from random weights
///
/// What differs is what a network that knows nothing needs: more epochs, a higher learning rate that
/// rises first, and softer targets. Everything else is as in finetune.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
#[command(mut_arg("weights", |weights| weights.default_value("none")))]
#[command(mut_arg("epochs", |epochs| epochs.default_value("90")))]
#[command(mut_arg("batch_size", |size| size.default_value("64")))]
#[command(mut_arg("label_smoothing", |share| share.default_value("0.1")))]
#[command(mut_arg("lr", |lr| lr.help(
    "Learning rate of the whole network; auto finds it by a range test first [default: 0.1 for each \
     256 images of a step for sgd, 0.001 for adam and adamw]"
)))]
#[command(mut_arg("lr_warmup_epochs", |epochs| epochs.help(
    "Epochs in which the rate rises linearly before that [default: a twentieth of --epochs, at least \
     1; 0 with onecycle, which rises by itself, and with a single epoch]"
)))]
pub struct Pretrain {
    #[command(flatten)]
    options: TrainOptions,
}

/// Teaches one network what others know: knowledge distillation
///
/// The loss is TASK × cross-entropy to the labels + DISTILL × T² × the divergence from the
/// teachers' probabilities at temperature T. Teachers may be of any depth; several count as the mean
/// of their probabilities; classes are matched by name. They see the very images the student sees,
/// augmented as they are. Everything else is as in finetune.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
#[command(mut_arg("weights", |weights| {
    weights.long("student").help("What the student starts from; none for random weights")
}))]
pub struct Distill {
    /// The networks to learn from: FILE, bundled, imagenet or hf:REPO[/FILE]
    #[arg(long, value_name = "CKPT", num_args = 1.., required_unless_present = "resume")]
    teacher: Vec<Source>,

    /// What logits are divided by before they become probabilities
    #[arg(long, value_name = "T", default_value_t = 4.0, allow_negative_numbers = true)]
    temperature: f64,

    /// Weight of the loss by the labels [default: 1]
    #[arg(long, value_name = "TASK", allow_negative_numbers = true)]
    task_loss_weight: Option<f64>,

    /// Weight of the loss by the teachers [default: 1, or what --task-loss-weight leaves of 1]
    #[arg(long, value_name = "DISTILL", allow_negative_numbers = true)]
    distill_loss_weight: Option<f64>,

    #[command(flatten)]
    options: TrainOptions,
}

impl Distill {
    pub fn run(self) -> Result<()> {
        let options = |arguments| parse::<Self>(arguments).into_options();
        self.into_options().run("distill", options)
    }

    fn into_options(self) -> TrainOptions {
        let Self { teacher, temperature, task_loss_weight: task, distill_loss_weight, options } =
            self;
        // As timm has it: a task weight by itself is the share of a whole.
        let distill = distill_loss_weight.unwrap_or(task.map_or(1.0, |task| 1.0 - task));
        let lessons = LessonOptions { teacher, temperature, task: task.unwrap_or(1.0), distill };
        TrainOptions { lessons: Some(lessons), ..options }
    }
}

/// Whom to learn from, and how much.
#[derive(Debug)]
struct LessonOptions {
    teacher: Vec<Source>,
    temperature: f64,
    task: f64,
    distill: f64,
}

impl LessonOptions {
    /// The lessons, their teachers downloaded first if need be.
    fn resolve(&self, console: &Console) -> Result<Lessons> {
        Ok(Lessons {
            teachers: resolve_all(&self.teacher, console)?,
            temperature: self.temperature,
            task_loss_weight: self.task,
            distill_loss_weight: self.distill,
        })
    }
}

impl Finetune {
    pub fn run(self) -> Result<()> {
        let options = |arguments| parse::<Self>(arguments).options;
        self.options.run("finetune", options)
    }
}

impl Pretrain {
    pub fn run(self) -> Result<()> {
        let options = |arguments| parse::<Self>(arguments).into_options();
        self.into_options().run("pretrain", options)
    }

    fn into_options(self) -> TrainOptions {
        TrainOptions { from_scratch: true, ..self.options }
    }
}

/// Parses arguments that follow a command's name; ends the process where they make no sense.
fn parse<A: Args>(arguments: Vec<String>) -> A {
    let command = A::augment_args(Command::new("wgrad").no_binary_name(true));
    let matches = command.get_matches_from(arguments);
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// What stands behind the command's name on the command line.
fn arguments() -> Vec<String> {
    let words = if std::env::args_os().nth(1).is_some_and(|word| word == "fuse") { 2 } else { 1 };
    std::env::args_os()
        .skip(1 + words)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// The arguments that the run in `folder` was begun with; its output was for another terminal.
fn begun_with(folder: &Path) -> Result<Vec<String>> {
    let folder = RunDir::reopen(folder)?;
    let args: serde_json::Value = read_json(&folder.args())?;
    let arguments = args["arguments"].as_array().into_iter().flatten();
    let arguments = arguments.filter_map(|argument| argument.as_str());
    let output = ["--json", "-q", "--quiet", "-v", "--verbose"];
    Ok(arguments.filter(|argument| !output.contains(argument)).map(str::to_owned).collect())
}

#[derive(Args, Debug)]
struct TrainOptions {
    #[command(flatten)]
    data: DataOptions,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    length: LengthOptions,
    #[command(flatten)]
    optimizer: OptimizerOptions,
    #[command(flatten)]
    rate: RateOptions,
    #[command(flatten)]
    regularisation: RegularisationOptions,
    #[command(flatten)]
    compute: ComputeOptions,

    /// Keep less memory for the way back and compute again what is missing: the same numbers, and
    /// every block's forward pass twice [default: off]
    #[arg(long, help_heading = "Adapter")]
    recompute: bool,

    /// Measure which kernels are the fastest on this adapter, and keep that for later runs [default:
    /// off]
    #[arg(long, help_heading = "Adapter")]
    tune: bool,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    folder: FolderOptions,
    #[arg(skip)]
    lessons: Option<LessonOptions>,
    /// Whether defaults are those of pretrain.
    #[arg(skip)]
    from_scratch: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Images")]
struct DataOptions {
    /// A folder of class folders, or with train/ and val/ (and test/), or a .tar or .tar.gz archive
    /// of one, or a folder of such archives; demo is the bundled clip art
    #[arg(long, value_name = "DIR|ARCHIVE|demo", default_value = "demo")]
    data: DataSource,

    /// The share of each class held out for validation where the folder has no val/
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, allow_negative_numbers = true)]
    val_fraction: f64,

    /// How training images are varied
    #[arg(long, value_enum, default_value_t = Augment::Light)]
    augment: Augment,

    /// Random operations besides --augment, on PIL images as torchvision defines them [default: none]
    #[arg(long, value_enum, value_name = "POLICY")]
    auto_augment: Option<AutoAugment>,

    /// The same as --augment none
    #[arg(long, conflicts_with = "augment")]
    no_augment: bool,

    /// Take images in the folder's order, by class, then by path [default: shuffled every epoch]
    #[arg(long)]
    no_shuffle: bool,

    /// Leave out a last batch that is smaller than the others [default: off]
    #[arg(long)]
    drop_last: bool,

    /// Threads that load images; 0 for one a core
    #[arg(short = 'j', long, value_name = "N", default_value_t = 0)]
    workers: usize,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
struct NetworkOptions {
    /// What to start from; imagenet is timm/resnet18.tv_in1k from the Hugging Face Hub
    #[arg(
        long,
        value_name = "FILE|bundled|imagenet|hf:REPO[/FILE]|none",
        default_value = "bundled"
    )]
    weights: Source,

    /// resnet18, resnet34, resnet50, resnet101 or resnet152 [default: the weights' own; resnet18
    /// with --weights none]
    #[arg(long, value_name = "NAME", value_parser = Arch::from_name)]
    arch: Option<Arch>,

    /// Side of the square input in pixels; 48..64 has the training images grow from 48 to 64 over the
    /// epochs of the whole network, by 32 px where both are multiples of that, else by 8
    /// [default: the weights' own, else 224]
    #[arg(long, value_name = "N|N..M")]
    image_size: Option<ImageSize>,

    /// Start with the last batch norm's weight of every block at 0, so that blocks begin as their
    /// shortcuts; with --weights none [default: off]
    #[arg(long)]
    zero_init_residual: bool,

    /// What becomes of the weights' classifier
    #[arg(long, value_enum, default_value_t = HeadPolicy::Auto)]
    head: HeadPolicy,

    /// What is never trained: everything up to and including it
    #[arg(long, value_enum, default_value_t = Freeze::None)]
    freeze: Freeze,

    /// Whether what frozen layers make of the images is computed once
    #[arg(long, value_enum, default_value_t = CacheFeatures::Auto)]
    cache_features: CacheFeatures,

    /// What batch norm does in the layers that are trained; in frozen layers it is always frozen
    #[arg(long, value_enum, default_value_t = BnPolicy::Train)]
    bn: BnPolicy,
}

/// What `--image-size` takes.
#[derive(Clone, Copy, Debug)]
struct ImageSize {
    first: Option<u32>,
    last: u32,
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
struct LengthOptions {
    /// Epochs of the whole network
    #[arg(long, value_name = "N", default_value_t = 5)]
    epochs: u32,

    /// Epochs of the classifier alone, before those [default: 1; 0 with --weights none]
    #[arg(long, value_name = "N")]
    freeze_epochs: Option<u32>,

    /// Unfreeze a stage, from the last to the first, every N of those epochs [default: all at once]
    #[arg(long, value_name = "N")]
    unfreeze_every: Option<u32>,

    /// Images that go through the network at a time
    #[arg(short, long, value_name = "N", default_value_t = 16)]
    batch_size: usize,

    /// Batches whose gradients add up to one step; each is normalised by itself, so that batch norm
    /// still sees --batch-size images
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,

    /// Stop after this many steps [default: none]
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,

    /// Stop when N epochs in a row of the last phase bring no better validation [default: never]
    #[arg(long, value_name = "N")]
    patience: Option<u32>,

    /// What makes a validation better than another
    #[arg(long, value_enum, default_value_t = BestBy::Accuracy)]
    best_by: BestBy,

    /// Decides everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
struct FolderOptions {
    /// A new or empty folder to write to [default: the first free of runs/finetune,
    /// runs/finetune-2, …]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,

    /// Go on with the run in DIR as if it had never stopped, with the options it was begun with
    /// [default: a new run]
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,

    /// When to save what --resume needs, besides at the end of each epoch: 100 (steps), 30s, epoch
    /// (never); seconds are stretched so that saving takes 2 % of the time at most
    #[arg(long, value_name = "N", default_value = "60s")]
    save_every: SaveEvery,

    /// Time every kernel of every step on the adapter: a table, and a trace for Chrome or Perfetto
    /// in FILE [default: off]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    /// Also write event files for TensorBoard: curves, pictures, options, and how weights and
    /// gradients are distributed after each epoch [default: off]
    #[arg(long)]
    tensorboard: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Optimizer")]
struct OptimizerOptions {
    /// What the options below are where they are not given
    #[arg(long, value_enum, default_value_t = Recipe::Plain)]
    recipe: Recipe,

    /// PyTorch's definitions [default: sgd; adamw with --recipe fastai]
    #[arg(long, value_enum)]
    opt: Option<OptimizerName>,

    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    momentum: Option<f64>,

    /// Nesterov's momentum, for sgd [default: off]
    #[arg(long)]
    nesterov: bool,

    /// Weight decay of everything but batch norm [default: 0.0001; 0.01 with --recipe fastai]
    #[arg(
        long = "weight-decay",
        visible_alias = "wd",
        value_name = "X",
        allow_negative_numbers = true
    )]
    weight_decay: Option<f64>,

    /// Weight decay of batch norm's weights and biases
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    norm_weight_decay: f64,
}

/// What `--recipe` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum Recipe {
    /// sgd at one rate that falls along a cosine
    Plain,
    /// As fastai's fine_tune: adamw, --lr 0.001, --lr-mult 100, --wd 0.01, onecycle with --div-factor
    /// 5; the classifier alone at 2 × --lr, rising for 99 % of its steps
    FastAi,
}

/// What `--opt` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum OptimizerName {
    Sgd,
    Adam,
    AdamW,
}

impl OptimizerOptions {
    fn resolve(&self) -> Result<Algorithm> {
        let opt = self.opt.unwrap_or(match self.recipe {
            Recipe::Plain => OptimizerName::Sgd,
            Recipe::FastAi => OptimizerName::AdamW,
        });
        if opt != OptimizerName::Sgd && (self.momentum.is_some() || self.nesterov) {
            let text = "--momentum and --nesterov are options of --opt sgd; leave them out";
            return Err(Error::Usage(text.into()));
        }
        Ok(match opt {
            OptimizerName::Sgd => {
                Algorithm::Sgd { momentum: self.momentum.unwrap_or(0.9), nesterov: self.nesterov }
            }
            OptimizerName::Adam => Algorithm::Adam,
            OptimizerName::AdamW => Algorithm::AdamW,
        })
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(match self.recipe {
            Recipe::Plain => 1e-4,
            Recipe::FastAi => 1e-2,
        })
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Learning rate")]
struct RateOptions {
    /// Learning rate of the whole network; auto finds it by a range test first [default: 0.01 for
    /// sgd, 0.001 for adam and adamw]
    #[arg(long, value_name = "X|auto", allow_negative_numbers = true)]
    lr: Option<LearningRate>,

    /// Do that range test only (100 steps from 1e-7 to 10, or until the loss is 4 times its best), and
    /// write its curve to lr_find.png and lr_find.csv [default: off]
    #[arg(long)]
    lr_find: bool,

    /// Learning rate of the classifier alone, in --freeze-epochs [default: 5 × --lr for sgd, --lr
    /// for adam and adamw, 2 × --lr with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    head_lr: Option<f64>,

    /// Earlier layers learn at lr/X, those between geometrically between [default: 1; 100 with
    /// --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr_mult: Option<f64>,

    /// How the rate changes from step to step, in each of the two phases [default: cosine; onecycle
    /// with --recipe fastai]
    #[arg(long, value_enum)]
    lr_scheduler: Option<SchedulerName>,

    /// Epochs of the whole network in which the rate rises linearly before that [default: 0]
    #[arg(long, value_name = "N")]
    lr_warmup_epochs: Option<u32>,

    /// Epochs between two drops of step [default: 7]
    #[arg(long, value_name = "N")]
    lr_step_size: Option<u32>,

    /// What a drop of step multiplies the rate by [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr_gamma: Option<f64>,

    /// The share of the steps in which onecycle rises [default: 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pct_start: Option<f64>,

    /// The highest rate of onecycle over its first [default: 25; 5 with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    div_factor: Option<f64>,

    /// The first rate of onecycle over its last [default: 10000; 20000 with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    final_div_factor: Option<f64>,
}

/// What `--lr` takes.
#[derive(Clone, Copy, Debug)]
enum LearningRate {
    Auto,
    Given(f64),
}

impl FromStr for LearningRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(rate)) => Ok(Self::Given(rate)),
            (_, Err(_)) => Err("a number or auto is expected".into()),
        }
    }
}

/// What `--lr-scheduler` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum SchedulerName {
    /// It does not
    Constant,
    /// Drops every --lr-step-size epochs
    Step,
    /// Falls to 0 along half a cosine
    Cosine,
    /// Rises to --lr, then falls: PyTorch's OneCycleLR, without its cycle of momentum
    OneCycle,
}

impl RateOptions {
    /// The schedules of the whole network and of the classifier alone.
    fn resolve(&self, recipe: Recipe) -> Result<[LrScheduler; 2]> {
        let chosen = self.lr_scheduler.unwrap_or(match recipe {
            Recipe::Plain => SchedulerName::Cosine,
            Recipe::FastAi => SchedulerName::OneCycle,
        });
        let of_step = self.lr_step_size.is_some() || self.lr_gamma.is_some();
        if chosen != SchedulerName::Step && of_step {
            let text = "--lr-step-size and --lr-gamma are options of --lr-scheduler step; leave \
                        them out, or add that";
            return Err(Error::Usage(text.into()));
        }
        let of_cycle = [self.pct_start, self.div_factor, self.final_div_factor];
        if chosen != SchedulerName::OneCycle && of_cycle.iter().any(Option::is_some) {
            let text = "--pct-start, --div-factor and --final-div-factor are options of \
                        --lr-scheduler onecycle; leave them out, or add that";
            return Err(Error::Usage(text.into()));
        }
        let (div, final_div) = match recipe {
            Recipe::Plain => (25.0, 1e4),
            Recipe::FastAi => (5.0, 2e4),
        };
        let scheduler = match chosen {
            SchedulerName::Constant => LrScheduler::Constant,
            SchedulerName::Step => LrScheduler::Step {
                size: self.lr_step_size.unwrap_or(7),
                gamma: self.lr_gamma.unwrap_or(0.1),
            },
            SchedulerName::Cosine => LrScheduler::Cosine,
            SchedulerName::OneCycle => LrScheduler::OneCycle {
                pct_start: self.pct_start.unwrap_or(0.3),
                div_factor: self.div_factor.unwrap_or(div),
                final_div_factor: self.final_div_factor.unwrap_or(final_div),
            },
        };
        let of_head = match (recipe, self.lr_scheduler) {
            (Recipe::FastAi, None) => {
                LrScheduler::OneCycle { pct_start: 0.99, div_factor: 25.0, final_div_factor: 4e3 }
            }
            _ => scheduler,
        };
        Ok([scheduler, of_head])
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Regularisation")]
struct RegularisationOptions {
    /// Weight X of the penalty ½X·‖θ−θ₀‖² to the starting weights; batch norm and classifier are free
    /// of it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    l2_sp: f64,

    /// The share of the target spread over all classes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    label_smoothing: f64,

    /// Average the weights and batch norm's statistics: at each step the average keeps X of itself; it
    /// is validated too, and best.safetensors is the best average [default: off]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    model_ema_decay: Option<f64>,

    /// Blend each image and its target with those of another, in a proportion drawn from Beta(X, X) for
    /// each batch: MixUp, typically 0.2; not while only the classifier is trained [default: off]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    mixup_alpha: f64,

    /// Replace a rectangle of each image by another's, of an area drawn from Beta(X, X): CutMix,
    /// typically 1; with --mixup-alpha, each batch has one of the two [default: off]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    cutmix_alpha: f64,

    /// What makes classes of few images count as much as others
    #[arg(long, value_enum, default_value_t = Balance::None)]
    balance: Balance,

    /// The share of the features that is dropped before the classifier
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    dropout: f64,

    /// The share of the images that skip the last block; the first is never skipped, those between
    /// linearly between
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    stochastic_depth: f64,

    /// The largest norm that all gradients together may have [default: none]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip_grad_norm: Option<f64>,
}

impl TrainOptions {
    /// Runs; `parse` makes options of arguments.
    fn run(self, name: &str, parse: impl Fn(Vec<String>) -> Self) -> Result<()> {
        let console = self.output.console();
        let mut begun = arguments();
        let options = match &self.folder.resume {
            None => self,
            Some(_) if self.folder.output_dir.is_some() => {
                let text = "--resume goes on in the run's own folder; leave --output-dir out";
                return Err(Error::Usage(text.into()));
            }
            // What is given now stands over what was given then; what that changes is checked.
            Some(folder) => {
                begun = begun_with(folder)?;
                parse([begun.clone(), arguments()].concat())
            }
        };
        // A run that goes on is noted as it was begun: it may have to go on once more.
        let config = Config { arguments: begun, ..options.config(&console)? };
        let interrupt = interrupt::install();
        let profile = options.folder.profile.is_some();
        let gpu_options = GpuOptions { profile, ..GpuOptions::default() };
        let gpu = options.compute.open_with(&console, gpu_options)?;
        crate::train::run(&gpu, config, name, &console, &interrupt)
    }

    /// The options resolved and checked.
    fn config(&self, console: &Console) -> Result<Config> {
        let Self { data, network, length, optimizer, rate, regularisation, folder, .. } = self;
        let chosen = optimizer.resolve()?;
        let lr = match rate.lr {
            Some(LearningRate::Given(lr)) => lr,
            Some(LearningRate::Auto) | None => match chosen {
                Algorithm::Sgd { .. } if self.from_scratch => {
                    let images = length.batch_size.saturating_mul(length.accumulate);
                    SCRATCH_LR * images as f64 / 256.0
                }
                _ => chosen.default_lr(),
            },
        };
        let head_over_lr = match (optimizer.recipe, chosen) {
            (_, Algorithm::Sgd { .. }) => 5.0,
            (Recipe::FastAi, _) => 2.0,
            (Recipe::Plain, _) => 1.0,
        };
        let of_recipe = (optimizer.recipe == Recipe::FastAi).then_some(100.0);
        let [lr_scheduler, head_lr_scheduler] = rate.resolve(optimizer.recipe)?;
        let warmup = match lr_scheduler {
            LrScheduler::OneCycle { .. } => 0,
            _ if !self.from_scratch => 0,
            _ => length.epochs.div_ceil(20).min(length.epochs.saturating_sub(1)),
        };
        let scratch = network.weights == Source::None;
        let config = Config {
            data: data.data.clone(),
            val_fraction: data.val_fraction,
            weights: network.weights.clone(),
            arch: network.arch,
            head: network.head,
            image_size: network.image_size.map(|size| size.last),
            first_image_size: network.image_size.and_then(|size| size.first),
            zero_init_residual: network.zero_init_residual,
            epochs: length.epochs,
            freeze_epochs: length.freeze_epochs.unwrap_or(if scratch { 0 } else { 1 }),
            unfreeze_every: length.unfreeze_every,
            batch_size: length.batch_size,
            accumulate: length.accumulate,
            max_steps: length.max_steps,
            patience: length.patience,
            best_by: length.best_by,
            optimizer: chosen,
            lr,
            lr_auto: matches!(rate.lr, Some(LearningRate::Auto)),
            lr_find: rate.lr_find,
            head_lr: rate.head_lr,
            head_over_lr,
            lr_mult: rate.lr_mult.or(of_recipe),
            lr_scheduler,
            head_lr_scheduler,
            lr_warmup_epochs: rate.lr_warmup_epochs.unwrap_or(warmup),
            weight_decay: optimizer.weight_decay(),
            norm_weight_decay: optimizer.norm_weight_decay,
            l2_sp: regularisation.l2_sp,
            label_smoothing: regularisation.label_smoothing,
            model_ema_decay: regularisation.model_ema_decay,
            mixup_alpha: regularisation.mixup_alpha,
            cutmix_alpha: regularisation.cutmix_alpha,
            balance: regularisation.balance,
            dropout: regularisation.dropout,
            stochastic_depth: regularisation.stochastic_depth,
            clip_grad_norm: regularisation.clip_grad_norm,
            freeze: network.freeze,
            cache_features: network.cache_features,
            bn: network.bn,
            augment: if data.no_augment { Augment::None } else { data.augment },
            auto_augment: data.auto_augment,
            shuffle: !data.no_shuffle,
            drop_last: data.drop_last,
            lessons: self.lessons.as_ref().map(|it| it.resolve(console)).transpose()?,
            seed: length.seed,
            workers: data.workers,
            recompute: self.recompute,
            tune: self.tune,
            profile: folder.profile.clone(),
            tensorboard: folder.tensorboard,
            save_every: folder.save_every,
            resume: folder.resume.clone(),
            arguments: Vec::new(),
            output_dir: folder.output_dir.clone(),
        };
        config.check()?;
        Ok(config)
    }
}
