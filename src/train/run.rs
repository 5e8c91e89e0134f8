//! A training run from the options to the files: its phases, and their epochs.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::config::Config;
use super::console::Console;
use super::identity::Fingerprint;
use super::interrupt::Interrupt;
use super::leg::{Cached, Leg, check_steps, warn_of_few_images, warn_of_idle_options};
use super::metrics::{Epoch, Metrics, Validation};
use super::network::Network;
use super::opening::{Args, Unreadable, scan, tell_network, tell_teachers, tell_weights};
use super::phase::{Phase, Rates};
use super::pictures::Pictures;
use super::profile::Profile;
use super::progress::{Best, Progress, Totals};
use super::run_dir::{Results, RunDir, StepLog, check_empty, read_json, write_json};
use super::state::{Saver, State};
use super::teachers::{Targets, Teachers};
use super::validate::Judged;
use crate::checkpoint::copy_atomically;
use crate::data::{Dataset, Items, Keep, Room, ScanOptions};
use crate::error::{Context, Error, Result};
use crate::gpu::{Gpu, Slice};
use crate::optim::{Ema, Scaling};
use crate::tune::digest;

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
    if let (None, Some(folder)) = (&begun, &config.output_dir) {
        check_empty(folder)?;
    }
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
    if let (Some(trained), Some(now)) = (&network.held_out, dataset.held_out)
        && let Some(doubt) = trained.doubt(now, dataset.held_out_of.as_deref(), &dataset.root)
    {
        console.warning(format_args!("{}: {doubt}", config.weights));
    }
    let teachers =
        config.lessons.as_ref().map(|it| Teachers::load(gpu, it, &network)).transpose()?;
    if let Some(teachers) = &teachers {
        tell_teachers(console, teachers);
    }
    network.net.parameters_mut().require_gradients(gpu);
    config.arch.get_or_insert(network.net.arch());
    config.image_size.get_or_insert(network.image_size);
    let (images, phases) = (dataset.train.len(), Phase::all(&config));
    check_steps(&config, &phases, images, network.image_size)?;
    warn_of_few_images(&config, &phases, images, network.image_size, console);
    warn_of_idle_options(&config, &phases, console);
    let folder = match begun {
        Some(folder) => {
            if config.lr_auto {
                config.lr = read_json::<Value>(&folder.args())?["lr"].as_f64().unwrap_or(config.lr);
            }
            let args = Args::new(gpu, &config, &network.classes, name);
            args.check(&folder, &read_json(&folder.args())?, console)?;
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
    let mut phases = Phase::all(&config);
    let rates = Rates::new(&phases, config.lr_mult);
    let progress = state.as_ref().map(|state| state.progress().clone()).unwrap_or_default();
    let mut run = Run {
        results: folder.results(
            rates.groups(),
            config.model_ema_decay.is_some(),
            progress.epoch,
        )?,
        steps: folder.step_log(progress.step)?,
        gpu,
        name,
        config: &config,
        console,
        interrupt,
        folder,
        epochs: phases.iter().map(|phase| phase.epochs).sum(),
        rates,
        start: start_of(gpu, &config, &network),
        ema: config.model_ema_decay.map(|decay| {
            let net = &network.net;
            Rc::new(Ema::new(gpu, net.parameters(), net.statistics(), decay, progress.step))
        }),
        unreadable,
        profile: config.profile.as_deref().map(Profile::new),
        pictures: Pictures::default(),
        saver: Saver::new(config.save_every),
        state: None,
        under_way: false,
        told_of_room: config.cache_images == 0,
        waiting_epochs: 0,
        teachers: teachers.as_ref(),
        held_out: dataset.held_out,
        held_out_of: dataset.held_out_of.clone(),
        targets: None,
        cached: None,
        before: progress.seconds,
        progress,
        started,
    };
    let images = Images::of(dataset, &network, &config, &phases);
    run.tell_start(&network, &images);
    if (config.lr_auto || config.lr_find) && state.is_none() {
        let last = phases.last().expect("a run has a phase");
        let lr = run.find_rate(last, &network, &images)?;
        if config.lr_find {
            return Ok(());
        }
        let found = Config { lr, ..config.clone() };
        write_json(&run.folder.args(), &Args::new(gpu, &found, &network.classes, name))?;
        phases = Phase::all(&found);
    }
    if !run.progress.complete {
        if let Some(state) = state {
            state.restore(gpu, &run.folder.state(), &run.memory(&network))?;
            network.net.parameters().cast(gpu)?;
            run.state = Some(state);
        }
        let trained = run.phases(&phases, &network, &images);
        trained.inspect_err(|error| {
            run.finish_profile();
            run.illustrate_stop(&images, error);
        })?;
    }
    drop(network);
    run.conclude(&images)
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
pub(super) struct Images {
    pub train: Items,
    pub val: Items,
}

impl Images {
    /// Those of a data set, with what stays in memory of those that are shown again.
    fn of(dataset: Dataset, network: &Network, config: &Config, phases: &[Phase]) -> Self {
        let count = dataset.train.len() + dataset.val.len();
        let times = |phase: &Phase| match phase.caches(config, network, count) {
            true => 1,
            false => phase.epochs,
        };
        let keeps = match phases.iter().map(times).sum() {
            0 | 1 => Keep::Nothing,
            _ if config.shows_same_pixels() => Keep::Prepared,
            _ => Keep::Decoded,
        };
        let room = Arc::new(Room::new(config.cache_images << 20));
        let train = Items::keeping(dataset.train, config.shrink_images, keeps, &room);
        let val = Items::keeping(dataset.val, None, Keep::Prepared, &room);
        Self { train, val }
    }
}

/// How a phase or an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ending {
    /// With its last step.
    Complete,
    /// With the last step that the run may do, where more would follow.
    StepLimit,
}

/// A run on its way.
pub(super) struct Run<'a> {
    pub gpu: &'a Gpu,
    /// What kind of run it is.
    pub name: &'a str,
    pub config: &'a Config,
    pub console: &'a Console,
    pub interrupt: &'a Interrupt,
    pub folder: RunDir,
    pub results: Results,
    pub steps: StepLog,
    pub rates: Rates,
    /// What `--l2-sp` pulls to.
    pub start: Option<Slice>,
    /// The average of the weights.
    pub ema: Option<Rc<Ema>>,
    /// Epochs in all.
    pub epochs: u32,
    pub progress: Progress,
    pub unreadable: Unreadable,
    pub profile: Option<Profile>,
    pub pictures: Pictures,
    pub saver: Saver,
    /// What the run goes on from, until its optimizer is there.
    pub state: Option<State>,
    /// Whether a step has been done.
    pub under_way: bool,
    /// Whether it was said that images do not fit in memory.
    told_of_room: bool,
    /// Epochs that waited for images most of the time.
    pub waiting_epochs: u32,
    /// Seconds that the run took before it was stopped.
    before: f64,
    pub started: Instant,
    /// Whom the network learns from besides the labels.
    pub teachers: Option<&'a Teachers>,
    /// How the validation images were held out of the training images, if they were.
    pub held_out: Option<ScanOptions>,
    /// Of which images.
    pub held_out_of: Option<String>,
    /// What they make of the training images, once that was needed.
    pub targets: Option<Rc<Targets>>,
    /// What the frozen layers make of the images, if the latest phase had that computed once.
    pub cached: Option<Cached>,
}

impl Run<'_> {
    fn phases(&mut self, phases: &[Phase], network: &Network, images: &Images) -> Result<()> {
        let mut end = 0;
        for phase in phases {
            end += phase.epochs;
            if self.progress.epoch < end
                && (self.may_not_begin()
                    || self.phase(phase, end, network, images)? == Ending::StepLimit)
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
        self.note_kernels();
        let (mut seconds, mut epochs) = (0.0, 0);
        while self.progress.epoch < end && !self.out_of_patience(phase, end) {
            if self.may_not_begin() {
                return Ok(Ending::StepLimit);
            }
            let ending = self.train_epoch(&mut leg)?;
            if images.train.is_crowded() && !std::mem::replace(&mut self.told_of_room, true) {
                let (train, room) = (&images.train, self.config.cache_images);
                self.console.line(format_args!(
                    "{} of {} training images stay in memory, which is all that {room} MiB hold; the \
                     others are decoded anew in every epoch (--cache-images)",
                    train.kept(),
                    train.len()
                ));
            }
            if ending == Ending::StepLimit {
                self.save_state(&leg)?;
            }
            let closed =
                self.interrupt.check().and_then(|()| self.close_epoch(&leg, images, ending));
            if let Err(Error::Interrupted) = closed {
                self.stop(&leg)?;
            }
            seconds += closed?.seconds;
            epochs += 1;
            if ending == Ending::StepLimit {
                return Ok(ending);
            }
            if self.progress.epoch == end {
                self.progress.phase_step = 0;
            }
            self.save_state(&leg)?;
        }
        if let Some(frozen) = leg.frozen_seconds.filter(|_| epochs > 0) {
            let epoch = seconds / f64::from(epochs);
            self.console.line(format_args!(
                "an epoch on cached features took {epoch:.2} s, and would have taken {frozen:.2} s \
                 more with the frozen layers: {:.1} times as fast",
                (epoch + frozen) / epoch
            ));
        }
        Ok(Ending::Complete)
    }

    /// Whether the run has done as many steps as it may.
    pub fn at_step_limit(&self) -> bool {
        self.config.max_steps.is_some_and(|limit| self.progress.step >= limit)
    }

    /// Whether the run stands between two epochs with no step left for the next.
    fn may_not_begin(&self) -> bool {
        self.progress.batches == 0 && self.at_step_limit()
    }

    /// Notes which choices of `--tune` the steps to come go by; warns if those before a stop went by
    /// others.
    fn note_kernels(&mut self) {
        let tuned = digest(self.gpu);
        let goes_on = self.progress.step > 0 && !self.under_way;
        if goes_on && tuned != self.progress.tuned {
            self.console.warning(
                "the run was begun with other kernels, as --tune chose them: what follows may differ \
                 in the last bits from what would have followed without a stop",
            );
        }
        self.progress.tuned = tuned;
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

    /// What the run took so far.
    pub fn seconds(&self) -> f64 {
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

    /// How the network does on the validation images; none without such.
    fn validate(&mut self, leg: &Leg) -> Result<Option<Metrics>> {
        let judged = leg.source.validate(self.gpu, leg.network, self.config, self.interrupt)?;
        let Some(Judged { metrics, failed }) = judged else { return Ok(None) };
        self.unreadable.tell(self.console, &failed);
        if !metrics.loss.is_finite() {
            self.console.warning(format_args!(
                "the validation loss after epoch {} is {}, and the network has no answer to {} of {} \
                 images: something in it overflows; try a lower --lr or --clip-grad-norm 1",
                self.progress.epoch + 1,
                metrics.loss,
                metrics.unanswered.iter().sum::<u64>(),
                metrics.images
            ));
        }
        Ok(Some(metrics))
    }

    /// Validates after an epoch's steps, and notes, tells and saves what it brought.
    fn close_epoch(&mut self, leg: &Leg, images: &Images, ending: Ending) -> Result<Totals> {
        let (gpu, config, console) = (self.gpu, self.config, self.console);
        let network = leg.network;
        let number = self.progress.epoch + 1;
        let provenance = self.provenance(number);
        network.save(gpu, &self.folder.last(), provenance.clone())?;
        let metrics = self.validate(leg)?;
        let val = metrics.as_ref().map(Validation::from);
        let averaged = match self.ema.clone() {
            Some(ema) => ema.applied(gpu, || {
                network.save(gpu, &self.folder.ema(), provenance)?;
                Ok(self.validate(leg)?.as_ref().map(Validation::from))
            })?,
            None => None,
        };
        let totals = std::mem::take(&mut self.progress.totals);
        let epoch = Epoch {
            epoch: number,
            epochs: self.epochs,
            seconds: self.seconds(),
            train_loss: totals.loss(),
            train_top1: totals.top1(),
            val,
            val_ema: averaged,
            lr: self.rates.told(leg.phase, totals.learning_rate),
            images_per_second: totals.images as f64 / totals.seconds,
        };
        self.results.append(&epoch)?;
        console.epoch(&epoch);
        if let Some(Scaling { scale, skipped, .. }) = leg.optimizer.scaling(gpu)? {
            console.detail(format_args!(
                "loss scale {scale}; {skipped} steps of the phase skipped as their gradients overflowed"
            ));
            console.event(&json!({ "event": "loss_scale", "scale": scale, "skipped": skipped }));
        }
        self.progress.memory_bytes = gpu.allocated_bytes();
        console.event(&json!({
            "event": "memory",
            "planned": leg.plan.peak_bytes,
            "allocated": self.progress.memory_bytes,
        }));
        // What counts with an average is how the average does.
        let val = averaged.or(val);
        let better = match (&self.progress.best, &val) {
            (_, None) | (None, _) => true,
            // The best of a run must not depend on where it was cut short and gone on with.
            (Some(best), Some(val)) => {
                ending == Ending::Complete && config.best_by.is_better(val, &best.val)
            }
        };
        if let (Some(best), Some(val), Ending::StepLimit) = (&self.progress.best, &val, ending)
            && config.best_by.is_better(val, &best.val)
        {
            console.line(format_args!(
                "epoch {number} was better than epoch {}, but --max-steps cut it short, and only \
                 whole epochs become the best: its weights are in {}",
                best.epoch,
                self.folder.last().display()
            ));
        }
        if better {
            let saved = if self.ema.is_some() { self.folder.ema() } else { self.folder.last() };
            copy_atomically(&saved, &self.folder.best()).context(|| "saving the weights")?;
            self.progress.best = val.map(|val| Best { epoch: number, val });
            console.event(&json!({ "event": "best", "epoch": number, "val": val }));
        }
        self.progress.epoch = number;
        self.progress.batches = 0;
        self.illustrate(leg, images, metrics.as_ref());
        Ok(totals)
    }
}
