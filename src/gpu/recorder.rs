//! The list of commands of a step, and its encoding into one submission.
//!
//! Nothing runs while commands are recorded. A training loop leases the same storages in the same
//! order every step, so [`Recorder::encode`] finds nearly every dispatch bound as the one at its place
//! in the submission before was; caches hold what other submissions have bound. What is known to be
//! the same again is not even recorded: see [`Kept`]; and on a GPU, it is encoded [`super::ahead`] of its time.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::ahead::{Ahead, Coming, Step};
use super::buffer::{Place, Slice, Storage, StorageKey, range};
use super::pipeline::Pipelines;
use super::profile::Profiler;
use super::shader::Kernel;

/// A range of a storage bound to a kernel.
#[derive(Clone)]
pub(super) struct Binding {
    pub storage: Rc<Storage>,
    pub offset: u64,
    pub bytes: u64,
}

impl Binding {
    pub fn of(slice: &Slice) -> Self {
        let Slice { buffer, offset, bytes } = slice;
        Self { storage: buffer.storage().clone(), offset: *offset, bytes: *bytes }
    }

    fn place(&self) -> Place {
        self.storage.place(self.offset, self.bytes)
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
    Upload {
        staging: wgpu::Buffer,
        from: u64,
        to: Binding,
    },
    Download {
        from: Binding,
        staging: wgpu::Buffer,
    },
    Kept(Rc<Kept>),
}

/// Commands to be submitted again, as long as recording them anew would come to the same.
pub(super) struct Kept {
    commands: Vec<Command>,
    bound: RefCell<Vec<Bound>>,
    /// The commands to be encoded ahead, if they can be.
    steps: OnceCell<Option<Arc<[Step]>>>,
    /// What is encoded already for the next time.
    coming: RefCell<Option<Coming>>,
    pub given: Given,
    /// What is downloaded afterwards.
    pub downloads: Vec<Binding>,
}

impl Kept {
    /// Has the commands encoded for their next time, once they were bound.
    fn encode_ahead(&self, device: &wgpu::Device, ahead: &Ahead) {
        let steps = || {
            let mut bound = self.bound.borrow().clone().into_iter();
            let step = |command: &Command| match command {
                Command::Dispatch { groups, .. } => {
                    let Bound { pipeline, group, .. } = bound.next()?;
                    Some(Step::Dispatch { pipeline, group, groups: *groups })
                }
                Command::Copy { from, from_offset, to, to_offset, bytes } => Some(Step::Copy {
                    from: (from.buffer(device).clone(), *from_offset),
                    to: (to.buffer(device).clone(), *to_offset),
                    bytes: *bytes,
                }),
                Command::Clear { storage, offset, bytes } => Some(Step::Clear {
                    buffer: storage.buffer(device).clone(),
                    offset: *offset,
                    bytes: *bytes,
                }),
                _ => None,
            };
            self.commands.iter().map(step).collect()
        };
        if let Some(steps) = self.steps.get_or_init(steps) {
            self.coming.replace(ahead.begin(device, steps.clone()));
        }
    }
}

/// What decides which memory work uses.
pub(super) struct Given {
    /// What was leased for it before.
    pub inputs: Vec<Place>,
    /// What was free when it began, which decides what it leased.
    pub free: Vec<StorageKey>,
}

/// Names commands that are kept; see [`super::Gpu::keep`].
#[derive(Clone, Default)]
pub struct Recording(Weak<Kept>);

/// What a dispatch binds.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kernel: Kernel,
    params: Option<UniformSlot>,
    places: Vec<Place>,
}

impl Key {
    fn is(&self, kernel: &Kernel, params: Option<UniformSlot>, bindings: &[Binding]) -> bool {
        self.params == params
            && self.places.iter().copied().eq(bindings.iter().map(Binding::place))
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
    /// Submissions and uploads so far.
    pub interruptions: u64,
    bound: HashMap<Rc<Key>, Bound>,
    /// What the dispatches of the last submission were, and of longer ones before it those after.
    last: Vec<Bound>,
    /// The latest commands to be kept, which hold the memory that they use.
    kept: Option<Rc<Kept>>,
    /// Encodes these for their next time, where that pays.
    ahead: Option<Ahead>,
}

/// What commands are encoded into.
struct Encoding<'a> {
    device: &'a wgpu::Device,
    pipelines: &'a mut Pipelines,
    uniforms: &'a Uniforms,
    profiler: Option<&'a mut Profiler>,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    /// What comes before.
    done: Vec<wgpu::CommandBuffer>,
}

impl Encoding<'_> {
    /// Has commands that are encoded already follow.
    fn append(&mut self, commands: wgpu::CommandBuffer) {
        self.pass = None;
        let encoder = self.device.create_command_encoder(&Default::default());
        let before = std::mem::replace(&mut self.encoder, encoder);
        self.done.extend([before.finish(), commands]);
    }

    /// The encoder, outside of any pass.
    fn between_passes(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        &mut self.encoder
    }

    fn dispatch(&mut self, Bound { key, pipeline, group }: &Bound, [x, y, z]: [u32; 3]) {
        let timestamps = self.profiler.as_mut().and_then(|profiler| {
            self.pass = None;
            profiler.next(&key.kernel)
        });
        let pass = self.pass.get_or_insert_with(|| {
            let descriptor = wgpu::ComputePassDescriptor {
                label: Some(key.kernel.name()),
                timestamp_writes: timestamps,
            };
            self.encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Recorder {
    pub fn new(ahead: Option<Ahead>) -> Self {
        Self { ahead, ..Self::default() }
    }

    /// Encodes and forgets the recorded commands.
    pub fn encode(
        &mut self,
        device: &wgpu::Device,
        pipelines: &mut Pipelines,
        uniforms: &Uniforms,
        profiler: Option<&mut Profiler>,
    ) -> Vec<wgpu::CommandBuffer> {
        self.interruptions += 1;
        let encoder = device.create_command_encoder(&Default::default());
        let (pass, done) = (None, Vec::new());
        let mut encoding = Encoding { device, pipelines, uniforms, profiler, encoder, pass, done };
        let mut commands = std::mem::take(&mut self.commands);
        let mut last = std::mem::take(&mut self.last);
        self.encode_all(&mut encoding, &commands, &mut last, false);
        self.last = last;
        commands.clear();
        self.commands = commands;
        encoding.pass = None;
        if let Some(profiler) = encoding.profiler {
            profiler.resolve(&mut encoding.encoder);
        }
        encoding.done.push(encoding.encoder.finish());
        encoding.done
    }

    /// Encodes commands whose dispatches were `bound` so before, those of them that were, and still are if
    /// that is `certain`.
    fn encode_all(
        &mut self,
        to: &mut Encoding<'_>,
        commands: &[Command],
        bound: &mut Vec<Bound>,
        certain: bool,
    ) {
        let mut place = 0;
        for command in commands {
            match command {
                Command::Dispatch { kernel, params, bindings, groups } => {
                    let known = bound
                        .get(place)
                        .is_some_and(|known| certain || known.key.is(kernel, *params, bindings));
                    if !known {
                        let found = self.bind(to, *kernel, *params, bindings);
                        match bound.get_mut(place) {
                            Some(known) => *known = found,
                            None => bound.push(found),
                        }
                    }
                    to.dispatch(&bound[place], *groups);
                    place += 1;
                }
                Command::Kept(kept) => {
                    match kept.coming.take().and_then(Coming::wait) {
                        Some(commands) => to.append(commands),
                        None => {
                            let mut bound = kept.bound.borrow_mut();
                            self.encode_all(to, &kept.commands, &mut bound, true);
                        }
                    }
                    if let Some(ahead) = &self.ahead {
                        kept.encode_ahead(to.device, ahead);
                    }
                }
                other => encode_transfer(to, other),
            }
        }
    }

    fn bind(
        &mut self,
        Encoding { device, pipelines, uniforms, .. }: &mut Encoding<'_>,
        kernel: Kernel,
        params: Option<UniformSlot>,
        bindings: &[Binding],
    ) -> Bound {
        let key =
            Rc::new(Key { kernel, params, places: bindings.iter().map(Binding::place).collect() });
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

    /// Puts the commands recorded from number `first` on aside, as one that can be recorded again.
    pub fn keep(&mut self, first: usize, given: Given, downloads: Vec<Binding>) -> Recording {
        let commands = self.commands.split_off(first);
        let kept = Rc::new(Kept {
            commands,
            bound: RefCell::default(),
            steps: OnceCell::new(),
            coming: RefCell::default(),
            given,
            downloads,
        });
        self.commands.push(Command::Kept(kept.clone()));
        let recording = Recording(Rc::downgrade(&kept));
        self.kept = Some(kept);
        recording
    }

    /// What a recording names, if it is still kept.
    pub fn kept(&self, recording: &Recording) -> Option<Rc<Kept>> {
        let latest = self.kept.as_ref()?;
        recording.0.upgrade().filter(|kept| Rc::ptr_eq(kept, latest))
    }

    /// Keeps nothing any more.
    pub fn forget_kept(&mut self) {
        self.kept = None;
    }

    /// Drops the cached bind groups, which keep the buffers they name alive.
    pub fn forget_groups(&mut self) {
        self.forget_kept();
        self.bound.clear();
        self.last.clear();
    }
}

/// Encodes what is no dispatch.
fn encode_transfer(to: &mut Encoding<'_>, command: &Command) {
    let device = to.device;
    let encoder = to.between_passes();
    match command {
        Command::Copy { from, from_offset, to, to_offset, bytes } => {
            let (from, to) = (from.buffer(device), to.buffer(device));
            encoder.copy_buffer_to_buffer(from, *from_offset, to, *to_offset, *bytes);
        }
        Command::Fill { from, offset, to, bytes } => {
            to.fill(device, encoder, from.buffer(device), *offset..offset + bytes);
        }
        Command::Clear { storage, offset, bytes } => {
            encoder.clear_buffer(storage.buffer(device), *offset, Some(*bytes));
        }
        Command::Upload { staging, from, to: Binding { storage, offset, bytes } } => {
            let to = storage.buffer(device);
            encoder.copy_buffer_to_buffer(staging, *from, to, *offset, *bytes);
        }
        Command::Download { from: Binding { storage, offset, bytes }, staging } => {
            encoder.copy_buffer_to_buffer(storage.buffer(device), *offset, staging, 0, *bytes);
        }
        Command::Dispatch { .. } | Command::Kept(_) => unreachable!("no transfers"),
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
