//! A training run from the options to the files: its phases, and their epochs.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::config::Config;
use super::console::Console;
use super::features::Features;
use super::interrupt::Interrupt;
use super::metrics::{Epoch, Validation};
use super::network::Network;
use super::opening::{Args, Unreadable, scan, tell_network, tell_plan};
use super::phase::{Phase, Rates};
use super::profile::Profile;
use super::progress::{Best, Progress};
use super::run_dir::{Results, RunDir, StepLog};
use super::source::Source;
use super::step::Stepper;
use crate::data::Item;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan};
use crate::nn::{BnPolicy, Mode, Stage};
use crate::optim::schedule::{Schedule, Warmup};
use crate::optim::{Optimizer, Settings};

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
    let dataset = scan(&config, console)?;
    let mut unreadable = Unreadable::default();
    unreadable.tell(console, &dataset.skipped);
    let (mut network, report) = Network::start(gpu, &config, &dataset.classes, console)?;
    tell_network(console, &config, &network, report.as_ref());
    network.net.parameters_mut().require_gradients(gpu);
    let phases = Phase::all(&config);
    let rates = Rates::new(&phases, config.lr_mult);
    let folder = RunDir::create(config.output_dir.as_deref(), name)?;
    config.arch = Some(network.net.arch());
    config.image_size = Some(network.image_size);
    config.output_dir = Some(folder.path().to_owned());
    folder.write_args(&Args::new(gpu, &config, &network.classes, name))?;
    let mut run = Run {
        results: folder.results(rates.groups())?,
        steps: folder.step_log()?,
        gpu,
        config: &config,
        console,
        interrupt,
        folder,
        epochs: phases.iter().map(|phase| phase.epochs).sum(),
        rates,
        progress: Progress::default(),
        unreadable,
        memory_bytes: 0,
        profile: config.profile.as_deref().map(Profile::new),
        started,
    };
    let images = Images { train: dataset.train.into(), val: dataset.val.into() };
    for phase in &phases {
        if run.phase(phase, &network, &images)? == Ending::StepLimit {
            break;
        }
    }
    drop(network);
    run.conclude(&images.val)
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
    /// Epochs in all.
    pub epochs: u32,
    pub progress: Progress,
    pub unreadable: Unreadable,
    /// Device memory at the end of the latest epoch.
    pub memory_bytes: u64,
    pub profile: Option<Profile>,
    pub started: Instant,
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
    fn phase(&mut self, phase: &Phase, network: &Network, images: &Images) -> Result<Ending> {
        let mut leg = self.prepare(phase, network, images)?;
        let mut ending = Ending::Complete;
        for _ in 0..phase.epochs {
            ending = self.train_epoch(&mut leg)?;
            self.close_epoch(&leg)?;
            if ending != Ending::Complete {
                break;
            }
        }
        self.progress.phase += 1;
        self.progress.phase_step = 0;
        Ok(ending)
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
            Source::Images { train: images.train.clone(), val: images.val.clone() }
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
        let optimizer = Optimizer::new(gpu, parameters, settings, phase.train_from, rate)?;
        let mode = Mode::train_from(phase.train_from, config.bn);
        let smallest = smallest_batch(network, mode);
        let (_, steps) = source.epoch(config, network, self.progress.epoch, smallest)?;
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
        let mut stepper = Stepper::new(gpu, network, mode, config.label_smoothing)?;
        let largest = config.batch_size.min(source.train_images());
        let plan = stepper.plan(&optimizer, &source.blank(network, largest))?;
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
        let mut compute = |items: &Arc<[Item]>| -> Result<Features> {
            let (features, failed) =
                Features::compute(self.gpu, network, items, self.config, self.interrupt)?;
            self.unreadable.tell(self.console, &failed);
            Ok(features)
        };
        let source =
            Source::Features { train: compute(&images.train)?, val: compute(&images.val)? };
        self.console.line(format_args!(
            "features of {} images computed once, in {:.1} s",
            images.train.len() + images.val.len(),
            started.elapsed().as_secs_f64()
        ));
        Ok(source)
    }

    /// Validates after an epoch's steps, and notes, tells and saves what it brought.
    fn close_epoch(&mut self, leg: &Leg) -> Result<()> {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let network = leg.network;
        let number = self.progress.epoch + 1;
        let provenance = provenance(config, number);
        network.save(gpu, &self.folder.last(), provenance.clone())?;
        if self.interrupt.is_set() {
            let last = self.folder.last();
            console.line(format_args!("the weights so far are in {}", last.display()));
        }
        self.interrupt.check()?;
        let judged = leg.source.validate(gpu, network, config, self.interrupt)?;
        if let Some(judged) = &judged {
            self.unreadable.tell(console, &judged.failed);
        }
        let val = judged.map(|judged| Validation::from(&judged.metrics));
        let totals = std::mem::take(&mut self.progress.totals);
        let epoch = Epoch {
            epoch: number,
            epochs: self.epochs,
            seconds: self.started.elapsed().as_secs_f64(),
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
        let better = match (&self.progress.best, val) {
            (_, None) | (None, _) => true,
            (Some(Best { val: best, .. }), Some(val)) => {
                (val.top1, -val.loss) > (best.top1, -best.loss)
            }
        };
        if better {
            network.save(gpu, &self.folder.best(), provenance)?;
            self.progress.best = val.map(|val| Best { epoch: number, val });
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

fn provenance(config: &Config, epoch: u32) -> serde_json::Value {
    json!({
        "tool": concat!("wgrad ", env!("CARGO_PKG_VERSION")),
        "weights": config.weights.to_string(),
        "data": config.data.to_string(),
        "epoch": epoch,
        "seed": config.seed,
    })
}
