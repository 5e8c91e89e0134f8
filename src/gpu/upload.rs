//! Staging memory through which bytes go to the device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a buffer that uploads share. Larger ones have a buffer of just their size.
const SHARED: u64 = 1 << 16;

/// What uploads begin at multiples of.
const ALIGNMENT: u64 = wgpu::MAP_ALIGNMENT;

/// Submissions after which a buffer that none of them read is let go: a training loop fills the same
/// ones again and again, and what a checkpoint went through is not kept beside it.
const KEPT_FOR: u64 = 8;

/// Staging buffers of the last few submissions, mapped again as soon as the device has read them.
#[derive(Default)]
pub(super) struct UploadRing {
    mapped: Arc<Mutex<Vec<Mapped>>>,
    /// What the next submission reads, and how much of it is filled.
    filled: Vec<(wgpu::Buffer, u64)>,
    submissions: u64,
}

struct Mapped {
    buffer: wgpu::Buffer,
    /// The last submission that read it.
    submission: u64,
}

impl UploadRing {
    /// Copies `data` for commands of the next submission. Returns where to: a buffer and an offset; none if
    /// the device gives no memory.
    pub fn fill(&mut self, device: &wgpu::Device, data: &[u8]) -> Option<(wgpu::Buffer, u64)> {
        let bytes = data.len() as u64;
        let place = self.filled.iter().position(|(buffer, end)| end + bytes <= buffer.size());
        let place = place.unwrap_or_else(|| {
            self.filled.push((self.take(device, bytes.max(SHARED)), 0));
            self.filled.len() - 1
        });
        let (buffer, end) = &mut self.filled[place];
        let start = *end;
        buffer.get_mapped_range_mut(start..start + bytes).ok()?.copy_from_slice(data);
        *end = (start + bytes).next_multiple_of(ALIGNMENT);
        Some((buffer.clone(), start))
    }

    /// A mapped buffer of this size.
    fn take(&self, device: &wgpu::Device, size: u64) -> wgpu::Buffer {
        let mut mapped = lock(&self.mapped);
        match mapped.iter().position(|mapped| mapped.buffer.size() == size) {
            Some(place) => mapped.swap_remove(place).buffer,
            None => device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("upload"),
                size,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            }),
        }
    }

    /// Makes what is filled ready to be read by a submission.
    pub fn unmap(&self) {
        for (buffer, _) in &self.filled {
            buffer.unmap();
        }
    }

    /// Has what is filled mapped again once the submission that reads it, the latest, is done.
    pub fn recall(&mut self) {
        self.submissions += 1;
        let submission = self.submissions;
        lock(&self.mapped).retain(|mapped| mapped.submission + KEPT_FOR > submission);
        for (buffer, _) in self.filled.drain(..) {
            let ring = self.mapped.clone();
            buffer.clone().map_async(wgpu::MapMode::Write, .., move |answer| {
                if answer.is_ok() {
                    lock(&ring).push(Mapped { buffer, submission });
                }
            });
        }
    }
}

fn lock(ring: &Mutex<Vec<Mapped>>) -> MutexGuard<'_, Vec<Mapped>> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}
