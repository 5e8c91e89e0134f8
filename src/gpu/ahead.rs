//! Commands that come again and again, encoded for their next time while the device does them.
//!
//! Encoding is most of what a step takes of the host, and depends on nothing that the step computes: a thread of
//! its own does it as soon as the commands are on their way.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

/// A command as the device is told of it.
pub(super) enum Step {
    Dispatch { pipeline: wgpu::ComputePipeline, group: wgpu::BindGroup, groups: [u32; 3] },
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), bytes: u64 },
    Clear { buffer: wgpu::Buffer, offset: u64, bytes: u64 },
}

/// The thread, which ends with this: a device must not be let go while its process ends.
pub(super) struct Ahead {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    device: wgpu::Device,
    steps: Arc<[Step]>,
    done: mpsc::Sender<wgpu::CommandBuffer>,
}

/// Commands that are being encoded.
pub(super) struct Coming(mpsc::Receiver<wgpu::CommandBuffer>);

impl Ahead {
    /// None if the system has no thread for it.
    pub fn start() -> Option<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let work = move || {
            for Job { device, steps, done } in jobs {
                let commands = encode(&device, &steps);
                // Nothing is in use here any more once the commands are there.
                drop((steps, device));
                // Whoever wanted them may have recorded something else since.
                let _ = done.send(commands);
            }
        };
        let thread = thread::Builder::new().name("encoding".into()).spawn(work).ok()?;
        Some(Self { jobs: Some(sender), thread: Some(thread) })
    }

    /// Begins to encode commands.
    pub fn begin(&self, device: &wgpu::Device, steps: Arc<[Step]>) -> Option<Coming> {
        let (done, coming) = mpsc::channel();
        self.jobs.as_ref()?.send(Job { device: device.clone(), steps, done }).ok()?;
        Some(Coming(coming))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell, not even how it panicked.
            let _ = thread.join();
        }
    }
}

impl Coming {
    /// Waits for them. None if the thread is gone.
    pub fn wait(self) -> Option<wgpu::CommandBuffer> {
        self.0.recv().ok()
    }
}

impl Drop for Coming {
    /// Waits for commands that nobody wants, too: what they use is free then.
    fn drop(&mut self) {
        let _ = self.0.recv();
    }
}

fn encode(device: &wgpu::Device, steps: &[Step]) -> wgpu::CommandBuffer {
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = None;
    for step in steps {
        match step {
            Step::Dispatch { pipeline, group, groups: [x, y, z] } => {
                let pass = pass.get_or_insert_with(|| {
                    encoder.begin_compute_pass(&Default::default()).forget_lifetime()
                });
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(*x, *y, *z);
            }
            Step::Copy { from: (from, start), to: (to, into), bytes } => {
                pass = None;
                encoder.copy_buffer_to_buffer(from, *start, to, *into, *bytes);
            }
            Step::Clear { buffer, offset, bytes } => {
                pass = None;
                encoder.clear_buffer(buffer, *offset, Some(*bytes));
            }
        }
    }
    drop(pass);
    encoder.finish()
}
