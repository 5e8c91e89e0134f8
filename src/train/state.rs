//! `state/`: everything a run needs to go on, to the bit, as if it had never stopped.
//!
//! One safetensors file, replaced whole, holds the memory of network and optimizer as it lies on the
//! device, and in its header where the run is. What is random follows from the seed, the epoch and
//! the image alone, so that there is no generator to save; which batch comes next is a number.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::config::SaveEvery;
use super::network::{Network, Reading};
use super::progress::Progress;
use crate::checkpoint::{header, write_atomically};
use crate::error::{Context, Error, Result};
use crate::gpu::{Gpu, Slice};

/// The string of the header that is ours.
const HEADER: &str = "wgrad.state";
/// Of the time of a run, saving its state may take one part in this many where nobody says how
/// often.
const SHARE: u32 = 50;

/// A piece of device memory and its name in the file.
pub type Named = (String, Slice);

/// A state in host memory.
pub struct State {
    header: Header,
    tensors: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Header {
    progress: Progress,
    network: Reading,
    batches_tracked: Vec<i64>,
}

impl State {
    /// The state of a run. Waits for the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn take(
        gpu: &Gpu,
        network: &Network,
        memory: &[Named],
        progress: &Progress,
    ) -> Result<Self> {
        let downloads: Vec<_> = memory.iter().map(|(_, slice)| gpu.download(slice)).collect();
        let bytes = downloads.into_iter().map(|download| download.wait());
        let names = memory.iter().map(|(name, _)| name.clone());
        Ok(Self {
            header: Header {
                progress: progress.clone(),
                network: network.reading(),
                batches_tracked: network.net.batches_tracked(),
            },
            tensors: names.zip(bytes.collect::<Result<Vec<_>>>()?).collect(),
        })
    }

    /// Replaces the state at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there stays then.
    pub fn write(&self, path: &Path) -> Result<()> {
        let numbers = |(name, bytes): (&String, &Vec<u8>)| {
            (name.clone(), Dtype::F32, vec![bytes.len() / size_of::<f32>()])
        };
        let write = |file: &mut dyn Write| -> std::io::Result<()> {
            let strings = [(HEADER.to_owned(), serde_json::to_string(&self.header)?)].into();
            let header = header(strings, self.tensors.iter().map(numbers));
            file.write_all(&header.map_err(std::io::Error::other)?)?;
            self.tensors.values().try_for_each(|bytes| file.write_all(bytes))
        };
        write_atomically(path, |file| write(file)).context(|| "saving the state of the run")
    }

    /// The state at `path`; none if nothing is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is damaged, [`Error::Io`].
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::io(path))?,
        };
        let damaged = |error: &dyn std::fmt::Display| {
            let what = format!("no state to go on from: {error}; begin the run again");
            Error::checkpoint(path, what)
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let strings = metadata.metadata().as_ref();
        let header = strings.and_then(|strings| strings.get(HEADER));
        let header = header.ok_or_else(|| damaged(&format!("no {HEADER} in its header")))?;
        let header = serde_json::from_str(header).map_err(|error| damaged(&error))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let tensors = tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec()));
        Ok(Some(Self { header, tensors: tensors.collect() }))
    }

    /// Where the run was.
    pub fn progress(&self) -> &Progress {
        &self.header.progress
    }

    /// The network as it was, but for its numbers: those are put back by [`State::restore`].
    ///
    /// # Errors
    /// Those of making it.
    pub fn network(&self, gpu: &Gpu) -> Result<Network> {
        let network = Network::blank(gpu, &self.header.network)?;
        network.net.set_batches_tracked(&self.header.batches_tracked);
        Ok(network)
    }

    /// Puts device memory back.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the state holds no such memory, and what the device reported.
    pub fn restore(&self, gpu: &Gpu, path: &Path, memory: &[Named]) -> Result<()> {
        for (name, slice) in memory {
            match self.tensors.get(name) {
                Some(bytes) if bytes.len() as u64 == slice.bytes => gpu.upload(slice, bytes)?,
                found => {
                    let found = found.map_or(0, Vec::len);
                    let what = format!(
                        "{found} bytes of {name}, where this program keeps {}; go on with the \
                         version that began the run",
                        slice.bytes
                    );
                    return Err(Error::checkpoint(path, what));
                }
            }
        }
        Ok(())
    }
}

/// When to save the state within an epoch.
pub struct Saver {
    every: SaveEvery,
    saved: Instant,
    /// Steps since.
    steps: u64,
    /// What saving took.
    cost: Duration,
}

impl Saver {
    /// Nothing to save yet.
    pub fn new(every: SaveEvery) -> Self {
        Self { every, saved: Instant::now(), steps: 0, cost: Duration::ZERO }
    }

    /// Counts a step. Returns whether it is time.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        match self.every {
            SaveEvery::Epoch => false,
            SaveEvery::Steps(steps) => self.steps >= steps,
            SaveEvery::Seconds(seconds) => {
                let wanted = Duration::from_secs(seconds);
                self.saved.elapsed() >= wanted.max(self.cost * SHARE)
            }
        }
    }

    /// Notes that saving began at `started` and is done.
    pub fn saved(&mut self, started: Instant) {
        *self = Self { cost: started.elapsed(), ..Self::new(self.every) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_one_save_to_the_next() {
        let mut saver = Saver::new(SaveEvery::Steps(3));
        for _ in 0..2 {
            assert_eq!([saver.step(), saver.step(), saver.step()], [false, false, true]);
            assert!(saver.step(), "until it is saved");
            saver.saved(Instant::now());
        }
        let mut never = Saver::new(SaveEvery::Epoch);
        assert!(!(0..100).any(|_| never.step()));
    }
}
