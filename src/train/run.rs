//! A training run from the options to the files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::config::Config;
use super::console::Console;
use super::interrupt::Interrupt;
use super::metrics::{Epoch, Validation};
use super::network::Network;
use super::phase::{Features, Phase, Source};
use super::profile::Profile;
use super::run_dir::{Results, RunDir, Step, StepLog};
use super::step::{Done, Pending, Pipeline, Stepper};
use super::validate::judge;
use crate::data::{Dataset, Item, ScanOptions, Skipped};
use crate::error::{Context, Error, Result};
use crate::gpu::{AdapterReport, Gpu, Plan};
use crate::nn::{BnPolicy, Mode, Stage};
use crate::optim::schedule::Warmup;
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
    let (network, report) = Network::start(gpu, &config, &dataset.classes, console)?;
    console.line(format_args!(
        "network: {} with {} classes, {} px",
        network.net.arch(),
        network.classes.len(),
        network.image_size
    ));
    match &report {
        Some(report) => {
            let report = report.to_string().replace('\n', "\n  ");
            console.line(format_args!("weights: {}, {report}", config.weights));
        }
        None => console.line("weights: random"),
    }
    let bn = match config.bn {
        BnPolicy::Train => "trained",
        BnPolicy::Frozen => "frozen",
    };
    console.line(format_args!(
        "batch norm: {bn} where layers are trained, frozen elsewhere; frozen layers: {}",
        match config.freeze.train_from() {
            Stage::Stem => "none".into(),
            stage => format!("everything before {}", stage.name()),
        }
    ));
    let phases = Phase::all(&config);
    let folder = RunDir::create(config.output_dir.as_deref(), name)?;
    config.arch = Some(network.net.arch());
    config.image_size = Some(network.image_size);
    config.output_dir = Some(folder.path().to_owned());
    folder.write_args(&Args::new(gpu, &config, &network.classes, name))?;
    let groups = groups(&phases, config.lr_mult);
    let mut run = Run {
        results: folder.results(groups.len())?,
        steps: folder.step_log()?,
        groups,
        gpu,
        config: &config,
        console,
        interrupt,
        network,
        folder,
        epochs: phases.iter().map(|phase| phase.epochs).sum(),
        epoch: 0,
        step: 0,
        best: None,
        unreadable: dataset.skipped.iter().map(|skipped| skipped.path.clone()).collect(),
        memory_bytes: 0,
        profile: config.profile.as_deref().map(Profile::new),
        started,
    };
    let (train, val) = (Arc::from(dataset.train), Arc::from(dataset.val));
    for phase in &phases {
        if run.phase(phase, &train, &val)? == Ending::StepLimit {
            break;
        }
    }
    run.conclude(&val)
}

fn scan(config: &Config, console: &Console) -> Result<Dataset> {
    let root = config.data.root()?;
    let options = ScanOptions { val_fraction: config.val_fraction, seed: config.seed };
    let dataset = Dataset::scan(&root, &options)
        .context(|| format!("looking for images in {}", root.display()))?;
    let counts = |items: &[Item]| {
        let per_class = dataset.per_class(items);
        let listed: Vec<_> = dataset
            .classes
            .iter()
            .zip(per_class)
            .take(12)
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        let more = if dataset.classes.len() > 12 { ", …" } else { "" };
        format!("{} ({}{more})", items.len(), listed.join(", "))
    };
    console.line(format_args!("data: {} classes in {}", dataset.classes.len(), root.display()));
    console.line(format_args!("  train {}", counts(&dataset.train)));
    console.line(format_args!("  val {}", counts(&dataset.val)));
    warn_unreadable(console, &dataset.skipped);
    if dataset.train.is_empty() {
        return Err(Error::data(&root, "there is no image to train on"));
    }
    Ok(dataset)
}

fn warn_unreadable(console: &Console, skipped: &[Skipped]) {
    for Skipped { path, reason } in skipped {
        console.warning(format_args!("left out {}: {reason}", path.display()));
    }
}

/// The stages that have a learning rate of their own in the files: with `lr_mult` all that a phase
/// trains, else the classifier's stands for all.
fn groups(phases: &[Phase], lr_mult: Option<f64>) -> Vec<Stage> {
    let first = phases.iter().map(|phase| phase.train_from).min();
    let first = first.filter(|_| lr_mult.is_some()).unwrap_or(Stage::Head);
    Stage::ALL.into_iter().filter(|&stage| stage >= first).collect()
}

/// What `args.json` holds: the options as resolved, and what ran them.
#[derive(Serialize)]
struct Args<'a> {
    command: &'a str,
    version: &'static str,
    commit: &'static str,
    host: Host,
    adapter: &'a AdapterReport,
    classes: &'a [String],
    #[serde(flatten)]
    config: &'a Config,
}

#[derive(Serialize)]
struct Host {
    os: &'static str,
    cpu: &'static str,
    threads: usize,
}

impl<'a> Args<'a> {
    fn new(gpu: &'a Gpu, config: &'a Config, classes: &'a [String], command: &'a str) -> Self {
        Self {
            command,
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("WGRAD_COMMIT"),
            host: Host {
                os: std::env::consts::OS,
                cpu: std::env::consts::ARCH,
                threads: std::thread::available_parallelism().map_or(1, usize::from),
            },
            adapter: gpu.report(),
            classes,
            config,
        }
    }
}

/// How a phase ended.
#[derive(PartialEq)]
enum Ending {
    Epochs,
    StepLimit,
}

/// A run on its way.
struct Run<'a> {
    gpu: &'a Gpu,
    config: &'a Config,
    console: &'a Console,
    interrupt: &'a Interrupt,
    network: Network,
    /// The stages whose learning rates are told.
    groups: Vec<Stage>,
    folder: RunDir,
    results: Results,
    steps: StepLog,
    /// Epochs in all.
    epochs: u32,
    /// Epochs done.
    epoch: u32,
    /// Steps begun.
    step: u64,
    /// The best validation so far, and the epoch (from 1) it came from.
    best: Option<(Validation, u32)>,
    /// Images found to be unreadable, each named once.
    unreadable: BTreeSet<PathBuf>,
    /// Device memory at the end of the latest epoch.
    memory_bytes: u64,
    profile: Option<Profile>,
    started: Instant,
}

impl Run<'_> {
    fn phase(&mut self, phase: &Phase, train: &Arc<[Item]>, val: &Arc<[Item]>) -> Result<Ending> {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let source = if phase.caches() {
            self.cache(train, val)?
        } else {
            Source::Images { train: train.clone(), val: val.clone() }
        };
        self.network.net.parameters_mut().require_gradients(gpu);
        let settings = Settings {
            algorithm: config.optimizer,
            weight_decay: config.weight_decay,
            norm_weight_decay: config.norm_weight_decay,
            clip_grad_norm: config.clip_grad_norm,
            l2_sp: config.l2_sp,
        };
        let (first, factor) = (phase.train_from, config.lr_mult.unwrap_or(1.0));
        let rate = |stage: Stage| rate_of(stage, first, factor);
        let mut optimizer =
            Optimizer::new(gpu, self.network.net.parameters(), settings, first, rate)?;
        let rates = |learning_rate: f64| -> Vec<f64> {
            let told = self.groups.iter();
            told.map(|&s| if s < first { 0.0 } else { learning_rate * rate(s) }).collect()
        };
        let mode = Mode::train_from(first, config.bn);
        let smallest = self.smallest_batch(mode);
        let (_, steps) = source.epoch(config, &self.network, self.epoch, smallest)?;
        if steps == 0 {
            return Err(Error::Usage(format!(
                "{} images make no batch of {}; lower --batch-size, or leave --drop-last out",
                source.train_images(),
                config.batch_size
            )));
        }
        let total = steps as u64 * u64::from(phase.epochs);
        let warmup =
            Warmup { steps: u64::from(phase.warmup_epochs) * steps as u64, start: WARMUP_START };
        let schedule = config.lr_scheduler.in_steps(steps as u64);
        console.line(format_args!(
            "training {} for {} of {} epochs, {steps} steps each",
            phase.name, phase.epochs, self.epochs
        ));

        // The network is borrowed by the steps, and saved between epochs; both only read it.
        let network = &self.network;
        let mut stepper = Stepper::new(gpu, network, mode, config.label_smoothing)?;
        let largest = config.batch_size.min(source.train_images());
        let plan = stepper.plan(&optimizer, &source.blank(network, largest))?;
        tell_plan(console, &plan, stepper.micro_batch(), largest, config.bn);
        gpu.prepare(&plan)?;
        let mut ending = Ending::Epochs;
        let first_step = self.step;
        for _ in 0..phase.epochs {
            let (batches, _) = source.epoch(config, network, self.epoch, smallest)?;
            let bar = console.epoch_bar(
                format_args!("epoch {}/{}", self.epoch + 1, self.epochs),
                source.train_images(),
            );
            let mut pipeline = Pipeline::start();
            let mut totals = Totals::default();
            let epoch_started = Instant::now();
            let mut settle = |done: Done| -> Result<()> {
                self.steps.append(&Step {
                    step: done.step,
                    epoch: self.epoch,
                    loss: done.loss,
                    lr: rates(done.learning_rate),
                    images: done.batch.labels.len(),
                    seconds: done.seconds,
                })?;
                if done.step == 0 {
                    let seconds = self.started.elapsed().as_secs_f64();
                    console.line(format_args!("first step done after {seconds:.1} s"));
                }
                totals.add(&done);
                bar.advance(done.batch.labels.len(), totals.loss(), totals.top1());
                finite(&done, &stepper)
            };
            for batch in batches {
                let batch = batch.context(|| "loading the training images")?;
                report_unreadable(console, &mut self.unreadable, &batch.failed);
                if batch.labels.len() < smallest {
                    continue;
                }
                let factor = warmup.factor(schedule, self.step - first_step, total);
                let learning_rate = phase.learning_rate * factor;
                let downloads = stepper.step(&mut optimizer, learning_rate, &batch)?;
                if let Some(profile) = &mut self.profile {
                    profile.add_step(gpu)?;
                }
                let pending = Pending { step: self.step, batch, learning_rate, downloads };
                self.step += 1;
                if let Some(done) = pipeline.push(pending)? {
                    settle(done)?;
                }
                let limit = self.config.max_steps.is_some_and(|limit| self.step >= limit);
                if limit {
                    ending = Ending::StepLimit;
                }
                if limit || self.interrupt.is_set() {
                    break;
                }
            }
            while let Some(done) = pipeline.pop()? {
                settle(done)?;
            }
            drop(bar);
            let seconds = epoch_started.elapsed().as_secs_f64();
            let provenance = provenance(config, self.epoch + 1);
            network.save(gpu, &self.folder.last(), provenance.clone())?;
            if self.interrupt.is_set() {
                let last = self.folder.last();
                console.line(format_args!("the weights so far are in {}", last.display()));
            }
            self.interrupt.check()?;
            let judged = source.validate(gpu, network, config, self.interrupt)?;
            self.epoch += 1;
            if let Some(judged) = &judged {
                report_unreadable(console, &mut self.unreadable, &judged.failed);
            }
            let val = judged.map(|judged| Validation::from(&judged.metrics));
            let epoch = Epoch {
                epoch: self.epoch,
                epochs: self.epochs,
                seconds: self.started.elapsed().as_secs_f64(),
                train_loss: totals.loss(),
                train_top1: totals.top1(),
                val,
                lr: rates(totals.learning_rate),
                images_per_second: totals.images as f64 / seconds,
            };
            self.results.append(&epoch)?;
            console.epoch(&epoch);
            self.memory_bytes = gpu.allocated_bytes();
            console.event(&json!({
                "event": "memory",
                "planned": plan.peak_bytes,
                "allocated": self.memory_bytes,
            }));
            let better = match (&self.best, val) {
                (_, None) | (None, _) => true,
                (Some((best, _)), Some(val)) => (val.top1, -val.loss) > (best.top1, -best.loss),
            };
            if better {
                network.save(gpu, &self.folder.best(), provenance)?;
                self.best = val.map(|val| (val, self.epoch));
            }
            if ending == Ending::StepLimit {
                break;
            }
        }
        Ok(ending)
    }

    /// Computes the features of all images once.
    fn cache(&mut self, train: &Arc<[Item]>, val: &Arc<[Item]>) -> Result<Source> {
        let started = Instant::now();
        let mut compute = |items: &Arc<[Item]>| -> Result<Features> {
            let (features, failed) =
                Features::compute(self.gpu, &self.network, items, self.config, self.interrupt)?;
            report_unreadable(self.console, &mut self.unreadable, &failed);
            Ok(features)
        };
        let source = Source::Features { train: compute(train)?, val: compute(val)? };
        self.console.line(format_args!(
            "features of {} images computed once, in {:.1} s",
            train.len() + val.len(),
            started.elapsed().as_secs_f64()
        ));
        Ok(source)
    }

    /// Images a batch must have for batch norm to see two values a channel.
    fn smallest_batch(&self, mode: Mode) -> usize {
        let last_side = self.network.image_size.div_ceil(32);
        match mode.train_from {
            Some(stage) if stage < Stage::Head && mode.bn == BnPolicy::Train && last_side == 1 => 2,
            _ => 1,
        }
    }

    /// Judges the best weights again, from their file, and says where everything is.
    fn conclude(self, val: &Arc<[Item]>) -> Result<()> {
        let Self { gpu, config, console, folder, best, memory_bytes, interrupt, .. } = self;
        if let Some(profile) = &self.profile {
            profile.finish(console)?;
        }
        drop(self.network);
        gpu.trim();
        let mut judged = None;
        if let Some((_, epoch)) = best {
            let network = Network::load(gpu, &folder.best(), None)
                .context(|| "reading the best weights back")?;
            let batch = config.batch_size;
            let metrics = judge(gpu, &network, val, batch, config.workers, interrupt)?.metrics;
            console.line(format_args!(
                "best: epoch {epoch}, val Acc@1 {:.1}  Acc@5 {:.1}  loss {:.3} from the written file",
                100.0 * metrics.top1,
                100.0 * metrics.top5,
                metrics.loss
            ));
            let name = |class: usize| &network.classes[class];
            let confused: Vec<_> = metrics
                .most_confused(3)
                .iter()
                .map(|c| {
                    format!("{} taken for {} ({})", name(c.actual), name(c.predicted), c.images)
                })
                .collect();
            if !confused.is_empty() {
                console.line(format_args!("most confused: {}", confused.join(", ")));
            }
            judged = Some((epoch, metrics));
        }
        let metrics = judged.as_ref().map(|(_, metrics)| metrics);
        console.event(&json!({
            "event": "end",
            "best_epoch": judged.as_ref().map(|(epoch, _)| epoch),
            "top1": metrics.map(|metrics| metrics.top1),
            "top5": metrics.map(|metrics| metrics.top5),
            "loss": metrics.map(|metrics| metrics.loss),
            "output_dir": folder.path().to_string_lossy(),
        }));
        console.line(format_args!(
            "device memory {:.0} MB; everything is in {}",
            memory_bytes as f64 / 1e6,
            folder.path().display()
        ));
        Ok(())
    }
}

/// What a stage's learning rate is multiplied by: 1/`factor` at the first stage trained, 1 at the
/// head, geometrically between.
fn rate_of(stage: Stage, first: Stage, factor: f64) -> f64 {
    let (depth, stages) = (Stage::Head as i32 - stage as i32, Stage::Head as i32 - first as i32);
    match stages {
        0 => 1.0,
        _ => factor.powf(-f64::from(depth) / f64::from(stages)),
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

fn tell_plan(console: &Console, plan: &Plan, micro_batch: usize, batch: usize, bn: BnPolicy) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    console.line(format_args!(
        "memory: {:.0} MB on the device; the largest tensor takes {:.1} of the {:.0} MB that can be \
         bound; {} kernels a step",
        mb(plan.peak_bytes),
        mb(plan.largest_bytes),
        mb(plan.binding_limit),
        plan.dispatches
    ));
    if micro_batch < batch {
        let statistics = match bn {
            BnPolicy::Train => ", and batch norm sees each part by itself",
            BnPolicy::Frozen => "",
        };
        console.warning(format_args!(
            "a batch of {batch} does not fit and is done {micro_batch} at a time; gradients add up\
             {statistics}"
        ));
    }
}

fn report_unreadable(console: &Console, known: &mut BTreeSet<PathBuf>, failed: &[Skipped]) {
    let new: Vec<_> =
        failed.iter().filter(|skipped| known.insert(skipped.path.clone())).cloned().collect();
    warn_unreadable(console, &new);
}

/// An error if the loss of a step is not finite, saying what went wrong first.
fn finite(done: &Done, stepper: &Stepper<'_>) -> Result<()> {
    if done.loss.is_finite() {
        return Ok(());
    }
    let first = stepper.first_non_finite(&done.batch)?;
    Err(Error::Diverged(format!(
        "the loss is {} at step {} (learning rate {:e}); the first value that is not finite is in {}; \
         try a lower --lr or --clip-grad-norm 1",
        done.loss,
        done.step,
        done.learning_rate,
        first.as_deref().unwrap_or("the loss itself")
    )))
}

/// What an epoch has seen so far.
#[derive(Default)]
struct Totals {
    images: usize,
    loss: f64,
    right: f64,
    learning_rate: f64,
}

impl Totals {
    fn add(&mut self, done: &Done) {
        let images = done.batch.labels.len();
        self.images += images;
        self.loss += done.loss * images as f64;
        self.right += done.right;
        self.learning_rate = done.learning_rate;
    }

    fn loss(&self) -> f64 {
        self.loss / self.images as f64
    }

    fn top1(&self) -> f64 {
        self.right / self.images as f64
    }
}
