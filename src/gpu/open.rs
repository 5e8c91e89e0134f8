//! Opening an adapter.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::PoisonError;

use super::adapter::{AdapterChoice, AdapterClass, FoundAdapter, OPENING, at, choose, to_open};
use super::ahead::Ahead;
use super::choice::Choices;
use super::device::{Gpu, Inner};
use super::disk_cache::PipelineStore;
use super::faults::Faults;
use super::matrix_units::MatrixUnits;
use super::pipeline::Pipelines;
use super::profile::Profiler;
use super::recorder::{Recorder, Uniforms};
use crate::{Error, Result};

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

impl Gpu {
    /// Opens the adapter that `choice` (completed by the environment) names.
    ///
    /// # Errors
    /// [`Error::Gpu`] without a usable adapter or if it refuses to be opened.
    pub fn open(choice: AdapterChoice, options: GpuOptions) -> Result<Self> {
        Self::open_adapter(choose(&choice.or_environment())?, options)
    }

    /// Opens the adapter of this place in the list of [`adapters`](super::adapters).
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is none any more, or it refuses to be opened.
    pub fn open_index(index: usize, options: GpuOptions) -> Result<Self> {
        Self::open_adapter(at(index)?, options)
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
        let lanes = match report.subgroup_size {
            // Metal tells what lanes any GPU may have; those with matrix units have 32.
            Some(_) if raw.get_info().backend == wgpu::Backend::Metal => Some(32),
            Some((smallest, largest)) if smallest == largest => Some(smallest),
            _ => None,
        };
        if let Some(lanes) = lanes
            && !options.no_subgroups
            && raw.features().contains(matrices)
        {
            features |= matrices;
            matrix_units = [wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32]
                .map(|of| MatrixUnits::of(&raw, of, lanes));
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
        let description = wgpu::DeviceDescriptor {
            label: Some("wgrad"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let info = raw.get_info();
        let opened = {
            let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
            let own =
                to_open(raw).ok_or_else(|| Error::Gpu(format!("{} has gone", report.name)))?;
            pollster::block_on(own.request_device(&description))
        };
        let (device, queue) =
            opened.map_err(|error| Error::Gpu(format!("opening {}: {error}", report.name)))?;
        let faults = Faults::watch(&device);
        let f16 = features.contains(wgpu::Features::SHADER_F16);
        let subgroup_size = (features.contains(wgpu::Features::SUBGROUP)
            && info.subgroup_min_size == info.subgroup_max_size)
            .then_some(info.subgroup_min_size);
        let profiler = features
            .contains(wgpu::Features::TIMESTAMP_QUERY)
            .then(|| Profiler::new(&device, &queue));
        // A context of GL is one thread's at a time, and others would wait for it, but not for ever.
        let is_gl = info.backend == wgpu::Backend::Gl;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let compilers = if is_gl { 1 } else { cores };
        // A processor that plays GPU is busy with the commands, and what is profiled is encoded differently.
        let is_gpu = report.class != AdapterClass::Software && profiler.is_none() && !is_gl;
        let ahead = is_gpu.then(Ahead::start).flatten();
        Ok(Self(Rc::new(Inner {
            uniforms: RefCell::new(Uniforms::new(limits.min_uniform_buffer_offset_alignment)),
            pipelines: RefCell::new(Pipelines::new(
                options.checked,
                PipelineStore::open(&device, &info),
                compilers,
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
            recorder: RefCell::new(Recorder::new(ahead)),
            profiler: RefCell::new(profiler),
            maps: RefCell::default(),
            planning: Cell::new(false),
            choices: Choices::default(),
            replaced: RefCell::default(),
            guarded: options.guards.then(RefCell::default),
            faults,
            closing: None,
        })))
    }
}
