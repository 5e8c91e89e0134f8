//! The opened device: leases memory, records kernels, submits.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};

use super::adapter::{AdapterChoice, AdapterClass, AdapterReport, FoundAdapter, adapters, choose};
use super::buffer::{Form, Place, Pool, Slice, TEXELS_IN_ROW};
use super::choice::{Choices, Problem, Sizes};
use super::disk_cache::PipelineStore;
use super::download::{Download, StagingRing};
use super::matrix_units::MatrixUnits;
use super::pipeline::Pipelines;
use super::profile::{Profiler, Timing};
use super::recorder::{Binding, Command, Given, Recorder, Recording, Uniforms};
use super::shader::{Kernel, Shader};
use super::upload::UploadRing;
use crate::{Error, Result};

/// Guard bytes on each side of an allocation; a multiple of any adapter's offset alignment.
const GUARD: u64 = 256;

/// Runs after which a plan takes the pool for as flat as it gets.
const MOST_RUNS: usize = 8;

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions {
    /// Keep the shader compiler's bounds checks.
    pub checked: bool,
    /// Ask for WebGPU's guaranteed limits only (128 MiB a binding and so on), to see how a weak
    /// adapter would fare.
    pub floor_limits: bool,
    /// Do not use subgroup operations even if the adapter has them.
    pub no_subgroups: bool,
    /// Choose kernels as for a discrete GPU, whatever the adapter is, for tests of these choices.
    pub as_gpu: bool,
    /// Offer the kernels for such matrix units, of f16 and of f32, whatever the adapter has, for tests
    /// that only look at those or put plain arithmetic in the units' place.
    pub pretended_matrix_units: [Option<MatrixUnits>; 2],
    /// Surround every allocation with guard bytes and fill it with NaN; see [`Gpu::check_guards`].
    pub guards: bool,
    /// Store activations and the weights of convolutions in f16, if the adapter can; see
    /// [`Gpu::mixed`].
    pub mixed: bool,
    /// Measure every dispatch, if the adapter can; see [`Gpu::timings`].
    pub profile: bool,
}

/// An opened adapter. Clones share it.
#[derive(Clone)]
pub struct Gpu(Rc<Inner>);

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    report: AdapterReport,
    limits: wgpu::Limits,
    subgroup_size: Option<u32>,
    f16: bool,
    words: bool,
    mixed: bool,
    /// Units for matrices of f16 and of f32, as long as they are trusted.
    matrix_units: Cell<[Option<MatrixUnits>; 2]>,
    pool: Rc<Pool>,
    staging: Rc<StagingRing>,
    uploads: RefCell<UploadRing>,
    recorder: RefCell<Recorder>,
    pipelines: RefCell<Pipelines>,
    uniforms: RefCell<Uniforms>,
    profiler: RefCell<Option<Profiler>>,
    /// Downloads recorded and not yet submitted.
    maps: RefCell<Vec<PendingMap>>,
    planning: Cell<bool>,
    choices: Choices,
    replaced: RefCell<HashMap<&'static str, &'static Shader>>,
    guarded: Option<RefCell<Vec<Slice>>>,
    faults: Faults,
}

struct PendingMap {
    staging: wgpu::Buffer,
    sender: mpsc::Sender<Result<(), wgpu::BufferAsyncError>>,
    submission: Rc<OnceCell<wgpu::SubmissionIndex>>,
}

/// What recorded work would take; see [`Gpu::plan`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of device memory in all, everything leased before included.
    pub peak_bytes: u64,
    /// Bytes of the largest single tensor.
    pub largest_bytes: u64,
    /// Bytes one binding may have on this adapter.
    pub binding_limit: u64,
    /// Dispatches recorded.
    pub dispatches: usize,
    /// The choices between kernels that were made.
    pub problems: Vec<Problem>,
    /// With the bytes of its parameters.
    kernels: HashMap<Kernel, u64>,
}

impl Plan {
    /// Whether every tensor can be bound.
    pub fn fits(&self) -> bool {
        self.largest_bytes <= self.binding_limit
    }

    /// Every kernel recorded, with the bytes of its parameters in whole blocks of 16.
    pub fn kernels(&self) -> impl Iterator<Item = (Kernel, u64)> {
        self.kernels.iter().map(|(&kernel, &bytes)| (kernel, bytes))
    }
}

impl Gpu {
    /// Opens the adapter that `choice` (completed by the environment) names.
    ///
    /// # Errors
    /// [`Error::Gpu`] without a usable adapter or if it refuses to be opened.
    pub fn open(choice: AdapterChoice, options: GpuOptions) -> Result<Self> {
        Self::open_adapter(choose(&choice.or_environment())?, options)
    }

    /// Opens the adapter of this place in the list of [`adapters`].
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is none any more, or it refuses to be opened.
    pub fn open_index(index: usize, options: GpuOptions) -> Result<Self> {
        let found = adapters().into_iter().find(|found| found.report.index == index);
        let found = found.ok_or_else(|| Error::Gpu(format!("adapter {index} has gone")))?;
        Self::open_adapter(found, options)
    }

    /// Opens a found adapter.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the adapter refuses.
    pub fn open_adapter(found: FoundAdapter, options: GpuOptions) -> Result<Self> {
        let FoundAdapter { mut report, raw } = found;
        if options.as_gpu {
            report.class = AdapterClass::Discrete;
        }
        let mut wanted = wgpu::Features::PIPELINE_CACHE | wgpu::Features::SHADER_F16;
        if !options.no_subgroups {
            wanted |= wgpu::Features::SUBGROUP;
        }
        if options.profile {
            wanted |= wgpu::Features::TIMESTAMP_QUERY;
        }
        if report.class == AdapterClass::Software {
            wanted |= wgpu::Features::SHADER_INT64;
        }
        let mut features = wanted & raw.features();
        let matrices = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let mut matrix_units = [None; 2];
        if let Some((smallest, largest)) = report.subgroup_size
            && !options.no_subgroups
            && smallest == largest
            && raw.features().contains(matrices)
        {
            features |= matrices;
            matrix_units = [wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32]
                .map(|of| MatrixUnits::of(&raw, of, smallest));
        }
        if options.pretended_matrix_units != [None; 2] {
            matrix_units = options.pretended_matrix_units;
        }
        // SAFETY: what is experimental is the cooperative matrices; kernels keep to what the adapter
        // lists, and `tune::check_matrix_units` compares them with plain ones before they are used.
        let experimental_features = match features.contains(matrices) {
            true => unsafe { wgpu::ExperimentalFeatures::enabled() },
            false => wgpu::ExperimentalFeatures::disabled(),
        };
        let limits = match options.floor_limits {
            true => wgpu::Limits::default().or_worse_values_from(&raw.limits()),
            false => raw.limits(),
        };
        let (device, queue) = pollster::block_on(raw.request_device(&wgpu::DeviceDescriptor {
            label: Some("wgrad"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|error| Error::Gpu(format!("opening {}: {error}", report.name)))?;
        let faults = Faults::watch(&device);
        let info = raw.get_info();
        let f16 = features.contains(wgpu::Features::SHADER_F16);
        let subgroup_size = (features.contains(wgpu::Features::SUBGROUP)
            && info.subgroup_min_size == info.subgroup_max_size)
            .then_some(info.subgroup_min_size);
        let profiler = features
            .contains(wgpu::Features::TIMESTAMP_QUERY)
            .then(|| Profiler::new(&device, &queue));
        Ok(Self(Rc::new(Inner {
            uniforms: RefCell::new(Uniforms::new(limits.min_uniform_buffer_offset_alignment)),
            pipelines: RefCell::new(Pipelines::new(
                options.checked,
                PipelineStore::open(&device, &info),
            )),
            device,
            queue,
            report,
            limits,
            subgroup_size,
            f16,
            words: features.contains(wgpu::Features::SHADER_INT64),
            mixed: options.mixed && f16,
            matrix_units: Cell::new(matrix_units),
            pool: Rc::default(),
            staging: Rc::default(),
            uploads: RefCell::default(),
            recorder: RefCell::default(),
            profiler: RefCell::new(profiler),
            maps: RefCell::default(),
            planning: Cell::new(false),
            choices: Choices::default(),
            replaced: RefCell::default(),
            guarded: options.guards.then(RefCell::default),
            faults,
        })))
    }

    /// What the adapter is.
    pub fn report(&self) -> &AdapterReport {
        &self.0.report
    }

    /// The adapter's class.
    pub fn class(&self) -> AdapterClass {
        self.0.report.class
    }

    /// Lanes of a subgroup, if kernels may use subgroups and the number is fixed.
    pub fn subgroup_size(&self) -> Option<u32> {
        self.0.subgroup_size
    }

    /// Whether kernels may use f16.
    pub fn has_f16(&self) -> bool {
        self.0.f16
    }

    /// Whether kernels should take numbers from memory, and leave them there, eight at a time, as 64-bit
    /// words (`shaders/words.wgsl`).
    pub fn prefers_words(&self) -> bool {
        self.0.words
    }

    /// Whether networks made on this device store activations, and the weights that convolutions
    /// read, in f16: it was asked for, and the adapter can.
    pub fn mixed(&self) -> bool {
        self.0.mixed
    }

    /// The units that multiply matrices of f16 if `half`, else of f32, and add up in f32; none if the
    /// adapter has none, or [`Gpu::distrust_matrix_units`] was called.
    pub fn matrix_units(&self, half: bool) -> Option<MatrixUnits> {
        let [of_f16, of_f32] = self.0.matrix_units.get();
        if half { of_f16 } else { of_f32 }
    }

    /// Makes [`Gpu::matrix_units`] offer none from now on.
    pub fn distrust_matrix_units(&self) {
        self.forget_kept();
        self.0.matrix_units.set([None; 2]);
    }

    /// Bytes one binding may have, as opened.
    pub fn binding_limit(&self) -> u64 {
        // wgpu takes no binding of 2^31 bytes or more, whatever the adapter says.
        self.0.limits.max_storage_buffer_binding_size.min(i32::MAX as u64 & !255)
    }

    /// Bytes of workgroup memory, as opened.
    pub fn workgroup_memory(&self) -> u32 {
        self.0.limits.max_compute_workgroup_storage_size
    }

    /// Device memory that has been allocated, in use or kept for reuse, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.pool.allocated_bytes()
    }

    /// Leases `bytes` bytes of device memory. Their content is undefined.
    pub fn lease(&self, bytes: u64) -> Slice {
        let guarded = self.0.guarded.as_ref().filter(|_| !self.0.planning.get());
        let Some(guarded) = guarded else {
            return Slice { buffer: self.0.pool.lease(Form::Array, bytes), offset: 0, bytes };
        };
        let buffer = self.0.pool.lease(Form::Array, bytes + 2 * GUARD);
        let slice = Slice { buffer, offset: GUARD, bytes };
        let storage = slice.buffer.storage();
        let filler = vec![0xff; storage.bytes as usize];
        self.0.queue.write_buffer(storage.buffer(&self.0.device), 0, &filler);
        guarded.borrow_mut().push(slice.clone());
        slice
    }

    /// Checks that nothing was written around the allocations made since the last check, on a
    /// device opened with `guards`. Returns the number of allocations looked at.
    ///
    /// # Errors
    /// [`Error::Gpu`] naming the size of the overrun allocation and the position of the byte.
    pub fn check_guards(&self) -> Result<usize> {
        let Some(guarded) = &self.0.guarded else { return Ok(0) };
        let slices = std::mem::take(&mut *guarded.borrow_mut());
        for Slice { buffer, offset, bytes } in &slices {
            let all = Slice { buffer: buffer.clone(), offset: 0, bytes: buffer.bytes() };
            let data = self.download(&all).wait()?;
            let inside = *offset as usize..(offset + bytes) as usize;
            let outside = |(at, byte): (usize, &u8)| {
                (!inside.contains(&at) && *byte != 0xff).then_some(at as i64 - *offset as i64)
            };
            if let Some(at) = data.iter().enumerate().find_map(outside) {
                return Err(Error::Gpu(format!(
                    "a kernel wrote at byte {at} of an allocation of {bytes} bytes"
                )));
            }
        }
        Ok(slices.len())
    }

    /// Records the writing of `data`, whole words, to the start of `slice`.
    ///
    /// # Errors
    /// What the device reported, such as that there is no memory for the data on its way.
    pub fn upload(&self, slice: &Slice, data: &[u8]) -> Result<()> {
        if self.0.planning.get() || data.is_empty() {
            return Ok(());
        }
        let staging = self.0.uploads.borrow_mut().fill(&self.0.device, data);
        self.0.faults.check()?;
        let (staging, offset) =
            staging.ok_or_else(|| Error::Gpu("memory for an upload was refused".into()))?;
        self.0.recorder.borrow_mut().interruptions += 1;
        let to = Binding { bytes: data.len() as u64, ..Binding::of(slice) };
        self.record(Command::Upload { staging, offset, to });
        Ok(())
    }

    /// Records a dispatch of `kernel` with `params` at binding 0 and `slices` from binding 1 on.
    pub fn run<P: bytemuck::Pod>(
        &self,
        kernel: Kernel,
        params: &P,
        slices: &[&Slice],
        groups: [u32; 3],
    ) {
        let replacement = self.0.replaced.borrow().get(kernel.name()).copied();
        let kernel = replacement.map_or(kernel, |shader| kernel.of(shader));
        let data = bytemuck::bytes_of(params);
        let params = (!data.is_empty())
            .then(|| self.0.uniforms.borrow_mut().slot(&self.0.device, &self.0.queue, data));
        let bindings = slices.iter().map(|slice| Binding::of(slice)).collect();
        self.record(Command::Dispatch { kernel, params, bindings, groups });
    }

    /// The kernel to use for `pass` at `sizes`: the one forced, else the one that
    /// [`Gpu::prefer_kernel`] named, else the first of the candidates.
    ///
    /// # Panics
    /// If there are no candidates.
    pub fn choose_kernel<T: Copy>(
        &self,
        pass: &'static str,
        sizes: Sizes,
        candidates: &[(&'static str, T)],
    ) -> T {
        self.0.choices.choose(pass, sizes, candidates)
    }

    /// Makes [`Gpu::choose_kernel`] take the candidate named `kernel` for `pass` at `sizes`, if it is
    /// offered there.
    pub fn prefer_kernel(&self, pass: &str, sizes: Sizes, kernel: &str) {
        self.forget_kept();
        self.0.choices.tune(pass, sizes, kernel);
    }

    /// Makes [`Gpu::choose_kernel`] take the candidate named `kernel` for `pass` wherever it is
    /// offered; none gives the choice back to the table.
    pub fn force_kernel(&self, pass: &'static str, kernel: Option<&'static str>) {
        self.forget_kept();
        self.0.choices.force(pass, kernel);
    }

    /// Name of the kernel that `pass` used last; none if it has not run.
    pub fn chosen_kernel(&self, pass: &'static str) -> Option<&'static str> {
        self.0.choices.chosen(pass)
    }

    /// Forgets what passes have offered and used so far; what is forced stays.
    pub fn forget_kernels(&self) {
        self.0.choices.forget();
    }

    /// Runs `shader` wherever the one of its name is asked for, to see that the checks catch what is
    /// wrong with it.
    pub fn replace_shader(&self, shader: &'static Shader) {
        self.forget_kept();
        self.0.replaced.borrow_mut().insert(shader.name, shader);
    }

    /// Names of the candidates that `pass` has offered so far.
    pub fn offered_kernels(&self, pass: &'static str) -> Vec<&'static str> {
        self.0.choices.offered(pass)
    }

    /// Workgroups for `count` of them, folded into two dimensions where one is too short; kernels
    /// undo it with `flat_group`.
    pub fn groups(&self, count: usize) -> [u32; 3] {
        let limit = self.0.limits.max_compute_workgroups_per_dimension as usize;
        let rows = count.div_ceil(limit).max(1);
        [count.div_ceil(rows) as u32, rows as u32, 1]
    }

    /// Records a copy of all of `from` to the start of `to`.
    pub fn copy(&self, from: &Slice, to: &Slice) {
        self.record(Command::Copy {
            from: from.buffer.storage().clone(),
            from_offset: from.offset,
            to: to.buffer.storage().clone(),
            to_offset: to.offset,
            bytes: from.bytes,
        });
    }

    /// Records a copy of a slice of f16 if `half`, else of f32, that kernels read as texels of four numbers
    /// each: `texture_storage_2d`, of 1,024 a row. Software adapters load texels for all lanes at once where
    /// they load from an array for one lane after the other.
    pub fn texels(&self, slice: &Slice, half: bool) -> Slice {
        let form = Form::Texels { half };
        let texels = self.0.pool.lease(form, slice.bytes);
        self.record(Command::Fill {
            from: slice.buffer.storage().clone(),
            offset: slice.offset,
            to: texels.storage().clone(),
            bytes: slice.bytes,
        });
        Slice { buffer: texels, offset: 0, bytes: slice.bytes }
    }

    /// Whether [`Gpu::texels`] takes whatever can be bound.
    pub fn has_texels(&self) -> bool {
        let most = u64::from(TEXELS_IN_ROW) * u64::from(self.0.limits.max_texture_dimension_2d);
        self.binding_limit() <= most * 8
    }

    /// Records the zeroing of a slice.
    pub fn clear(&self, slice: &Slice) {
        self.record(Command::Clear {
            storage: slice.buffer.storage().clone(),
            offset: slice.offset,
            bytes: slice.bytes,
        });
    }

    /// Records reading a slice back; the bytes are there after the next submission.
    pub fn download(&self, slice: &Slice) -> Download {
        self.download_from(Binding::of(slice))
    }

    fn download_from(&self, from: Binding) -> Download {
        let bytes = from.bytes;
        let staging = self.0.staging.take(&self.0.device, bytes);
        let (sender, mapped) = mpsc::channel();
        self.record(Command::Download { from, staging: staging.clone() });
        let submission = Rc::new(OnceCell::new());
        self.0.maps.borrow_mut().push(PendingMap {
            staging: staging.clone(),
            sender,
            submission: submission.clone(),
        });
        Download { gpu: self.clone(), staging, bytes, mapped, submission }
    }

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

    fn forget_kept(&self) {
        self.0.recorder.borrow_mut().forget_kept();
    }

    fn record(&self, command: Command) {
        self.0.recorder.borrow_mut().commands.push(command);
    }

    /// Submits everything recorded, without waiting for it.
    ///
    /// # Errors
    /// What the device reported: out of memory, a lost device, a validation error.
    pub fn submit(&self) -> Result<()> {
        let inner = &*self.0;
        if inner.planning.get() || inner.recorder.borrow().commands.is_empty() {
            return inner.faults.check();
        }
        let commands = inner.recorder.borrow_mut().encode(
            &inner.device,
            &mut inner.pipelines.borrow_mut(),
            &inner.uniforms.borrow(),
            inner.profiler.borrow_mut().as_mut(),
        );
        let mut uploads = inner.uploads.borrow_mut();
        uploads.unmap();
        let index = inner.queue.submit([commands]);
        uploads.recall();
        for PendingMap { staging, sender, submission } in inner.maps.borrow_mut().drain(..) {
            submission.get_or_init(|| index.clone());
            staging.map_async(wgpu::MapMode::Read, .., move |answer| {
                // The receiver is gone if nobody wants the bytes any more.
                let _ = sender.send(answer);
            });
        }
        inner.faults.check()
    }

    /// Submits everything recorded and waits until the device has done it.
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn finish(&self) -> Result<()> {
        self.submit()?;
        self.wait_for(None)
    }

    /// Waits for one submission, or for all of them.
    pub(super) fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index, timeout: None };
        let polled = self.0.device.poll(wait);
        self.0.faults.check()?;
        polled.map(|_| ()).map_err(|error| Error::Gpu(format!("waiting for the device: {error}")))
    }

    pub(super) fn recycle(&self, staging: wgpu::Buffer) {
        self.0.staging.give_back(staging);
    }

    /// Records what `work` records, without running it or allocating anything, and tells what it
    /// takes when it is done again and again. The storages it leased stay in the pool, so that the
    /// same work run next allocates exactly these, and smaller work nothing else.
    ///
    /// `work` is called several times: each run but the first finds in the pool what the one before
    /// it left, and may take other storages than from an empty one.
    ///
    /// # Errors
    /// Those of `work`, and of what was recorded before.
    pub fn plan(&self, work: impl FnMut() -> Result<()>) -> Result<Plan> {
        self.submit()?;
        self.0.pool.trim();
        self.0.recorder.borrow_mut().forget_groups();
        self.0.planning.set(true);
        let commands = self.record_until_flat(work);
        self.0.planning.set(false);
        self.0.pool.settle();
        let problems = self.0.choices.seen();
        let commands = commands?;
        let kernels = commands.iter().filter_map(|command| match command {
            Command::Dispatch { kernel, params, .. } => {
                Some((*kernel, params.map_or(0, |slot| slot.bytes)))
            }
            _ => None,
        });
        Ok(Plan {
            peak_bytes: self.0.pool.total_bytes(),
            largest_bytes: self.0.pool.largest_bytes(),
            binding_limit: self.binding_limit(),
            dispatches: kernels.clone().count(),
            problems,
            kernels: kernels.collect(),
        })
    }

    /// What `work` records once the pool has stopped growing, which it does at the second run or
    /// soon after, unless `work` keeps what it leases.
    fn record_until_flat(&self, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Command>> {
        let mut runs = 0;
        loop {
            let before = self.0.pool.total_bytes();
            self.0.choices.watch();
            let result = work();
            self.0.maps.borrow_mut().clear();
            let commands = std::mem::take(&mut self.0.recorder.borrow_mut().commands);
            result?;
            runs += 1;
            if self.0.pool.total_bytes() == before || runs == MOST_RUNS {
                return Ok(commands);
            }
        }
    }

    /// Compiles the kernels of a plan, in parallel.
    ///
    /// # Errors
    /// What the device reported.
    pub fn prepare(&self, plan: &Plan) -> Result<()> {
        self.compile(plan.kernels().map(|(kernel, _)| kernel))
    }

    /// Compiles kernels, in parallel.
    ///
    /// # Errors
    /// What the device reported; which kernel it was about, the first run of each will tell.
    pub fn compile(&self, kernels: impl IntoIterator<Item = Kernel>) -> Result<()> {
        let mut pipelines = self.0.pipelines.borrow_mut();
        pipelines.prepare(&self.0.device, kernels);
        self.0.faults.check().inspect_err(|_| pipelines.forget())
    }

    /// Frees device memory that is not leased.
    pub fn trim(&self) {
        self.0.recorder.borrow_mut().forget_groups();
        self.0.pool.trim();
    }

    /// Submits what is recorded and returns the times of its dispatches; empty if the device was
    /// not opened with `profile` or cannot measure.
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn timings(&self) -> Result<Vec<Timing>> {
        self.finish()?;
        let mut profiler = self.0.profiler.borrow_mut();
        Ok(profiler.as_mut().map_or_else(Vec::new, |profiler| profiler.take(&self.0.device)))
    }
}

/// The first thing that went wrong on the device since it was last asked.
///
/// The native backends report errors while the call that causes them runs, so a handler for
/// errors outside any scope sees everything, and one check after each submission suffices.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Option<Fault>>>);

enum Fault {
    OutOfMemory,
    Lost(String),
    Other(String),
}

impl Faults {
    fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let errors = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            errors.set(match error {
                wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
                error => Fault::Other(error.to_string()),
            });
        }));
        let losses = faults.clone();
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                losses.set(Fault::Lost(text));
            }
        });
        faults
    }

    fn set(&self, fault: Fault) {
        if let Ok(mut first) = self.0.lock() {
            first.get_or_insert(fault);
        }
    }

    fn check(&self) -> Result<()> {
        let fault = self.0.lock().ok().and_then(|mut first| first.take());
        Err(match fault {
            None => return Ok(()),
            Some(Fault::OutOfMemory) => Error::OutOfMemory("(device memory)".into()),
            Some(Fault::Lost(text)) => Error::Gpu(format!(
                "the device was lost ({text}); the driver may have reset it because a submission \
                 took too long: try a smaller --batch-size, or another --adapter"
            )),
            Some(Fault::Other(text)) => {
                Error::Gpu(format!("the device refused a command; this is a bug in wgrad: {text}"))
            }
        })
    }
}
