//! The learning-rate range test: a hundred steps at rates that rise from far too low to far too high,
//! as fastai's `lr_find`, and the rate that the curve of their losses suggests.

use std::path::Path;

use serde_json::json;

use super::network::Network;
use super::phase::Phase;
use super::run::{Images, Run};
use super::step::{Pending, Pipeline};
use crate::checkpoint::write_atomically;
use crate::error::{Context, Error, Result};
use crate::report::{Curve, Drawing, Ink, curves, write_charts};

/// The first rate.
const LOWEST: f64 = 1e-7;
/// The rate that the last step would have.
const HIGHEST: f64 = 10.0;
/// Steps at most.
const STEPS: usize = 100;
/// What the smoothed loss keeps of itself at each step.
const SMOOTHING: f64 = 0.98;
/// The test ends when the smoothed loss is so many times its best.
const END: f64 = 4.0;
/// Points that the suggestion leaves out at the start and at the end.
const LEFT_OUT: (usize, usize) = (STEPS / 10, 5);

/// A step of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its learning rate.
    pub lr: f64,
    /// Its loss, before its update.
    pub loss: f64,
    /// The losses so far, smoothed and corrected for their start.
    pub smoothed: f64,
}

/// A range test on its way.
#[derive(Clone, Debug, Default)]
pub struct RangeTest {
    points: Vec<Point>,
    average: f64,
}

impl RangeTest {
    /// The learning rate of the next step.
    pub fn next_rate(&self) -> f64 {
        LOWEST * (HIGHEST / LOWEST).powf(self.points.len() as f64 / STEPS as f64)
    }

    /// Adds the loss of the step at [`RangeTest::next_rate`]. Returns whether to go on.
    pub fn push(&mut self, loss: f64) -> bool {
        let lr = self.next_rate();
        self.average = SMOOTHING * self.average + (1.0 - SMOOTHING) * loss;
        let weight = 1.0 - SMOOTHING.powi(self.points.len() as i32 + 1);
        let smoothed = self.average / weight;
        if !smoothed.is_finite() {
            return false;
        }
        self.points.push(Point { lr, loss, smoothed });
        let best = self.points.iter().map(|point| point.smoothed).fold(f64::INFINITY, f64::min);
        smoothed <= END * best && self.points.len() < STEPS
    }

    /// What was measured.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// fastai's `valley`: a point two thirds into the longest stretch in which the losses fall, taken as
    /// the longest falling subsequence; none for too few points.
    pub fn suggestion(&self) -> Option<f64> {
        let end = self.points.len().checked_sub(LEFT_OUT.1)?;
        let points = self.points.get(LEFT_OUT.0..end).filter(|points| !points.is_empty())?;
        // The length of the longest falling subsequence that ends at each point.
        let mut lengths = vec![1; points.len()];
        let (mut start, mut last) = (0, 0);
        for i in 1..points.len() {
            for j in 0..i {
                if points[i].smoothed < points[j].smoothed {
                    lengths[i] = lengths[i].max(lengths[j] + 1);
                }
                if lengths[last] < lengths[i] {
                    last = i;
                    start = last.saturating_sub(lengths[last]);
                }
            }
        }
        let third = (last - start) as f64 / 3.0;
        Some(points[start + third as usize + (third / 2.0) as usize].lr)
    }

    /// Writes a row a step: `lr,loss,smoothed_loss`.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        write_atomically(path, |file| {
            use std::io::Write;
            writeln!(file, "lr,loss,smoothed_loss")?;
            self.points.iter().try_for_each(|Point { lr, loss, smoothed }| {
                writeln!(file, "{lr:e},{loss},{smoothed}")
            })
        })
    }

    /// The smoothed losses over the logarithm of the rate, with the suggestion as an upright line.
    fn chart(&self) -> Drawing {
        let curve = |name: String, ink: usize, points: Vec<(f64, f64)>| Curve {
            name,
            points,
            ink: Ink::Series(ink),
            faint: false,
        };
        let losses = self.points.iter().map(|point| point.smoothed);
        let rates = self.points.iter().map(|point| point.lr.log10());
        let mut all = vec![curve("smoothed".into(), 0, rates.zip(losses.clone()).collect())];
        if let Some(lr) = self.suggestion() {
            let low = losses.clone().fold(f64::INFINITY, f64::min);
            let high = losses.fold(f64::NEG_INFINITY, f64::max);
            let upright = vec![(lr.log10(), low), (lr.log10(), high)];
            all.push(curve(format!("suggested: {lr:.1e}"), 1, upright));
        }
        curves("Loss by learning rate", "log10 of the learning rate", false, &all)
    }
}

impl Run<'_> {
    /// Tests what `phase` trains, from the weights as they are, and leaves those to the bit as they
    /// were. Returns the suggested learning rate.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Diverged`] if the test gives no suggestion, and those of
    /// training steps.
    pub(super) fn find_rate(
        &mut self,
        phase: &Phase,
        network: &Network,
        images: &Images,
    ) -> Result<f64> {
        let gpu = self.gpu;
        let memory = [network.net.parameters().values(), network.net.statistics()];
        let kept = memory.map(|slice| {
            let kept = gpu.lease(slice.bytes);
            gpu.copy(slice, &kept);
            kept
        });
        let tracked = network.net.batches_tracked();
        let ema = self.ema.take();
        let test = self.range_test(phase, network, images);
        self.ema = ema;
        for (slice, kept) in memory.into_iter().zip(&kept) {
            gpu.copy(kept, slice);
        }
        network.net.parameters().cast(gpu)?;
        network.net.set_batches_tracked(&tracked);
        let test = test.context(|| "testing learning rates")?;
        let path = self.folder.path().join("lr_find.csv");
        test.write_csv(&path)?;
        let picture = path.with_extension("png");
        write_charts(&picture, &[test.chart()])?;
        let lr = test.suggestion().ok_or_else(|| {
            let steps = test.points().len();
            Error::Diverged(format!(
                "{steps} steps tell no learning rate; their losses are in {}",
                path.display()
            ))
        })?;
        self.console
            .line(format_args!("suggested --lr {lr:.1e}; the curve is in {}", picture.display()));
        self.console.event(&json!({ "event": "lr_find", "lr": lr, "steps": test.points().len() }));
        Ok(lr)
    }

    fn range_test(
        &mut self,
        phase: &Phase,
        network: &Network,
        images: &Images,
    ) -> Result<RangeTest> {
        let mut leg = self.prepare(phase, network, images)?;
        let mut test = RangeTest::default();
        for epoch in 0.. {
            let batches = leg.source.batches(self.config, epoch, leg.smallest);
            for batch in leg.source.load(self.config, leg.image_size, epoch, batches, 0)? {
                self.interrupt.check()?;
                let batch = batch?;
                if !leg.takes(batch.labels.len()) {
                    continue;
                }
                let (mut pipeline, learning_rate) = (Pipeline::start(), test.next_rate());
                let downloads = leg.stepper.step(&mut leg.optimizer, learning_rate, &batch)?;
                pipeline.push(Pending { step: 0, batch, learning_rate, downloads })?;
                let loss = pipeline.pop()?.map_or(f64::NAN, |done| done.loss);
                if !test.push(loss) {
                    return Ok(test);
                }
            }
        }
        Ok(test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve that is flat, falls, and rises again.
    fn loss(step: usize) -> f64 {
        match step {
            0..40 => 2.5 + 0.01 * ((step * 7) % 5) as f64,
            40..70 => 2.5 - 0.05 * (step - 40) as f64,
            _ => 1.0 + 0.3 * (step - 70) as f64,
        }
    }

    fn test() -> RangeTest {
        let mut test = RangeTest::default();
        let mut step = 0;
        while test.push(loss(step)) {
            step += 1;
        }
        test
    }

    // The numbers are those of fastai's own code, run by Python:
    //
    //     val, losses = 0.0, []
    //     for count in range(1, 101):
    //         val = 0.98 * val + 0.02 * loss(count - 1)
    //         losses.append(val / (1 - 0.98 ** count))
    //         if losses[-1] > 4 * min(losses): break
    //     lrs = [1e-7 * (10 / 1e-7) ** (i / 100) for i in range(len(losses))]
    //     print(len(losses), losses[-1], valley(lrs[10:-5], losses[10:-5], 100)[0])
    #[test]
    fn the_curve_and_the_suggestion_are_fastai_s() {
        let test = test();
        let last = test.points().last().unwrap();
        assert_eq!(test.points().len(), EXPECTED.0);
        assert!((last.smoothed - EXPECTED.1).abs() < 1e-12, "{last:?}");
        assert!((test.suggestion().unwrap() / EXPECTED.2 - 1.0).abs() < 1e-12);
    }

    const EXPECTED: (usize, f64, f64) = (100, 4.005019388502261, 0.001202264434617413);

    #[test]
    fn a_loss_of_four_times_the_best_ends_it_and_so_does_one_that_is_no_number() {
        let mut test = RangeTest::default();
        assert!(test.push(1.0));
        assert!(!test.push(100.0), "smoothed 50.8");
        let mut test = RangeTest::default();
        assert!(test.push(1.0) && !test.push(f64::NAN));
        assert_eq!((test.points().len(), test.suggestion()), (1, None));
    }
}
