//! Work that is done again and again, and recorded only when it is not as it was.

use std::cell::RefCell;

use super::{Download, Gpu, Place, Recording, Slice};
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
