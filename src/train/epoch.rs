//! The training steps of an epoch.

use std::time::{Duration, Instant};

use serde_json::json;

use super::console::EpochBar;
use super::leg::Leg;
use super::run::{Ending, Run};
use super::run_dir::Step;
use super::step::{Done, Pending, Pipeline, Stepper};
use crate::error::{Context, Error, Result};

impl Run<'_> {
    /// Does the steps of an epoch; ends early at the limit of steps or when asked to stop.
    ///
    /// # Errors
    /// Those of the loader and the steps, and [`Error::Diverged`] for a loss that is not finite.
    pub(super) fn train_epoch(&mut self, leg: &mut Leg) -> Result<Ending> {
        let mut ending = Ending::Complete;
        let epoch = self.progress.epoch;
        self.resize(leg)?;
        let batches = leg.source.batches(self.config, epoch, leg.smallest);
        let done = self.progress.batches;
        let mut batches = leg.source.load(self.config, leg.image_size, epoch, batches, done)?;
        let bar = self.console.epoch_bar(
            format_args!("epoch {}/{}", epoch + 1, self.epochs),
            leg.source.train_images(),
        );
        let totals = &self.progress.totals;
        if totals.images > 0 {
            bar.advance(totals.images, totals.loss(), totals.top1());
        }
        let mut pipeline = Pipeline::start();
        let (began, mut waited) = (Instant::now(), Duration::ZERO);
        loop {
            let asked = Instant::now();
            let Some(batch) = batches.next() else { break };
            waited += asked.elapsed();
            let batch = batch.context(|| "loading the training images")?;
            self.unreadable.tell(self.console, &batch.failed);
            let takes = leg.takes(batch.labels.len());
            if takes && self.at_step_limit() {
                ending = Ending::StepLimit;
                break;
            }
            self.progress.batches += 1;
            if !takes {
                continue;
            }
            let learning_rate = leg.learning_rate(self.progress.phase_step);
            if self.profile.is_some() {
                // What ran since the step before is none of its work.
                self.gpu.timings()?;
            }
            let downloads = leg.stepper.step(&mut leg.optimizer, learning_rate, &batch)?;
            if let Some(profile) = &mut self.profile {
                profile.add_step(self.gpu)?;
            }
            let step = self.progress.step;
            self.progress.step += 1;
            self.progress.phase_step += 1;
            if let Some(done) = pipeline.push(Pending { step, batch, learning_rate, downloads })? {
                self.settle(leg, &bar, done)?;
            }
            if self.interrupt.is_set() {
                break;
            }
            if self.saver.step() {
                self.drain(leg, &bar, &mut pipeline)?;
                self.save_state(leg)?;
            }
        }
        self.drain(leg, &bar, &mut pipeline)?;
        drop(bar);
        self.tell_of_waiting(waited, began.elapsed());
        Ok(ending)
    }

    /// Tells what helps where images are what epochs wait for: at the second that does, since images that the
    /// first has loaded may stay in memory.
    fn tell_of_waiting(&mut self, waited: Duration, all: Duration) {
        if !mostly_waited(waited, all) {
            return;
        }
        self.waiting_epochs += 1;
        if self.waiting_epochs == 2 {
            let share = 100.0 * waited.as_secs_f64() / all.as_secs_f64();
            self.console.line(format_args!(
                "{share:.0} % of this epoch was waiting for images: --cache-images keeps more of them in \
                 memory, --shrink-images has large ones take less"
            ));
        }
    }

    /// Waits for every step that is on its way.
    fn drain(&mut self, leg: &Leg, bar: &EpochBar, pipeline: &mut Pipeline) -> Result<()> {
        while let Some(done) = pipeline.pop()? {
            self.settle(leg, bar, done)?;
        }
        Ok(())
    }

    /// Notes a step that the device has done.
    fn settle(&mut self, leg: &Leg, bar: &EpochBar, done: Done) -> Result<()> {
        let images = done.batch.labels.len();
        let step = Step {
            step: done.step,
            epoch: self.progress.epoch,
            loss: done.loss,
            lr: self.rates.told(leg.phase, done.learning_rate),
            images,
            seconds: done.seconds,
        };
        self.steps.append(&step)?;
        self.console.event(&json!({ "event": "step", "step": step }));
        if !std::mem::replace(&mut self.under_way, true) {
            let seconds = self.started.elapsed().as_secs_f64();
            self.console.line(format_args!("first step done after {seconds:.1} s"));
        }
        let totals = &mut self.progress.totals;
        totals.add(&done);
        bar.advance(images, totals.loss(), totals.top1());
        finite(&done, &leg.stepper)
    }
}

/// Whether an epoch that took `all` waited for images most of the time, and long enough to matter.
fn mostly_waited(waited: Duration, all: Duration) -> bool {
    all > Duration::from_secs(1) && 2 * waited > all
}

/// An error if the loss of a step is not finite, saying what went wrong first.
fn finite(done: &Done, stepper: &Stepper<'_>) -> Result<()> {
    if done.loss.is_finite() {
        return Ok(());
    }
    let first = stepper.first_non_finite(&done.batch)?;
    let range = if stepper.mixed() { "--precision f32, whose range is larger, " } else { "" };
    Err(Error::Diverged(format!(
        "the loss is {} at step {} (learning rate {:e}); the first value that is not finite is in {}; \
         try {range}a lower --lr or --clip-grad-norm 1",
        done.loss,
        done.step,
        done.learning_rate,
        first.as_deref().unwrap_or("the loss itself")
    )))
}
