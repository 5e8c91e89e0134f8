//! Staging memory through which bytes go to the device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a buffer that uploads share. Larger ones have a buffer of just their size.
const SHARED: u64 = 1 << 16;

/// What uploads begin at multiples of.
const ALIGNMENT: u64 = wgpu::MAP_ALIGNMENT;

/// Submissions that the size of a large upload is remembered for, and buffers are kept for.
const REMEMBERED: u64 = 8;

/// Staging buffers of the last few submissions, mapped again as soon as the device has read them. A training
/// loop fills the same again and again; what is large and not known to come again, such as a checkpoint, has
/// no place here.
#[derive(Default)]
pub(super) struct UploadRing {
    mapped: Arc<Mutex<Vec<Mapped>>>,
    /// What the next submission reads, and the bytes filled.
    filled: Vec<(wgpu::Buffer, u64)>,
    /// Sizes of large uploads and the submissions that followed them.
    large: Vec<(u64, u64)>,
    submissions: u64,
}

/// What no command uses.
struct Mapped {
    buffer: wgpu::Buffer,
    /// The last submission that read it.
    submission: u64,
}

impl UploadRing {
    /// Copies `data` for commands of the next submission. Returns where to, a buffer and an offset; none if
    /// this is no place for them, or the device gives no memory.
    pub fn fill(&mut self, device: &wgpu::Device, data: &[u8]) -> Option<(wgpu::Buffer, u64)> {
        let bytes = data.len() as u64;
        if bytes > SHARED && !self.comes_again(bytes) {
            return None;
        }
        let fits = |(buffer, end): &(wgpu::Buffer, u64)| end + bytes <= buffer.size();
        let place = self.filled.iter().position(fits).unwrap_or_else(|| {
            self.filled.push((self.take(device, bytes.max(SHARED)), 0));
            self.filled.len() - 1
        });
        let (buffer, end) = &mut self.filled[place];
        let start = *end;
        let Ok(mut view) = buffer.get_mapped_range_mut(start..start + bytes) else {
            self.filled.swap_remove(place);
            return None;
        };
        view.copy_from_slice(data);
        *end = (start + bytes).next_multiple_of(ALIGNMENT);
        Some((buffer.clone(), start))
    }

    /// Whether so many bytes were uploaded before an earlier submission, too.
    fn comes_again(&mut self, bytes: u64) -> bool {
        let known = self.large.iter().any(|&(size, at)| size == bytes && at < self.submissions);
        self.large.push((bytes, self.submissions));
        known
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
        self.filled.iter().for_each(|(buffer, _)| buffer.unmap());
    }

    /// Has what is filled mapped again once the submission that reads it, the latest, is done.
    pub fn recall(&mut self) {
        let submission = self.submissions;
        self.submissions += 1;
        let recent = |at: u64| at + REMEMBERED > submission;
        self.large.retain(|&(_, at)| recent(at));
        lock(&self.mapped).retain(|mapped| recent(mapped.submission));
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
