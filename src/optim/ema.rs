//! An exponential moving average of a network's parameters and running statistics.

use std::cell::Cell;

use crate::gpu::{Gpu, Slice};
use crate::nn::Parameters;
use crate::{Result, ops};

/// Averages of arenas, as torchvision's `ExponentialMovingAverage` with `use_buffers=True`: the first
/// update copies.
pub struct Ema {
    decay: f64,
    parameters: Parameters,
    /// Each arena with its average.
    arenas: Vec<(Slice, Slice)>,
    updates: Cell<u64>,
}

impl Ema {
    /// Averages of `parameters` and running `statistics` after `updates` updates; those already there
    /// are put into [`Ema::averages`].
    pub fn new(
        gpu: &Gpu,
        parameters: &Parameters,
        statistics: &Slice,
        decay: f64,
        updates: u64,
    ) -> Self {
        let average = |arena: &Slice| {
            let average = gpu.lease(arena.bytes);
            gpu.copy(arena, &average);
            (arena.clone(), average)
        };
        let arenas = [parameters.values(), statistics].map(average).into();
        Self { decay, parameters: parameters.clone(), arenas, updates: Cell::new(updates) }
    }

    /// The averages, in the arenas' order.
    pub fn averages(&self) -> impl Iterator<Item = &Slice> {
        self.arenas.iter().map(|(_, average)| average)
    }

    /// Records an update.
    ///
    /// # Errors
    /// Those of [`ops::ema`].
    pub fn update(&self, gpu: &Gpu) -> Result<()> {
        let first = self.updates.replace(self.updates.get() + 1) == 0;
        for (arena, average) in &self.arenas {
            match first {
                true => gpu.copy(arena, average),
                false => ops::ema(gpu, average, arena, self.decay)?,
            }
        }
        Ok(())
    }

    /// Does something while the arenas hold the averages.
    ///
    /// # Errors
    /// Those of `work`; the arenas are as before all the same.
    pub fn applied<T>(&self, gpu: &Gpu, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = self.arenas.iter().map(|(arena, average)| {
            let kept = gpu.lease(arena.bytes);
            gpu.copy(arena, &kept);
            gpu.copy(average, arena);
            kept
        });
        let kept: Vec<Slice> = kept.collect();
        let result = self.parameters.cast(gpu).and_then(|()| work());
        for ((arena, _), kept) in self.arenas.iter().zip(&kept) {
            gpu.copy(kept, arena);
        }
        self.parameters.cast(gpu)?;
        result
    }
}
