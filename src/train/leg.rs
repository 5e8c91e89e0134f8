//! A phase on its way: what its steps take, made ready before the first of them.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Instant;

use super::config::{Balance, CacheFeatures, Config};
use super::console::Console;
use super::features::Features;
use super::network::Network;
use super::opening::tell_plan;
use super::phase::Phase;
use super::run::{Images, Run};
use super::source::Source;
use super::step::{Stepper, smallest_part};
use super::teachers::Targets;
use crate::data::{Augment, Items};
use crate::error::{Error, Result};
use crate::gpu::Plan;
use crate::nn::{BnPolicy, Mode, Stage};
use crate::optim::schedule::{Schedule, Warmup};
use crate::optim::{Optimizer, Settings};
use crate::tune::tune;

/// Start of a warm-up, as torchvision's reference training has it.
const WARMUP_START: f64 = 0.01;

/// A phase on its way.
pub(super) struct Leg<'a> {
    pub phase: &'a Phase,
    pub network: &'a Network,
    pub source: Source,
    /// What the frozen layers took for the training images, if that is done only once.
    pub frozen_seconds: Option<f64>,
    pub stepper: Stepper<'a>,
    pub optimizer: Optimizer,
    /// What a step takes.
    pub plan: Plan,
    /// Images that each part of a batch must have.
    pub smallest: usize,
    /// Side of the training images in pixels, now.
    pub image_size: u32,
    schedule: Schedule,
    warmup: Warmup,
    /// Steps of an epoch.
    epoch_steps: u64,
}

/// What the layers before a stage make of all images, as long as these layers are frozen.
pub(super) struct Cached {
    first: Stage,
    train: Rc<Features>,
    val: Rc<Features>,
}

impl Leg<'_> {
    /// Whether so many images make a step.
    pub fn takes(&self, images: usize) -> bool {
        smallest_part(images, self.stepper.micro_batch()) >= self.smallest
    }

    /// The learning rate of a step, counted from the start of the phase.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let in_epochs = |epochs: u32| u64::from(epochs) * self.epoch_steps;
        let step = in_epochs(self.phase.schedule_done) + step;
        let total = in_epochs(self.phase.schedule_epochs);
        self.phase.learning_rate * self.warmup.factor(self.schedule, step, total)
    }
}

impl<'r> Run<'r> {
    /// Everything that a phase needs, compiled and counted.
    pub(super) fn prepare<'a>(
        &mut self,
        phase: &'a Phase,
        network: &'a Network,
        images: &Images,
    ) -> Result<Leg<'a>>
    where
        'r: 'a,
    {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let count = images.train.len() + images.val.len();
        // The phase before may have had the same layers frozen.
        let cached = self.cached.take().filter(|cached| cached.first == phase.train_from);
        let (source, frozen_seconds) = if phase.caches(config, network, count) {
            let targets = self.targets(images)?;
            let (cached, seconds) = match cached {
                Some(cached) => (cached, None),
                None => {
                    let (cached, seconds) = self.cache(network, phase.train_from, images)?;
                    (cached, Some(seconds))
                }
            };
            let (train, val) = (cached.train.clone(), cached.val.clone());
            self.cached = Some(cached);
            (Source::Features { train, val, targets }, seconds)
        } else {
            // Images that are never the same are shown to the teachers step by step.
            let targets = match phase.sees_same_pixels(config) {
                true => self.targets(images)?,
                false => None,
            };
            let (train, val) = (images.train.clone(), images.val.clone());
            (Source::Images { train, val, mix: phase.mix(config), targets }, None)
        };
        let settings = Settings {
            algorithm: config.optimizer,
            weight_decay: config.weight_decay,
            norm_weight_decay: config.norm_weight_decay,
            clip_grad_norm: config.clip_grad_norm,
            l2_sp: config.l2_sp,
        };
        let rate = |stage: Stage| self.rates.of(stage);
        let parameters = network.net.parameters();
        let mut optimizer = Optimizer::new(gpu, parameters, settings, phase.train_from, rate)?;
        if let Some(start) = &self.start {
            optimizer.pull_to(start);
        }
        let state = self.state.take().filter(|_| self.progress.phase_step > 0);
        if let Some(state) = state {
            state.restore(gpu, &self.folder.state(), &optimizer.state())?;
            optimizer.resume(self.progress.phase_step);
        }
        let recompute = config.recompute;
        let mode = Mode { recompute, ..Mode::train_from(phase.train_from, config.bn) };
        let image_size = match source {
            Source::Images { .. } => config.training_size(self.progress.epoch, network.image_size),
            Source::Features { .. } => network.image_size,
        };
        let smallest = smallest_part_of(phase, config, network.image_size);
        check_batches(config, source.train_images(), smallest)?;
        let steps = source.batches(config, self.progress.epoch, smallest).len() as u64;
        let left_out = source.batches(config, self.progress.epoch, 1).len() as u64 > steps;
        console.line(format_args!(
            "training {} for {} of {} epochs, {steps} steps each",
            phase.name, phase.epochs, self.epochs
        ));
        if left_out {
            let part = if config.accumulate > 1 { " with a part" } else { "" };
            console.line(format_args!(
                "  a last batch{part} of a single image is left out: at 32 px it has one value a channel \
                 in the last layers, and batch norm needs two"
            ));
        }
        if config.grows() && matches!(source, Source::Images { .. }) {
            console.line(format_args!("  {}", growth(config, network.image_size)));
        }
        let mut stepper = Stepper::new(gpu, network, mode, config.label_smoothing, self.teachers);
        stepper.limit(config.batch_size);
        stepper.resize(image_size);
        if config.balance == Balance::Loss {
            stepper.weigh(source.class_weights(network.classes.len()))?;
        }
        network.net.regularise(gpu, config.noise());
        if let Some(ema) = &self.ema {
            stepper.average(ema.clone());
        }
        let largest = config.step_images().min(source.train_images());
        let blank = source.blank(network, image_size, largest);
        let mut plan = stepper.plan(&optimizer, &blank)?;
        if config.tune {
            console.line(format_args!("tuning {} passes", plan.problems.len()));
            tune(gpu, &plan.problems, |tuned| console.detail(tuned))?;
            plan = stepper.plan(&optimizer, &blank)?;
        }
        tell_plan(console, config, &plan, stepper.micro_batch(), largest);
        gpu.prepare(&plan)?;
        Ok(Leg {
            phase,
            network,
            source,
            frozen_seconds,
            stepper,
            optimizer,
            plan,
            smallest,
            image_size,
            schedule: phase.scheduler.in_steps(steps),
            warmup: Warmup { steps: u64::from(phase.warmup_epochs) * steps, start: WARMUP_START },
            epoch_steps: steps,
        })
    }

    /// Has the images be as large as the epoch to come wants them, where they grow.
    pub(super) fn resize(&mut self, leg: &mut Leg) -> Result<()> {
        let (gpu, config) = (self.gpu, self.config);
        let size = config.training_size(self.progress.epoch, leg.network.image_size);
        if size == leg.image_size || matches!(leg.source, Source::Features { .. }) {
            return Ok(());
        }
        leg.image_size = size;
        leg.stepper.resize(size);
        leg.stepper.limit(config.batch_size);
        let largest = config.step_images().min(leg.source.train_images());
        let blank = leg.source.blank(leg.network, size, largest);
        leg.plan = leg.stepper.plan(&leg.optimizer, &blank)?;
        self.console.line(format_args!("images of {size} px from here on"));
        tell_plan(self.console, config, &leg.plan, leg.stepper.micro_batch(), largest);
        gpu.prepare(&leg.plan)
    }

    /// What the teachers make of the training images without augmentation, computed once; none
    /// without teachers.
    fn targets(&mut self, images: &Images) -> Result<Option<Rc<Targets>>> {
        if let (None, Some(teachers)) = (&self.targets, self.teachers) {
            let Config { batch_size, workers, .. } = *self.config;
            let (gpu, train) = (self.gpu, &images.train);
            let targets = teachers.all_targets(gpu, train, batch_size, workers, self.interrupt)?;
            self.targets = Some(Rc::new(targets));
        }
        Ok(self.targets.clone())
    }

    /// Computes once what the layers before `first` make of all images. Returns also the seconds that
    /// the training images took.
    fn cache(&mut self, network: &Network, first: Stage, images: &Images) -> Result<(Cached, f64)> {
        let started = Instant::now();
        let mut compute = |items: &Items| -> Result<Rc<Features>> {
            let (features, failed) =
                Features::compute(self.gpu, network, first, items, self.config, self.interrupt)?;
            self.unreadable.tell(self.console, &failed);
            Ok(Rc::new(features))
        };
        let train = compute(&images.train)?;
        let seconds = started.elapsed().as_secs_f64();
        let cached = Cached { first, train, val: compute(&images.val)? };
        self.console.line(format_args!(
            "features of {} images computed once, in {:.1} s",
            images.train.len() + images.val.len(),
            started.elapsed().as_secs_f64()
        ));
        Ok((cached, seconds))
    }
}

/// In which epochs images grow, and to what.
fn growth(config: &Config, last: u32) -> String {
    let size = |epoch: u32| config.training_size(epoch, last);
    let first = config.freeze_epochs;
    let grows = |&epoch: &u32| epoch == first || size(epoch) != size(epoch - 1);
    let steps = (first..first + config.epochs).filter(grows);
    let told: Vec<_> =
        steps.map(|epoch| format!("{} px from epoch {}", size(epoch), epoch + 1)).collect();
    format!("images of {}", told.join(", "))
}

/// Checks that each phase has a step to do, given `images` to train on and the network's own image size.
///
/// # Errors
/// [`Error::Usage`] with what to change.
pub(super) fn check_steps(
    config: &Config,
    phases: &[Phase],
    images: usize,
    image_size: u32,
) -> Result<()> {
    let check = |phase| check_batches(config, images, smallest_part_of(phase, config, image_size));
    phases.iter().try_for_each(check)
}

/// Warns of steps whose batch norm sees hardly more than one value a channel.
pub(super) fn warn_of_few_images(
    config: &Config,
    phases: &[Phase],
    images: usize,
    image_size: u32,
    console: &Console,
) {
    /// Images of a step that are few: of 24 fine-tunes whose last batch had two, four ended with logits hundreds
    /// of times as large as the others' (benches/results/README.md).
    const FEW: RangeInclusive<usize> = 2..=3;

    let alone = |phase| smallest_part_of(phase, config, image_size) > 1;
    if !phases.iter().any(alone) {
        return;
    }
    let [whole, last] =
        batches(config, images).map(|images| smallest_part(images, config.batch_size));
    let part = if config.accumulate > 1 { "a part of " } else { "" };
    let (what, images, advice) = if FEW.contains(&whole) {
        ("every batch", whole, "take a larger --batch-size")
    } else if FEW.contains(&last) {
        (
            "the last batch",
            last,
            "--drop-last leaves it out, and another --batch-size divides otherwise",
        )
    } else {
        return;
    };
    console.warning(format_args!(
        "{part}{what} has {images} images, of each of which batch norm sees one value a channel in the last \
         layers: such a step can throw the network far off; {advice}"
    ));
}

/// Warns of options that vary images where the classifier alone is trained, which sees each as it is.
pub(super) fn warn_of_idle_options(config: &Config, phases: &[Phase], console: &Console) {
    let sees_features = |phase: &Phase| phase.train_from == Stage::Head;
    if config.cache_features == CacheFeatures::Never || !phases.iter().all(sees_features) {
        return;
    }
    let given = [
        ("--augment strong", config.augment == Augment::Strong),
        ("--auto-augment", config.auto_augment.is_some()),
        ("--mixup-alpha", config.mixup_alpha > 0.0),
        ("--cutmix-alpha", config.cutmix_alpha > 0.0),
        ("--stochastic-depth", config.stochastic_depth > 0.0),
    ];
    let idle: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if !idle.is_empty() {
        console.warning(format_args!(
            "of no effect: {}; only the classifier is trained, on what the frozen layers make of each image as \
             it is",
            idle.join(", ")
        ));
    }
}

/// Images of whole batches and of the last, smaller one; 0 where there is none.
fn batches(config: &Config, images: usize) -> [usize; 2] {
    let (whole, rest) = (config.step_images(), images % config.step_images());
    [if images < whole { 0 } else { whole }, if config.drop_last { 0 } else { rest }]
}

/// Checks that `images` make a batch of which each part has `smallest` at least.
fn check_batches(config: &Config, images: usize, smallest: usize) -> Result<()> {
    let whole = config.step_images();
    if config.drop_last && images < whole {
        return Err(Error::Usage(format!(
            "{images} images make no batch of {whole}; lower --batch-size or --accumulate, or leave \
             --drop-last out"
        )));
    }
    let part = |images: usize| smallest_part(images, config.batch_size);
    if batches(config, images).into_iter().map(part).any(|part| part >= smallest.max(1)) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--batch-size {} makes no step of {images} images in which none is alone, and of one image as \
         small as these batch norm sees a single value a channel; raise --batch-size or --image-size, or \
         take --bn frozen",
        config.batch_size
    )))
}

/// Images that each part of a phase's batches must have for batch norm to see two values a channel, given
/// the network's own image size.
fn smallest_part_of(phase: &Phase, config: &Config, image_size: u32) -> usize {
    let last_side = config.first_image_size.unwrap_or(image_size).div_ceil(32);
    let trains_norms = phase.train_from < Stage::Head && config.bn == BnPolicy::Train;
    if trains_norms && last_side == 1 { 2 } else { 1 }
}
