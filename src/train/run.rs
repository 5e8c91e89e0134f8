//! A training run from the options to the files: its phases, and their epochs.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::config::{Balance, Config};
use super::console::Console;
use super::features::Features;
use super::identity::Fingerprint;
use super::interrupt::Interrupt;
use super::metrics::{Epoch, Validation};
use super::network::Network;
use super::opening::{
    Args, Unreadable, scan, tell_network, tell_plan, tell_teachers, tell_weights,
};
use super::phase::{Phase, Rates};
use super::profile::Profile;
use super::progress::{Best, Progress};
use super::run_dir::{Results, RunDir, StepLog, read_json, write_json};
use super::source::Source;
use super::state::{Named, Saver, State};
use super::step::Stepper;
use super::teachers::{Targets, Teachers};
use crate::data::{Augment, Item};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan, Slice};
use crate::nn::{BnPolicy, Mode, Stage};
use crate::optim::schedule::{Schedule, Warmup};
use crate::optim::{Optimizer, Settings};
use crate::tune::tune;

/// Start of a warm-up, as torchvision's reference training has it.
const WARMUP_START: f64 = 0.01;

/// Trains as `config` says, into a folder of its own under the name `name`.
///
/// # Errors
/// Whatever kept it from being done; [`Error::Interrupted`] after the weights are saved.
pub fn run(
    gpu: &Gpu,
    mut config: Config,
    name: &str,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<()> {
    let started = Instant::now();
    let begun = config.resume.as_deref().map(RunDir::reopen).transpose()?;
    let state = match &begun {
        Some(folder) => State::read(&folder.state())?,
        None => None,
    };
    let dataset = scan(&config, console)?;
    let mut unreadable = Unreadable::default();
    unreadable.tell(console, &dataset.skipped);
    let fingerprint = Fingerprint::of(&dataset)?;
    let mut network = match &state {
        Some(state) => state.network(gpu)?,
        None => {
            let (network, report) = Network::start(gpu, &config, &dataset.classes, console)?;
            tell_weights(console, &config, report.as_ref());
            network
        }
    };
    tell_network(console, &config, &network);
    let teachers =
        config.lessons.as_ref().map(|it| Teachers::load(gpu, it, &network)).transpose()?;
    if let Some(teachers) = &teachers {
        tell_teachers(console, teachers);
    }
    network.net.parameters_mut().require_gradients(gpu);
    config.arch = Some(network.net.arch());
    config.image_size = Some(network.image_size);
    let folder = match begun {
        Some(folder) => {
            let args = Args::new(gpu, &config, &network.classes, name);
            args.check(&read_json(&folder.args())?, console)?;
            if state.is_some() {
                fingerprint.check(&read_json(&folder.images())?)?;
            }
            folder
        }
        None => RunDir::create(config.output_dir.as_deref(), name)?,
    };
    config.output_dir = Some(folder.path().to_owned());
    if state.is_none() {
        write_json(&folder.args(), &Args::new(gpu, &config, &network.classes, name))?;
        write_json(&folder.images(), &fingerprint)?;
    }
    let phases = Phase::all(&config);
    let rates = Rates::new(&phases, config.lr_mult);
    let progress = state.as_ref().map(|state| state.progress().clone()).unwrap_or_default();
    let mut run = Run {
        results: folder.results(rates.groups(), progress.epoch)?,
        steps: folder.step_log(progress.step)?,
        gpu,
        config: &config,
        console,
        interrupt,
        folder,
        epochs: phases.iter().map(|phase| phase.epochs).sum(),
        rates,
        start: start_of(gpu, &config, &network),
        unreadable,
        memory_bytes: 0,
        profile: config.profile.as_deref().map(Profile::new),
        saver: Saver::new(config.save_every),
        state: None,
        under_way: false,
        teachers: teachers.as_ref(),
        targets: None,
        before: progress.seconds,
        progress,
        started,
    };
    let images = Images { train: dataset.train.into(), val: dataset.val.into() };
    run.tell_start(&network, &images);
    if !run.progress.complete {
        if let Some(state) = state {
            state.restore(gpu, &run.folder.state(), &run.memory(&network))?;
            run.state = Some(state);
        }
        run.phases(&phases, &network, &images)?;
    }
    drop(network);
    run.conclude(&images.val)
}

/// What the penalty of `--l2-sp` pulls to: the parameters that the run begins with.
fn start_of(gpu: &Gpu, config: &Config, network: &Network) -> Option<Slice> {
    let parameters = network.net.parameters().values();
    (config.l2_sp != 0.0).then(|| {
        let start = gpu.lease(parameters.bytes);
        gpu.copy(parameters, &start);
        start
    })
}

/// The images of a run.
struct Images {
    train: Arc<[Item]>,
    val: Arc<[Item]>,
}

/// How a phase or an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ending {
    /// With its last step.
    Complete,
    /// With the last step that the run may do.
    StepLimit,
}

/// A run on its way.
pub(super) struct Run<'a> {
    pub gpu: &'a Gpu,
    pub config: &'a Config,
    pub console: &'a Console,
    pub interrupt: &'a Interrupt,
    pub folder: RunDir,
    pub results: Results,
    pub steps: StepLog,
    pub rates: Rates,
    /// What `--l2-sp` pulls to.
    start: Option<Slice>,
    /// Epochs in all.
    pub epochs: u32,
    pub progress: Progress,
    pub unreadable: Unreadable,
    /// Device memory at the end of the latest epoch.
    pub memory_bytes: u64,
    pub profile: Option<Profile>,
    pub saver: Saver,
    /// What the run goes on from, until its optimizer is there.
    state: Option<State>,
    /// Whether a step has been done.
    pub under_way: bool,
    /// Seconds that the run took before it was stopped.
    before: f64,
    pub started: Instant,
    /// Whom the network learns from besides the labels.
    teachers: Option<&'a Teachers>,
    /// What they make of the training images, once that was needed.
    targets: Option<Rc<Targets>>,
}

/// A phase on its way.
pub(super) struct Leg<'a> {
    pub phase: &'a Phase,
    pub network: &'a Network,
    pub source: Source,
    pub stepper: Stepper<'a>,
    pub optimizer: Optimizer,
    /// What a step takes.
    plan: Plan,
    /// Images a batch must have.
    pub smallest: usize,
    schedule: Schedule,
    warmup: Warmup,
    /// Steps of the whole phase.
    steps: u64,
}

impl Leg<'_> {
    /// The learning rate of a step, counted from the start of the phase.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.phase.learning_rate * self.warmup.factor(self.schedule, step, self.steps)
    }
}

impl<'r> Run<'r> {
    fn phases(&mut self, phases: &[Phase], network: &Network, images: &Images) -> Result<()> {
        let mut end = 0;
        for phase in phases {
            end += phase.epochs;
            if self.progress.epoch < end
                && self.phase(phase, end, network, images)? == Ending::StepLimit
            {
                return Ok(());
            }
        }
        self.progress.complete = true;
        State::take(self.gpu, network, &[], &self.progress)?.write(&self.folder.state())
    }

    /// Does a phase that ends with epoch `end`.
    fn phase(
        &mut self,
        phase: &Phase,
        end: u32,
        network: &Network,
        images: &Images,
    ) -> Result<Ending> {
        let mut leg = self.prepare(phase, network, images)?;
        while self.progress.epoch < end && !self.out_of_patience(phase, end) {
            let ending = self.train_epoch(&mut leg)?;
            if ending == Ending::StepLimit {
                self.save_state(&leg)?;
            }
            let closed = self.interrupt.check().and_then(|()| self.close_epoch(&leg));
            if let Err(Error::Interrupted) = closed {
                self.stop(&leg)?;
            }
            closed?;
            if ending == Ending::StepLimit {
                return Ok(ending);
            }
            if self.progress.epoch == end {
                self.progress.phase_step = 0;
            }
            self.save_state(&leg)?;
        }
        Ok(Ending::Complete)
    }

    /// Whether the run's last phase has not become better for too long.
    fn out_of_patience(&self, phase: &Phase, end: u32) -> bool {
        let (Some(patience), Some(best)) = (self.config.patience, &self.progress.best) else {
            return false;
        };
        let since = best.epoch.max(end - phase.epochs);
        let ends = end == self.epochs && self.progress.epoch - since >= patience;
        if ends {
            self.console.line(format_args!(
                "no epoch since {} was better, so the run ends with --patience {patience}",
                best.epoch
            ));
        }
        ends
    }

    /// Saves what a run that is asked to stop can go on from.
    fn stop(&mut self, leg: &Leg) -> Result<()> {
        let (last, folder) = (self.folder.last(), self.folder.path().display());
        leg.network.save(self.gpu, &last, self.provenance(self.progress.epoch + 1))?;
        self.console.line(format_args!("the weights so far are in {}", last.display()));
        self.console.line(format_args!("`wgrad finetune --resume {folder}` goes on"));
        self.console.event(&json!({
            "event": "interrupted",
            "step": self.progress.step,
            "output_dir": self.folder.path().to_string_lossy(),
        }));
        self.save_state(leg)
    }

    /// Saves what the run can go on from.
    pub fn save_state(&mut self, leg: &Leg) -> Result<()> {
        let started = Instant::now();
        self.progress.seconds = self.seconds();
        let mut memory = self.memory(leg.network);
        if self.progress.phase_step > 0 {
            memory.extend(leg.optimizer.state());
        }
        let state = State::take(self.gpu, leg.network, &memory, &self.progress)?;
        // What the state says is logged must be on the disk before it.
        self.steps.sync()?;
        self.results.sync()?;
        state.write(&self.folder.state())?;
        self.saver.saved(started);
        Ok(())
    }

    /// The device memory that lasts as long as the run.
    fn memory(&self, network: &Network) -> Vec<Named> {
        let mut memory = vec![
            ("parameters".to_owned(), network.net.parameters().values().clone()),
            ("statistics".to_owned(), network.net.statistics().clone()),
        ];
        memory.extend(self.start.clone().map(|start| ("start".to_owned(), start)));
        memory
    }

    /// What the run took so far.
    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Tells programs what begins.
    fn tell_start(&self, network: &Network, images: &Images) {
        self.console.event(&json!({
            "event": "start",
            "output_dir": self.folder.path().to_string_lossy(),
            "arch": network.net.arch().to_string(),
            "classes": network.classes,
            "image_size": network.image_size,
            "train_images": images.train.len(),
            "val_images": images.val.len(),
            "epochs": self.epochs,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
        }));
        if self.config.resume.is_some() {
            self.console.line(match (self.progress.complete, self.progress.step) {
                (true, _) => "the run is complete".to_owned(),
                (false, 0) => "nothing was saved yet, so the run begins again".to_owned(),
                (false, steps) => format!("going on after {steps} steps"),
            });
        }
    }

    /// Everything that a phase needs, compiled and counted.
    fn prepare<'a>(
        &mut self,
        phase: &'a Phase,
        network: &'a Network,
        images: &Images,
    ) -> Result<Leg<'a>>
    where
        'r: 'a,
    {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let source = if phase.caches() {
            self.cache(network, images)?
        } else {
            // Images that are never the same are shown to the teachers step by step.
            let targets = match config.augment {
                Augment::None if config.auto_augment.is_none() => self.targets(images)?,
                _ => None,
            };
            Source::Images { train: images.train.clone(), val: images.val.clone(), targets }
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
        let mode = Mode::train_from(phase.train_from, config.bn);
        let smallest = smallest_batch(network, mode);
        let steps = source.batches(config, self.progress.epoch, smallest).len();
        if steps == 0 {
            return Err(Error::Usage(format!(
                "{} images make no batch of {}; lower --batch-size, or leave --drop-last out",
                source.train_images(),
                config.batch_size
            )));
        }
        let steps = steps as u64;
        console.line(format_args!(
            "training {} for {} of {} epochs, {steps} steps each",
            phase.name, phase.epochs, self.epochs
        ));
        let mut stepper = Stepper::new(gpu, network, mode, config.label_smoothing, self.teachers)?;
        if config.balance == Balance::Loss {
            stepper.weigh(source.class_weights(network.classes.len()))?;
        }
        network.net.regularise(gpu, config.noise());
        let largest = config.batch_size.min(source.train_images());
        let blank = source.blank(network, largest);
        let mut plan = stepper.plan(&optimizer, &blank)?;
        if config.tune {
            console.line(format_args!("tuning {} passes", plan.problems.len()));
            tune(gpu, &plan.problems, |tuned| console.detail(tuned))?;
            plan = stepper.plan(&optimizer, &blank)?;
        }
        tell_plan(console, &plan, stepper.micro_batch(), largest, config.bn);
        gpu.prepare(&plan)?;
        Ok(Leg {
            phase,
            network,
            source,
            stepper,
            optimizer,
            plan,
            smallest,
            schedule: config.lr_scheduler.in_steps(steps),
            warmup: Warmup { steps: u64::from(phase.warmup_epochs) * steps, start: WARMUP_START },
            steps: u64::from(phase.epochs) * steps,
        })
    }

    /// Computes the features of all images once.
    fn cache(&mut self, network: &Network, images: &Images) -> Result<Source> {
        let started = Instant::now();
        let targets = self.targets(images)?;
        let mut compute = |items: &Arc<[Item]>| -> Result<Features> {
            let (features, failed) =
                Features::compute(self.gpu, network, items, self.config, self.interrupt)?;
            self.unreadable.tell(self.console, &failed);
            Ok(features)
        };
        let source = Source::Features {
            train: compute(&images.train)?,
            val: compute(&images.val)?,
            targets,
        };
        self.console.line(format_args!(
            "features of {} images computed once, in {:.1} s",
            images.train.len() + images.val.len(),
            started.elapsed().as_secs_f64()
        ));
        Ok(source)
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

    /// What the weights' file says of where they come from.
    fn provenance(&self, epoch: u32) -> serde_json::Value {
        let config = self.config;
        let mut provenance = json!({
            "tool": concat!("wgrad ", env!("CARGO_PKG_VERSION")),
            "weights": config.weights.to_string(),
            "data": config.data.to_string(),
            "epoch": epoch,
            "seed": config.seed,
        });
        if let Some(teachers) = self.teachers {
            let lessons = teachers.lessons();
            provenance["fuse"] = json!({
                "method": "distill",
                "temperature": lessons.temperature,
                "task_loss_weight": lessons.task_loss_weight,
                "distill_loss_weight": lessons.distill_loss_weight,
            });
            provenance["parents"] = teachers.lineage().into();
        }
        provenance
    }

    /// Validates after an epoch's steps, and notes, tells and saves what it brought.
    fn close_epoch(&mut self, leg: &Leg) -> Result<()> {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let network = leg.network;
        let number = self.progress.epoch + 1;
        let provenance = self.provenance(number);
        network.save(gpu, &self.folder.last(), provenance.clone())?;
        let judged = leg.source.validate(gpu, network, config, self.interrupt)?;
        if let Some(judged) = &judged {
            self.unreadable.tell(console, &judged.failed);
        }
        let val = judged.map(|judged| Validation::from(&judged.metrics));
        let totals = std::mem::take(&mut self.progress.totals);
        let epoch = Epoch {
            epoch: number,
            epochs: self.epochs,
            seconds: self.seconds(),
            train_loss: totals.loss(),
            train_top1: totals.top1(),
            val,
            lr: self.rates.told(leg.phase, totals.learning_rate),
            images_per_second: totals.images as f64 / totals.seconds,
        };
        self.results.append(&epoch)?;
        console.epoch(&epoch);
        self.memory_bytes = gpu.allocated_bytes();
        console.event(&json!({
            "event": "memory",
            "planned": leg.plan.peak_bytes,
            "allocated": self.memory_bytes,
        }));
        let better = match (&self.progress.best, &val) {
            (_, None) | (None, _) => true,
            (Some(best), Some(val)) => config.best_by.is_better(val, &best.val),
        };
        if better {
            network.save(gpu, &self.folder.best(), provenance)?;
            self.progress.best = val.map(|val| Best { epoch: number, val });
            console.event(&json!({ "event": "best", "epoch": number, "val": val }));
        }
        self.progress.epoch = number;
        self.progress.batches = 0;
        Ok(())
    }
}

/// Images a batch must have for batch norm to see two values a channel.
fn smallest_batch(network: &Network, mode: Mode) -> usize {
    let last_side = network.image_size.div_ceil(32);
    match mode.train_from {
        Some(stage) if stage < Stage::Head && mode.bn == BnPolicy::Train && last_side == 1 => 2,
        _ => 1,
    }
}
