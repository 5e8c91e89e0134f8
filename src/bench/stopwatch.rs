//! Taking samples.

use std::fmt;
use std::time::Instant;

use super::ceiling::Beside;
use super::file::Ceiling;
use crate::error::Result;
use crate::gpu::{AdapterClass, Gpu};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of everything, after a warm-up; at least five.
    pub samples: usize,
    /// What one sample of a kernel should take, in seconds; short work is repeated.
    pub sample_seconds: f64,
    /// What all steps of one network row may take, in seconds; a row that would take longer is
    /// left out.
    pub row_seconds: f64,
    /// How long a GPU works before a row, in seconds: its clocks rise with the load.
    pub warm_up_seconds: f64,
    /// Whether to leave out large networks.
    pub small: bool,
}

impl Effort {
    /// About a minute on two cores.
    pub const QUICK: Self = Self {
        samples: 5,
        sample_seconds: 5e-3,
        row_seconds: 15.0,
        warm_up_seconds: 0.1,
        small: true,
    };
    /// Some minutes on two cores.
    pub const FULL: Self = Self {
        samples: 9,
        sample_seconds: 2e-2,
        row_seconds: 90.0,
        warm_up_seconds: 0.2,
        small: false,
    };
}

/// What kernels are timed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The adapter's timestamps around each dispatch.
    Timestamps,
    /// The wall clock around a whole submission, from an idle queue to an idle queue.
    Queue,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timestamps => "timestamps",
            Self::Queue => "queue",
        })
    }
}

/// Repetitions of a work at most: each may hold memory.
const REPEATS: usize = 64;

/// Times work on a device.
pub struct Stopwatch<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    clock: Clock,
}

impl<'a> Stopwatch<'a> {
    /// A stopwatch on a device that was opened with `profile` if it goes by timestamps.
    pub fn new(gpu: &'a Gpu, clock: Clock) -> Self {
        Self { gpu, clock }
    }

    /// Seconds that the device takes for what `work` records.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        match self.clock {
            Clock::Timestamps => {
                self.gpu.timings()?;
                work()?;
                Ok(self.gpu.timings()?.iter().map(|timing| timing.seconds).sum())
            }
            Clock::Queue => {
                self.gpu.finish()?;
                let started = Instant::now();
                work()?;
                self.gpu.finish()?;
                Ok(started.elapsed().as_secs_f64())
            }
        }
    }

    /// Works until what is timed counts, and returns how often to repeat a unit of work in a sample: as `time`,
    /// which prepares and times so many units at once, shows, and at most `most` times.
    pub fn warm_up(
        &self,
        effort: &Effort,
        most: usize,
        mut time: impl FnMut(usize) -> Result<f64>,
    ) -> Result<usize> {
        time(1)?;
        let once = time(1)?.max(1e-7);
        let repeats = (effort.sample_seconds / once).ceil().clamp(1.0, REPEATS.min(most) as f64);
        let repeats = repeats as usize;
        // A processor that plays GPU is as warm as it gets.
        let seconds = match self.gpu.class() {
            AdapterClass::Software => 0.0,
            _ => effort.warm_up_seconds,
        };
        let started = Instant::now();
        while started.elapsed().as_secs_f64() < seconds {
            time(repeats)?;
        }
        Ok(repeats)
    }

    /// Seconds of one unit of work, sampled after [`Stopwatch::warm_up`], with the ceilings that it is laid
    /// beside, measured before each sample.
    pub fn sample(
        &self,
        effort: &Effort,
        most: usize,
        mut beside: Beside<'_>,
        mut time: impl FnMut(usize) -> Result<f64>,
    ) -> Result<(Vec<f64>, Vec<Ceiling>)> {
        let repeats = self.warm_up(effort, most, &mut time)?;
        let mut sample = || {
            beside.sample()?;
            Ok(time(repeats)? / repeats as f64)
        };
        let samples = (0..effort.samples).map(|_| sample()).collect::<Result<_>>()?;
        Ok((samples, beside.ceilings()))
    }
}

/// Median and quartiles of samples.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Half of the samples are below.
    pub median: f64,
    /// A quarter is below.
    pub low: f64,
    /// A quarter is above.
    pub high: f64,
}

impl Summary {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        (!sorted.is_empty()).then(|| Self { median: at(0.5), low: at(0.25), high: at(0.75) })
    }

    /// Half the distance of the quartiles as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_an_outlier() {
        let summary = Summary::of(&[3.0, 1.0, 2.0, 100.0, 2.0]).unwrap();
        assert_eq!((summary.low, summary.median, summary.high), (2.0, 2.0, 3.0));
        assert_eq!(summary.spread(), 0.25);
        let even = Summary::of(&[1.0, 2.0]).unwrap();
        assert_eq!((even.low, even.median, even.high), (1.25, 1.5, 1.75));
        assert!(Summary::of(&[]).is_none());
    }
}
