//! The list of commands of a step, and its encoding into one submission.
//!
//! Nothing runs while commands are recorded. A training loop leases the same storages in the same
//! order every step, so [`Recorder::encode`] finds nearly every dispatch bound as the one at its place
//! in the submission before was; caches hold what other submissions have bound.

use std::collections::HashMap;
use std::rc::Rc;

use super::buffer::{Storage, range};
use super::pipeline::Pipelines;
use super::profile::Profiler;
use super::shader::Kernel;

/// A range of a storage bound to a kernel.
pub(super) struct Binding {
    pub storage: Rc<Storage>,
    pub offset: u64,
    pub bytes: u64,
}

impl Binding {
    fn range(&self) -> (u64, u64, u64) {
        (self.storage.id, self.offset, self.bytes)
    }
}

/// Where a kernel's parameters lie in the uniform blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UniformSlot {
    block: usize,
    offset: u64,
    pub bytes: u64,
}

#[expect(clippy::large_enum_variant, reason = "nearly every command is a dispatch")]
pub(super) enum Command {
    Dispatch {
        kernel: Kernel,
        params: Option<UniformSlot>,
        bindings: Vec<Binding>,
        groups: [u32; 3],
    },
    Copy {
        from: Rc<Storage>,
        from_offset: u64,
        to: Rc<Storage>,
        to_offset: u64,
        bytes: u64,
    },
    /// Fills texels with the numbers of an array.
    Fill {
        from: Rc<Storage>,
        offset: u64,
        to: Rc<Storage>,
        bytes: u64,
    },
    Clear {
        storage: Rc<Storage>,
        offset: u64,
        bytes: u64,
    },
    Download {
        from: Rc<Storage>,
        offset: u64,
        staging: wgpu::Buffer,
        bytes: u64,
    },
}

/// What a dispatch binds: the kernel, its parameters, and id, offset and size of each binding.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kernel: Kernel,
    params: Option<UniformSlot>,
    ranges: Vec<(u64, u64, u64)>,
}

impl Key {
    fn is(&self, kernel: &Kernel, params: Option<UniformSlot>, bindings: &[Binding]) -> bool {
        self.params == params
            && self.ranges.iter().copied().eq(bindings.iter().map(Binding::range))
            && self.kernel == *kernel
    }
}

/// What the device is told of a dispatch.
#[derive(Clone)]
struct Bound {
    key: Rc<Key>,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

#[derive(Default)]
pub(super) struct Recorder {
    pub commands: Vec<Command>,
    bound: HashMap<Rc<Key>, Bound>,
    /// What the dispatches of the last submission were, and of longer ones before it those after.
    last: Vec<Bound>,
}

impl Recorder {
    /// Encodes and forgets the recorded commands.
    pub fn encode(
        &mut self,
        device: &wgpu::Device,
        pipelines: &mut Pipelines,
        uniforms: &Uniforms,
        mut profiler: Option<&mut Profiler>,
    ) -> wgpu::CommandBuffer {
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut commands = std::mem::take(&mut self.commands);
        let mut pass: Option<wgpu::ComputePass<'static>> = None;
        let mut place = 0;
        for command in &commands {
            match command {
                Command::Dispatch { kernel, params, bindings, groups } => {
                    let timestamps = profiler.as_mut().and_then(|profiler| {
                        pass = None;
                        profiler.next(kernel)
                    });
                    let pass = pass.get_or_insert_with(|| {
                        encoder
                            .begin_compute_pass(&wgpu::ComputePassDescriptor {
                                label: Some(kernel.name()),
                                timestamp_writes: timestamps,
                            })
                            .forget_lifetime()
                    });
                    let last = self.last.get(place);
                    if !last.is_some_and(|last| last.key.is(kernel, *params, bindings)) {
                        let bound =
                            self.bind(device, pipelines, *kernel, *params, bindings, uniforms);
                        match self.last.get_mut(place) {
                            Some(last) => *last = bound,
                            None => self.last.push(bound),
                        }
                    }
                    let Bound { pipeline, group, .. } = &self.last[place];
                    place += 1;
                    pass.set_pipeline(pipeline);
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
                }
                Command::Copy { from, from_offset, to, to_offset, bytes } => {
                    pass = None;
                    let (from, to) = (from.buffer(device), to.buffer(device));
                    encoder.copy_buffer_to_buffer(from, *from_offset, to, *to_offset, *bytes);
                }
                Command::Fill { from, offset, to, bytes } => {
                    pass = None;
                    to.fill(device, &mut encoder, from.buffer(device), *offset..offset + bytes);
                }
                Command::Clear { storage, offset, bytes } => {
                    pass = None;
                    encoder.clear_buffer(storage.buffer(device), *offset, Some(*bytes));
                }
                Command::Download { from, offset, staging, bytes } => {
                    pass = None;
                    let from = from.buffer(device);
                    encoder.copy_buffer_to_buffer(from, *offset, staging, 0, *bytes);
                }
            }
        }
        drop(pass);
        commands.clear();
        self.commands = commands;
        if let Some(profiler) = profiler {
            profiler.resolve(&mut encoder);
        }
        encoder.finish()
    }

    fn bind(
        &mut self,
        device: &wgpu::Device,
        pipelines: &mut Pipelines,
        kernel: Kernel,
        params: Option<UniformSlot>,
        bindings: &[Binding],
        uniforms: &Uniforms,
    ) -> Bound {
        let key =
            Rc::new(Key { kernel, params, ranges: bindings.iter().map(Binding::range).collect() });
        let bind = || {
            let params = params.map(|slot| {
                let buffer = &uniforms.blocks[slot.block];
                wgpu::BindGroupEntry {
                    binding: 0,
                    resource: range(buffer, slot.offset, slot.bytes),
                }
            });
            let storages = bindings.iter().zip(1..).map(|(binding, number)| wgpu::BindGroupEntry {
                binding: number,
                resource: binding.storage.resource(device, binding.offset, binding.bytes),
            });
            let pipeline = pipelines.get(device, kernel).clone();
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.name()),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &params.into_iter().chain(storages).collect::<Vec<_>>(),
            });
            Bound { key: key.clone(), pipeline, group }
        };
        self.bound.entry(key.clone()).or_insert_with(bind).clone()
    }

    /// Drops the cached bind groups, which keep the buffers they name alive.
    pub fn forget_groups(&mut self) {
        self.bound.clear();
        self.last.clear();
    }
}

/// Parameter structs on the device. Equal bytes share a slot and are uploaded once, so a training
/// loop uploads nothing after its first step.
pub(super) struct Uniforms {
    blocks: Vec<wgpu::Buffer>,
    slots: HashMap<Box<[u8]>, UniformSlot>,
    used: u64,
    alignment: u64,
}

const UNIFORM_BLOCK: u64 = 1 << 16;

impl Uniforms {
    pub fn new(alignment: u32) -> Self {
        let alignment = u64::from(alignment).max(16);
        Self { blocks: Vec::new(), slots: HashMap::new(), used: UNIFORM_BLOCK, alignment }
    }

    pub fn slot(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, data: &[u8]) -> UniformSlot {
        if let Some(&slot) = self.slots.get(data) {
            return slot;
        }
        let bytes = (data.len() as u64).next_multiple_of(16);
        if self.used + bytes > UNIFORM_BLOCK {
            self.blocks.push(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: UNIFORM_BLOCK,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
            self.used = 0;
        }
        let slot = UniformSlot { block: self.blocks.len() - 1, offset: self.used, bytes };
        let mut padded = data.to_vec();
        padded.resize(bytes as usize, 0);
        queue.write_buffer(&self.blocks[slot.block], slot.offset, &padded);
        self.used += bytes.next_multiple_of(self.alignment);
        self.slots.insert(data.into(), slot);
        slot
    }
}
