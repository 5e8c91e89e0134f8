//! `wgrad finetune` and `wgrad pretrain`: the same trainer from pretrained and from random weights.

mod options;
mod rates;

use std::path::Path;

use clap::{Args, Command};

use super::interrupt;
use super::shared::{ComputeOptions, OutputOptions, resolve_all};
use crate::checkpoint::{Source, check_writable, file_sha256};
use crate::data::Augment;
use crate::error::{Context, Error, Result};
use crate::gpu::GpuOptions;
use crate::optim::Algorithm;
use crate::train::config::{Config, LrScheduler};
use crate::train::run_dir::read_json;
use crate::train::{Console, Lessons, RunDir, check_command};
use options::{DataOptions, FolderOptions, LengthOptions, NetworkOptions, RegularisationOptions};
use rates::{LearningRate, OptimizerOptions, RateOptions, Recipe};

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
#[command(mut_arg("output_dir", |folder| folder.help(
    "A new or empty folder to write to [default: the first free of runs/pretrain, runs/pretrain-2, …]"
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
#[command(mut_arg("arch", |arch| arch.help(
    "resnet18, resnet34, resnet50, resnet101 or resnet152 [default: the student's own; resnet18 with \
     --student none]"
)))]
#[command(mut_arg("zero_init_residual", |zero| zero.help(
    "Start with the last batch norm's weight of every block at 0, so that blocks begin as their \
     shortcuts; with --student none [default: off]"
)))]
#[command(mut_arg("freeze_epochs", |epochs| epochs.help(
    "Epochs of the classifier alone, before those [default: 1; 0 with --student none]"
)))]
#[command(mut_arg("output_dir", |folder| folder.help(
    "A new or empty folder to write to [default: the first free of runs/distill, runs/distill-2, …]"
)))]
pub struct Distill {
    /// The networks to learn from: FILE, a run's folder, bundled, imagenet or hf:REPO[/FILE] [default:
    /// with --resume those of the run]
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
        let teachers = resolve_all(&self.teacher, console)?;
        let digests = teachers.iter().map(|path| file_sha256(path));
        Ok(Lessons {
            teacher_sha256: digests.collect::<Result<_>>()?,
            teachers,
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

/// The arguments that the run of `name` in `folder` was begun with; its output was for another terminal.
fn begun_with(folder: &Path, name: &str) -> Result<Vec<String>> {
    let args: serde_json::Value = read_json(&RunDir::args_of(folder)?)?;
    check_command(name, &args, folder)?;
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

    /// Measure which kernels are the fastest on this adapter, and keep that for later runs, whose
    /// numbers then differ in the last bits from those of runs before [default: off]
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
                begun = begun_with(folder, name)?;
                let mut options = parse([begun.clone(), arguments()].concat());
                // Teachers would join those given then.
                if let (Some(lessons), Some(now)) = (&mut options.lessons, &self.lessons)
                    && !now.teacher.is_empty()
                {
                    lessons.teacher.clone_from(&now.teacher);
                }
                options
            }
        };
        // A run that goes on is noted as it was begun: it may have to go on once more.
        let config = Config { arguments: begun, ..options.config(&console)? };
        // The run's own folder is yet to be made.
        let own = RunDir::next(config.output_dir.as_deref(), name);
        let is_own = |path: &Path| path.starts_with(&own);
        if let Some(path) = config.profile.as_deref().filter(|path| !is_own(path)) {
            check_writable(path).context(|| "checking where the profile goes")?;
        }
        let interrupt = interrupt::install();
        let profile = config.profile.is_some();
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
        let lessons = self.lessons.as_ref().map(|it| it.resolve(console)).transpose();
        let hint = match folder.resume {
            Some(_) => "; if the run was begun elsewhere, --teacher says where they are",
            None => "",
        };
        let lessons = lessons.context(|| format!("looking for the teachers{hint}"))?;
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
            lr_mult: rate.lr_mult.or(of_recipe).filter(|&factor| factor != 1.0),
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
            lessons,
            seed: length.seed,
            workers: data.workers,
            shrink_images: data.shrink_images,
            cache_images: data.cache_images.into(),
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
