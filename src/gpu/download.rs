//! Reading device memory back without stopping the device.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc;

use super::device::Gpu;
use crate::{Error, Result};

/// Bytes on their way from the device.
#[must_use = "a download is read by `wait`"]
pub struct Download {
    pub(super) gpu: Gpu,
    pub(super) staging: wgpu::Buffer,
    pub(super) bytes: u64,
    pub(super) mapped: mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
    /// Set once the copy has been submitted.
    pub(super) submission: Rc<OnceCell<wgpu::SubmissionIndex>>,
}

impl Download {
    /// Waits for the bytes, submitting what is recorded if the copy has not been submitted yet.
    ///
    /// # Errors
    /// Whatever the device reported since the last check, such as a lost device.
    pub fn wait(self) -> Result<Vec<u8>> {
        self.read(<[u8]>::to_vec)
    }

    /// [`Download::wait`], as numbers.
    pub fn wait_f32(self) -> Result<Vec<f32>> {
        self.read_f32(<[f32]>::to_vec)
    }

    /// What `read` makes of the numbers, which need not be copied for it.
    ///
    /// # Errors
    /// Those of [`Download::wait`].
    pub fn read_f32<T>(self, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
        self.read(|bytes| match bytemuck::try_cast_slice(bytes) {
            Ok(numbers) => read(numbers),
            Err(_) => read(&bytemuck::pod_collect_to_vec(bytes)),
        })
    }

    fn read<T>(self, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        if self.submission.get().is_none() {
            self.gpu.submit()?;
        }
        let mut answer = self.mapped.try_recv();
        // Waiting for the copy has it mapped; waiting for all that is submitted is the last resort.
        for submission in [self.submission.get().cloned(), None] {
            if answer.is_err() {
                self.gpu.wait_for(submission)?;
                answer = self.mapped.try_recv();
            }
        }
        let answer = answer.map_err(|_| Error::Gpu("the device was lost".into()))?;
        answer.map_err(|error| Error::Gpu(format!("reading device memory back: {error}")))?;
        let view = self
            .staging
            .get_mapped_range(..)
            .map_err(|error| Error::Gpu(format!("reading device memory back: {error}")))?;
        let data = read(&view[..self.bytes as usize]);
        drop(view);
        self.staging.unmap();
        self.gpu.recycle(self.staging);
        Ok(data)
    }
}

/// Staging buffers that wait for the next download of their size.
#[derive(Default)]
pub(super) struct StagingRing(RefCell<BTreeMap<u64, Vec<wgpu::Buffer>>>);

impl StagingRing {
    pub fn take(self: &Rc<Self>, device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
        self.0.borrow_mut().get_mut(&bytes).and_then(Vec::pop).unwrap_or_else(|| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("download"),
                size: bytes,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    /// Keeps small buffers, which the training loop asks for every step; lets large ones go.
    pub fn give_back(&self, buffer: wgpu::Buffer) {
        if buffer.size() <= 1 << 16 {
            self.0.borrow_mut().entry(buffer.size()).or_default().push(buffer);
        }
    }
}
