//! What work takes, found out without doing it.

use std::collections::HashMap;

use super::choice::Problem;
use super::device::Gpu;
use super::recorder::Command;
use super::shader::Kernel;
use crate::Result;

/// Runs after which a plan takes the pool for as flat as it gets.
const MOST_RUNS: usize = 8;

/// What recorded work would take; see [`Gpu::plan`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of device memory in all, everything leased before included.
    pub peak_bytes: u64,
    /// Bytes of the largest tensor, or of a range of several that a kernel binds if that is larger.
    pub largest_bytes: u64,
    /// Bytes one binding may have on this adapter.
    pub binding_limit: u64,
    /// Dispatches recorded.
    pub dispatches: usize,
    /// The choices between kernels that were made.
    pub problems: Vec<Problem>,
    /// With the bytes of its parameters.
    kernels: HashMap<Kernel, u64>,
}

impl Plan {
    /// Whether all can be bound.
    pub fn fits(&self) -> bool {
        self.largest_bytes <= self.binding_limit
    }

    /// Every kernel recorded, with the bytes of its parameters in whole blocks of 16.
    pub fn kernels(&self) -> impl Iterator<Item = (Kernel, u64)> {
        self.kernels.iter().map(|(&kernel, &bytes)| (kernel, bytes))
    }
}

impl Gpu {
    /// Records what `work` records, without running it or allocating storages, and tells what it
    /// takes when it is done again and again. The storages it leased stay in the pool, so that the
    /// same work run next allocates exactly these, and smaller work nothing else.
    ///
    /// `work` is called several times: each run but the first finds in the pool what the one before
    /// it left, and may take other storages than from an empty one.
    ///
    /// # Errors
    /// Those of `work`, and of what was recorded before.
    pub fn plan(&self, work: impl FnMut() -> Result<()>) -> Result<Plan> {
        self.submit()?;
        self.0.pool.trim();
        self.0.recorder.borrow_mut().forget_groups();
        self.0.planning.set(true);
        let commands = self.record_until_flat(work);
        self.0.planning.set(false);
        self.0.pool.settle();
        let problems = self.0.choices.seen();
        let commands = commands?;
        let kernels = commands.iter().filter_map(|command| match command {
            Command::Dispatch { kernel, params, .. } => {
                Some((*kernel, params.map_or(0, |slot| slot.bytes)))
            }
            _ => None,
        });
        let bound = commands.iter().flat_map(|command| match command {
            Command::Dispatch { bindings, .. } => &bindings[..],
            _ => &[],
        });
        let bound = bound.map(|binding| binding.bytes).max().unwrap_or_default();
        Ok(Plan {
            peak_bytes: self.0.pool.total_bytes(),
            largest_bytes: self.0.pool.largest_bytes().max(bound),
            binding_limit: self.binding_limit(),
            dispatches: kernels.clone().count(),
            problems,
            kernels: kernels.collect(),
        })
    }

    /// What `work` records once the pool has stopped growing, which it does at the second run or
    /// soon after, unless `work` keeps what it leases.
    fn record_until_flat(&self, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Command>> {
        let mut runs = 0;
        loop {
            let before = self.0.pool.total_bytes();
            self.0.choices.watch();
            let result = work();
            self.0.maps.borrow_mut().clear();
            let commands = std::mem::take(&mut self.0.recorder.borrow_mut().commands);
            result?;
            runs += 1;
            if self.0.pool.total_bytes() == before || runs == MOST_RUNS {
                return Ok(commands);
            }
        }
    }

    /// Compiles the kernels of a plan, in parallel.
    ///
    /// # Errors
    /// What the device reported.
    pub fn prepare(&self, plan: &Plan) -> Result<()> {
        self.compile(plan.kernels().map(|(kernel, _)| kernel))
    }
}
