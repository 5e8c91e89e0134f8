//! Times of single dispatches, measured on the adapter.

use super::shader::Kernel;
use crate::Result;

/// Dispatches one submission can time; the rest of a longer one goes untimed.
const CAPACITY: u32 = 2048;

pub(super) struct Profiler {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    period_ns: f32,
    kernels: Vec<Kernel>,
}

/// What one dispatch took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The kernel dispatched.
    pub kernel: Kernel,
    /// Time on the adapter in seconds.
    pub seconds: f64,
    /// When it began, in seconds since the submission's first dispatch.
    pub start: f64,
}

impl Profiler {
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let bytes = u64::from(CAPACITY) * 16;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: CAPACITY * 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            period_ns: queue.get_timestamp_period(),
            kernels: Vec::new(),
        }
    }

    /// Where the next dispatch is to write its times; none once the capacity is used up.
    pub fn next(&mut self, kernel: &Kernel) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let index = self.kernels.len() as u32;
        (index < CAPACITY).then(|| {
            self.kernels.push(*kernel);
            wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(index * 2),
                end_of_pass_write_index: Some(index * 2 + 1),
            }
        })
    }

    pub fn resolve(&mut self, encoder: &mut wgpu::CommandEncoder) {
        let count = self.kernels.len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.queries, 0..count * 2, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(
                &self.resolved,
                0,
                &self.staging,
                0,
                u64::from(count) * 16,
            );
        }
    }

    /// Waits for the submission by `wait` and reads the times of its dispatches.
    ///
    /// # Errors
    /// Those of `wait`.
    pub fn take(&mut self, wait: impl FnOnce() -> Result<()>) -> Result<Vec<Timing>> {
        let kernels = std::mem::take(&mut self.kernels);
        if kernels.is_empty() {
            return Ok(Vec::new());
        }
        self.staging.map_async(wgpu::MapMode::Read, .., |_| ());
        wait()?;
        let Ok(view) = self.staging.get_mapped_range(..) else { return Ok(Vec::new()) };
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view[..kernels.len() * 16]);
        drop(view);
        self.staging.unmap();
        let seconds =
            |from: u64, to: u64| to.saturating_sub(from) as f64 * f64::from(self.period_ns) * 1e-9;
        let timings = kernels
            .into_iter()
            .zip(ticks.chunks_exact(2))
            .map(|(kernel, pair)| Timing {
                kernel,
                seconds: seconds(pair[0], pair[1]),
                start: seconds(ticks[0], pair[0]),
            })
            .collect();
        Ok(timings)
    }
}
