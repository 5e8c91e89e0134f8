//! The opened device: leases memory, records kernels, submits.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::adapter::{AdapterClass, AdapterReport, OPENING};
use super::buffer::{Form, Pool, Slice, TEXELS_IN_ROW};
use super::choice::{Choices, Sizes};
use super::download::{Download, StagingRing};
use super::faults::Faults;
use super::matrix_units::MatrixUnits;
use super::pipeline::Pipelines;
use super::profile::{Profiler, Timing};
use super::recorder::{Binding, Command, Recorder, Uniforms};
use super::shader::{Kernel, Shader};
use super::upload::UploadRing;
use crate::{Error, Result};

/// Guard bytes on each side of an allocation; a multiple of any adapter's offset alignment.
const GUARD: u64 = 256;

/// What guards are filled with, over and over: NaN in f32 and in f16 that arithmetic makes another NaN of, so
/// that adding to a number past the end shows; and different ones for neighbours, so that a copy does, too.
fn filler(number: usize) -> [u8; 4] {
    (0xffbf_fd01 + (number % 255) as u32).to_le_bytes()
}

/// An opened adapter. Clones share it.
#[derive(Clone)]
pub struct Gpu(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub report: AdapterReport,
    pub limits: wgpu::Limits,
    pub subgroup_size: Option<u32>,
    pub f16: bool,
    pub words: bool,
    pub mixed: bool,
    /// Units for matrices of f16 and of f32, as long as they are trusted.
    pub matrix_units: Cell<[Option<MatrixUnits>; 2]>,
    pub pool: Rc<Pool>,
    pub staging: Rc<StagingRing>,
    pub uploads: RefCell<UploadRing>,
    pub recorder: RefCell<Recorder>,
    pub pipelines: RefCell<Pipelines>,
    pub uniforms: RefCell<Uniforms>,
    pub profiler: RefCell<Option<Profiler>>,
    /// Downloads recorded and not yet submitted.
    pub maps: RefCell<Vec<PendingMap>>,
    pub planning: Cell<bool>,
    pub choices: Choices,
    pub replaced: RefCell<HashMap<&'static str, &'static Shader>>,
    pub guarded: Option<RefCell<Vec<Slice>>>,
    pub faults: Faults,
    /// [`OPENING`], held while all of the above goes.
    pub closing: Option<MutexGuard<'static, ()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing = Some(OPENING.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

pub(super) struct PendingMap {
    staging: wgpu::Buffer,
    sender: mpsc::Sender<Result<(), wgpu::BufferAsyncError>>,
    submission: Rc<OnceCell<wgpu::SubmissionIndex>>,
}

impl Gpu {
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

    /// Whether kernels keep the shader compiler's bounds checks.
    pub fn checked(&self) -> bool {
        self.0.pipelines.borrow().checked()
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
        let filler = filler(guarded.borrow().len());
        let data = filler.repeat(storage.bytes.div_ceil(4) as usize);
        self.0.queue.write_buffer(
            storage.buffer(&self.0.device),
            0,
            &data[..storage.bytes as usize],
        );
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
        for (number, Slice { buffer, offset, bytes }) in slices.iter().enumerate() {
            let filler = filler(number);
            let all = Slice { buffer: buffer.clone(), offset: 0, bytes: buffer.bytes() };
            let data = self.download(&all).wait()?;
            let mut outside = (0..*offset as usize).chain((offset + bytes) as usize..data.len());
            if let Some(at) = outside.find(|&at| data[at] != filler[at % 4]) {
                let at = at as i64 - *offset as i64;
                return Err(Error::Gpu(format!(
                    "a kernel wrote at byte {at} of an allocation of {bytes} bytes"
                )));
            }
        }
        Ok(slices.len())
    }

    /// Writes `data`, whole words, to the start of `slice`, after everything recorded so far.
    ///
    /// # Errors
    /// What the device reported, if recorded work had to be submitted first or there is no memory.
    pub fn upload(&self, slice: &Slice, data: &[u8]) -> Result<()> {
        if self.0.planning.get() || data.is_empty() {
            return Ok(());
        }
        self.0.recorder.borrow_mut().interruptions += 1;
        let to = Binding { bytes: data.len() as u64, ..Binding::of(slice) };
        let staged = self.0.uploads.borrow_mut().fill(&self.0.device, data);
        match staged {
            Some((staging, from)) => self.record(Command::Upload { staging, from, to }),
            None => {
                self.submit()?;
                let buffer = to.storage.buffer(&self.0.device);
                self.0.queue.write_buffer(buffer, to.offset, data);
            }
        }
        self.0.faults.check()
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
        let bindings = slices.iter().map(|slice| self.binding(slice)).collect();
        self.record(Command::Dispatch { kernel, params, bindings, groups });
    }

    /// What a kernel gets of a slice: guard bytes after it, too, since drivers may keep kernels within what is
    /// bound, and then nothing would show where they go beyond the slice.
    fn binding(&self, slice: &Slice) -> Binding {
        let mut binding = Binding::of(slice);
        if self.0.guarded.is_some() {
            let most = self.binding_limit().min(slice.buffer.bytes() - slice.offset);
            binding.bytes = (slice.bytes + GUARD).min(most).max(slice.bytes);
        }
        binding
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

    /// All that [`Gpu::prefer_kernel`] was told, in order: the pass, its sizes, the kernel.
    pub fn preferred_kernels(&self) -> Vec<(String, Sizes, String)> {
        self.0.choices.tuned()
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

    pub(super) fn download_from(&self, from: Binding) -> Download {
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

    fn forget_kept(&self) {
        self.0.recorder.borrow_mut().forget_kept();
    }

    pub(super) fn record(&self, command: Command) {
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
        let index = inner.queue.submit(commands);
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
        /// Waits that end at once, one after the other, after which nothing is expected of more.
        const VAIN: u32 = 30;
        let wait = wgpu::PollType::Wait { submission_index, timeout: None };
        let mut vain = 0;
        let polled = loop {
            let began = Instant::now();
            // wgpu panics where the device is lost meanwhile, once it has said so to the faults.
            let poll = || self.0.device.poll(wait.clone());
            let polled = panic::catch_unwind(AssertUnwindSafe(poll));
            self.0.faults.check()?;
            let polled =
                polled.map_err(|_| Error::Gpu("waiting for the device failed".to_owned()))?;
            // GL waits for two seconds at most, and not at all where its context is lost.
            vain = if began.elapsed() < Duration::from_secs(1) { vain + 1 } else { 0 };
            if !matches!(polled, Err(wgpu::PollError::Timeout)) || vain == VAIN {
                break polled;
            }
        };
        polled.map(|_| ()).map_err(|error| Error::Gpu(format!("waiting for the device: {error}")))
    }

    pub(super) fn recycle(&self, staging: wgpu::Buffer) {
        self.0.staging.give_back(staging);
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
        match profiler.as_mut() {
            Some(profiler) => profiler.take(|| self.wait_for(None)),
            None => Ok(Vec::new()),
        }
    }
}
