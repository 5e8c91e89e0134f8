//! Which adapters there are, which one to use, and what it can do.

use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::thread;

use crate::{Error, Result};

/// What the user said about the adapter; empty means "the best there is".
#[derive(Clone, Debug, Default)]
pub struct AdapterChoice {
    /// `--adapter` or `WGPU_ADAPTER_NAME`: an index from `wgrad devices` or a part of the name.
    pub adapter: Option<String>,
    /// `--backend` or `WGPU_BACKEND`: vulkan, metal, dx12 or gl, or several with commas between them.
    pub backend: Option<String>,
    /// `WGPU_POWER_PREF`: `low` prefers an integrated GPU to a discrete one.
    pub power: Option<String>,
}

impl AdapterChoice {
    /// Fills what is not set from `WGPU_ADAPTER_NAME`, `WGPU_BACKEND` and `WGPU_POWER_PREF`.
    pub fn or_environment(self) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        Self {
            adapter: self.adapter.or_else(|| variable("WGPU_ADAPTER_NAME")),
            backend: self.backend.or_else(|| variable("WGPU_BACKEND")),
            power: self.power.or_else(|| variable("WGPU_POWER_PREF")),
        }
    }

    /// Those of the adapters that are of the backend asked for.
    ///
    /// # Errors
    /// [`Error::Usage`] for a backend of another name.
    pub fn of_backend(&self, mut found: Vec<FoundAdapter>) -> Result<Vec<FoundAdapter>> {
        if let Some(backends) = self.backends()? {
            found.retain(|found| backends.contains(&found.raw.get_info().backend));
        }
        Ok(found)
    }

    /// What was asked for and is not there, and by what.
    fn missing(&self) -> String {
        let adapter = self.adapter.as_deref().map(|name| match name.parse::<usize>() {
            Ok(index) => format!("has the index {index} (--adapter or WGPU_ADAPTER_NAME)"),
            Err(_) => format!("is called \"{name}\" (--adapter or WGPU_ADAPTER_NAME)"),
        });
        let backend = self.backend.as_deref();
        let backend =
            backend.map(|names| format!("has the backend {names} (--backend or WGPU_BACKEND)"));
        match (adapter, backend) {
            (Some(adapter), Some(backend)) => format!("no adapter {adapter} and {backend}"),
            (Some(adapter), None) => format!("no adapter {adapter}"),
            (None, Some(backend)) => format!("no adapter that can be used {backend}"),
            (None, None) => "no adapter can be used, `wgrad devices` says why".into(),
        }
    }

    fn backends(&self) -> Result<Option<Vec<wgpu::Backend>>> {
        let names = self.backend.as_deref().map(|names| names.split(','));
        names.map(|names| names.map(|name| parse_backend(name.trim())).collect()).transpose()
    }
}

/// The classes of adapter that the kernel tables tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterClass {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU behind a hypervisor, or one that does not say what it is.
    Other,
    /// Shaders run on the processor (lavapipe, llvmpipe, SwiftShader, WARP).
    Software,
}

/// What an adapter is and offers, in the terms that matter here.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    /// Place in the list of `wgrad devices`.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Discrete, integrated, software, …
    pub class: AdapterClass,
    /// vulkan, metal, dx12 or gl.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Bytes one binding may span.
    pub max_binding_bytes: u64,
    /// Bytes one buffer may have.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory_bytes: u32,
    /// Invocations a workgroup may have.
    pub max_workgroup_invocations: u32,
    /// Storage buffers a shader may bind.
    pub max_storage_buffers: u32,
    /// Lanes of a subgroup, smallest and largest; none without subgroup operations.
    pub subgroup_size: Option<(u32, u32)>,
    /// Whether shaders may use f16.
    pub f16: bool,
    /// Whether dispatches can be timed on the adapter.
    pub timestamps: bool,
    /// Cooperative-matrix shapes as `MxNxK ab->c`; empty where there are none.
    pub matrix_shapes: Vec<String>,
    /// What keeps it from running wgrad; none if nothing does.
    pub unusable: Option<String>,
}

/// A found adapter with its report.
pub struct FoundAdapter {
    /// What it is and offers.
    pub report: AdapterReport,
    pub(super) raw: wgpu::Adapter,
}

impl AdapterReport {
    /// Whether kernels that load texels are faster than those that load the same from arrays. Mesa's software
    /// adapters up to 25 load an array's numbers for one lane after the other, in a loop; 26 does not, and
    /// either was as fast on an Intel Xeon, but texels still were on an AMD EPYC.
    pub fn prefers_texels(&self) -> bool {
        let mesa = major_version_of_mesa(&self.driver);
        self.class == AdapterClass::Software && mesa.is_some_and(|major| major < 26 || *AMD)
    }
}

/// Whether the processor is one of AMD's.
static AMD: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        #[allow(unused_unsafe, reason = "Rust 1.89 has it unsafe")]
        // SAFETY: every processor of this architecture has the instruction.
        let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
        bytemuck::bytes_of(&[vendor.ebx, vendor.edx, vendor.ecx]) == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
});

/// Of a driver such as `llvmpipe Mesa 22.3.6 (LLVM 15.0.6)`.
fn major_version_of_mesa(driver: &str) -> Option<u32> {
    let (_, version) = driver.split_once("Mesa ")?;
    version.split('.').next()?.parse().ok()
}

/// Held while drivers look for adapters, open one or close it: some are not safe against doing so on two threads
/// at once.
pub(super) static OPENING: Mutex<()> = Mutex::new(());

/// What knows the drivers of every backend but GL. It stays, and the drivers with it, which would otherwise be
/// unloaded and loaded with every device, under other threads' feet.
static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| instance(NOT_GL));
const NOT_GL: wgpu::Backends = wgpu::Backends::all().difference(wgpu::Backends::GL);

/// The adapters of GL, to look at, and what knows them. They were found by a thread that lasts as long as the
/// process and does nothing else: threads that have used GL are reported to stand still at times in NVIDIA's
/// driver as they end while others use it.
static OF_GL: LazyLock<(wgpu::Instance, Vec<wgpu::Adapter>)> = LazyLock::new(|| {
    let (sender, found) = mpsc::channel();
    let look = move || {
        let instance = instance(wgpu::Backends::GL);
        let adapters = search(&instance, wgpu::Backends::GL);
        // Whoever asked waits for it.
        let _ = sender.send((instance, adapters));
        loop {
            thread::park();
        }
    };
    let thread = thread::Builder::new().name("GL".into()).spawn(look);
    let found = thread.ok().and_then(|_| found.recv().ok());
    found.unwrap_or_else(|| (instance(wgpu::Backends::empty()), Vec::new()))
});

fn search(instance: &wgpu::Instance, backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance.enumerate_adapters(backends))
}

fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = backends;
    // The validation layers slow software adapters several times over.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    wgpu::Instance::new(descriptor)
}

/// Adapters with their places in the list of all, found as they are asked for: GL last, and not before the
/// others were looked at, since many a system has no sound driver for it.
fn find() -> impl Iterator<Item = Vec<FoundAdapter>> {
    let mut count = 0;
    [NOT_GL, wgpu::Backends::GL].into_iter().map(move |backends| {
        let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = match backends {
            NOT_GL => search(&INSTANCE, NOT_GL),
            _ => OF_GL.1.clone(),
        };
        found.sort_by_key(|adapter| backend_rank(adapter.get_info().backend));
        let first = count;
        count += found.len();
        let found = found.into_iter().zip(first..);
        found.map(|(raw, index)| FoundAdapter { report: report(index, &raw), raw }).collect()
    })
}

/// An adapter as this thread can open it, while it holds [`OPENING`]: contexts of GL belong to one thread at a
/// time, so that those opened have one of their own. None if there is none any more.
pub(super) fn to_open(found: wgpu::Adapter) -> Option<wgpu::Adapter> {
    let info = found.get_info();
    if info.backend != wgpu::Backend::Gl {
        return Some(found);
    }
    let own = search(&instance(wgpu::Backends::GL), wgpu::Backends::GL);
    own.into_iter().find(|own| own.get_info() == info)
}

/// Lists every adapter of every backend, in the order of their indices.
pub fn adapters() -> Vec<FoundAdapter> {
    find().flatten().collect()
}

/// The adapter of this place in the list of [`adapters`].
///
/// # Errors
/// [`Error::Gpu`] if there is none any more.
pub fn at(index: usize) -> Result<FoundAdapter> {
    let found = find().flatten().find(|found| found.report.index == index);
    found.ok_or_else(|| Error::Gpu(format!("adapter {index} has gone")))
}

/// Picks the adapter that `choice` names, or the best: discrete before integrated before software.
///
/// # Errors
/// [`Error::Gpu`] if there is none, none matches, or the one named cannot run compute shaders.
pub fn choose(choice: &AdapterChoice) -> Result<FoundAdapter> {
    let fits = |FoundAdapter { report, .. }: &FoundAdapter| match &choice.adapter {
        Some(name) => match name.parse::<usize>() {
            Ok(index) => report.index == index,
            Err(_) => report.name.to_lowercase().contains(&name.to_lowercase()),
        },
        None => report.unusable.is_none(),
    };
    let low_power = choice.power.as_deref().map_or(Ok(false), parse_power)?;
    let rank = |found: &FoundAdapter| class_rank(found.report.class, low_power);
    let asked = choice.adapter.is_some() || choice.backend.is_some();
    let (mut listing, mut best) = (String::new(), None::<FoundAdapter>);
    for found in find() {
        listing += &self::listing(&found);
        // Of several as good the first.
        let found = choice.of_backend(found)?.into_iter().filter(fits);
        best = best.into_iter().chain(found).min_by_key(rank);
        if best.as_ref().is_some_and(|best| asked || best.report.class != AdapterClass::Software) {
            break;
        }
    }
    match best {
        Some(best) => match &best.report.unusable {
            Some(reason) => {
                Err(Error::Gpu(format!("{} cannot be used: {reason}", best.report.name)))
            }
            None => Ok(best),
        },
        None if listing.is_empty() => {
            Err(Error::Gpu(format!("no graphics adapter found; {INSTALL}")))
        }
        None => Err(Error::Gpu(format!("{}; there are:{listing}", choice.missing()))),
    }
}

/// What to do where there is no adapter.
const INSTALL: &str = if cfg!(windows) {
    "install the graphics driver of the GPU's maker"
} else {
    "install a Vulkan driver (Debian and Ubuntu: `apt-get install mesa-vulkan-drivers`, which also \
     brings a software adapter that needs no GPU)"
};

fn listing(found: &[FoundAdapter]) -> String {
    let line = |FoundAdapter { report, .. }: &FoundAdapter| {
        format!("\n  {}: {} ({}, {})", report.index, report.name, report.backend, report.driver)
    };
    found.iter().map(line).collect()
}

fn parse_backend(name: &str) -> Result<wgpu::Backend> {
    Ok(match name.to_lowercase().as_str() {
        "vulkan" | "vk" => wgpu::Backend::Vulkan,
        "metal" | "mtl" => wgpu::Backend::Metal,
        "dx12" | "d3d12" => wgpu::Backend::Dx12,
        "gl" | "gles" | "opengl" => wgpu::Backend::Gl,
        _ => {
            return Err(Error::Usage(format!(
                "unknown backend `{name}`; one of vulkan, metal, dx12, gl"
            )));
        }
    })
}

/// Whether less power is preferred to more speed, in wgpu's words.
fn parse_power(name: &str) -> Result<bool> {
    match name.to_lowercase().as_str() {
        "low" => Ok(true),
        "high" | "none" => Ok(false),
        _ => Err(Error::Usage(format!("WGPU_POWER_PREF={name}: it is low, high or none"))),
    }
}

fn backend_rank(backend: wgpu::Backend) -> u8 {
    match backend {
        wgpu::Backend::Vulkan | wgpu::Backend::Metal => 0,
        wgpu::Backend::Dx12 => 1,
        _ => 2,
    }
}

fn class_rank(class: AdapterClass, low_power: bool) -> u8 {
    match class {
        AdapterClass::Discrete => u8::from(low_power),
        AdapterClass::Integrated => u8::from(!low_power),
        AdapterClass::Other => 2,
        AdapterClass::Software => 3,
    }
}

fn class_of(info: &wgpu::AdapterInfo) -> AdapterClass {
    let name = info.name.to_lowercase();
    // The GL backend cannot tell the type of device; the renderer's name can.
    if ["llvmpipe", "softpipe", "swiftshader", "software"].iter().any(|word| name.contains(word)) {
        return AdapterClass::Software;
    }
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterClass::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterClass::Integrated,
        wgpu::DeviceType::Cpu => AdapterClass::Software,
        _ => AdapterClass::Other,
    }
}

/// Whether a version of OpenGL, such as `4.5 (Core Profile) Mesa 22.3.6`, has no compute shaders. OpenGL
/// ES says so itself.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map_while(|number| number.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < (4, 3))
        && !version.contains("ES")
}

fn report(index: usize, raw: &wgpu::Adapter) -> AdapterReport {
    let (info, limits, features) = (raw.get_info(), raw.limits(), raw.features());
    let downlevel = raw.get_downlevel_capabilities().flags;
    let unusable = if !downlevel.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        Some("it has no compute shaders".to_owned())
    } else if info.backend == wgpu::Backend::Gl && is_too_old(&info.driver_info) {
        // Some drivers give wgpu, which asks for 3.3 or newer, just that, and claim what it lacks.
        Some("its OpenGL is older than 4.3, which brought compute shaders".to_owned())
    } else if limits.max_storage_buffers_per_shader_stage < 8 {
        Some(format!(
            "it binds {} storage buffers to a shader, wgrad needs 8",
            limits.max_storage_buffers_per_shader_stage
        ))
    } else if limits.max_compute_invocations_per_workgroup < 256 {
        Some(format!(
            "its workgroups have {} invocations, wgrad needs 256",
            limits.max_compute_invocations_per_workgroup
        ))
    } else if limits.max_compute_workgroup_storage_size < 16 << 10 {
        Some(format!(
            "its workgroups have {} bytes of memory, wgrad needs 16 KiB",
            limits.max_compute_workgroup_storage_size
        ))
    } else {
        None
    };
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    AdapterReport {
        index,
        name: info.name.clone(),
        class: class_of(&info),
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        subgroup_size: subgroups.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        f16: features.contains(wgpu::Features::SHADER_F16),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        matrix_shapes: raw
            .cooperative_matrix_properties()
            .iter()
            .map(|shape| {
                format!(
                    "{}x{}x{} {:?}->{:?}",
                    shape.m_size, shape.n_size, shape.k_size, shape.ab_type, shape.cr_type
                )
            })
            .collect(),
        unusable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opengl_without_compute_shaders_is_known_by_its_version() {
        for (version, old) in [
            ("3.3.0 NVIDIA 580.159.04", true),
            ("4.5 (Core Profile) Mesa 22.3.6", false),
            ("4.3", false),
            ("OpenGL ES 3.2 Mesa", false),
            ("3.1 ES", false),
            ("", false),
        ] {
            assert_eq!(is_too_old(version), old, "{version}");
        }
    }

    #[test]
    fn mesas_version_is_found_wherever_a_driver_tells_it() {
        for (driver, major) in [
            ("llvmpipe Mesa 22.3.6 (LLVM 15.0.6)", Some(22)),
            ("llvmpipe Mesa 26.2.6-1 (LLVM 22.1.8)", Some(26)),
            ("4.5 (Core Profile) Mesa 25.0.7-2+deb13u1", Some(25)),
            ("SwiftShader 5.0.0", None),
            ("Mesa", None),
            ("", None),
        ] {
            assert_eq!(major_version_of_mesa(driver), major, "{driver}");
        }
    }
}
