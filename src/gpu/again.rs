//! Work that is done again and again, and recorded only when it is not as it was.

use std::cell::RefCell;

use super::buffer::{Place, Slice};
use super::device::Gpu;
use super::download::Download;
use super::recorder::{Binding, Command, Given, Recording};
use crate::Result;

/// The latest work of one place in the program. What else the work's commands depend on than its inputs and the
/// memory that is free is its kind `K`.
pub struct Again<K>(RefCell<Option<(K, Recording)>>);

impl<K> Default for Again<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: PartialEq> Again<K> {
    /// Records `work`, by its commands of the time before if it is of the same kind and they are still what it
    /// would come to, and the download of the slices that it returns. `inputs` is all it uses that was leased
    /// for it alone. What it uploads is not uploaded again, so it must not.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn record(
        &self,
        gpu: &Gpu,
        kind: K,
        inputs: &[Place],
        work: impl FnOnce() -> Result<Vec<Slice>>,
    ) -> Result<Vec<Download>> {
        let latest = self.0.take().filter(|(latest, _)| *latest == kind);
        if let Some((kind, recording)) = latest
            && let Some(downloads) = gpu.again(&recording, inputs)
        {
            self.0.replace(Some((kind, recording)));
            return Ok(downloads);
        }
        let (downloads, recording) = gpu.keep(inputs, work)?;
        self.0.replace(Some((kind, recording)));
        Ok(downloads)
    }

    /// Has the next work recorded.
    pub fn forget(&self) {
        self.0.take();
    }
}

impl Gpu {
    /// Records what `work` makes of `inputs` and the download of the slices that it returns, and keeps both,
    /// the latest such work only, to be recorded [`Gpu::again`] without it. What it uploads would not be
    /// uploaded again, so nothing is kept of work that does.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn keep(
        &self,
        inputs: &[Place],
        work: impl FnOnce() -> Result<Vec<Slice>>,
    ) -> Result<(Vec<Download>, Recording)> {
        let here = || {
            let recorder = self.0.recorder.borrow();
            (recorder.commands.len(), recorder.interruptions)
        };
        let (first, interruptions) = here();
        let given = Given { inputs: inputs.to_vec(), free: self.0.pool.free() };
        let slices = work()?;
        let mut recording = Recording::default();
        if !self.0.planning.get() && here().1 == interruptions {
            let downloads = slices.iter().map(Binding::of).collect();
            recording = self.0.recorder.borrow_mut().keep(first, given, downloads);
        }
        Ok((slices.iter().map(|slice| self.download(slice)).collect(), recording))
    }

    /// Records once more what was kept. None if it no longer is, or if it would now come out
    /// differently: the inputs lie elsewhere, other memory is free than was then, or kernels are chosen
    /// differently.
    pub fn again(&self, recording: &Recording, inputs: &[Place]) -> Option<Vec<Download>> {
        let kept = self.0.recorder.borrow().kept(recording)?;
        let alike = kept.given.inputs == inputs && self.0.pool.has_free(&kept.given.free);
        if self.0.planning.get() || !alike {
            return None;
        }
        self.record(Command::Kept(kept.clone()));
        Some(kept.downloads.iter().map(|from| self.download_from(from.clone())).collect())
    }
}
