//! Compiled kernels, cached by shader and constants; compiled in parallel when many are needed.

use std::collections::HashMap;

use super::disk_cache::PipelineStore;
use super::shader::Kernel;

pub(super) struct Pipelines {
    compiled: HashMap<Kernel, wgpu::ComputePipeline>,
    /// Keep the shader compiler's bounds checks (`--checked`).
    checked: bool,
    store: Option<PipelineStore>,
    /// Threads that may compile at once.
    threads: usize,
}

impl Pipelines {
    pub fn new(checked: bool, store: Option<PipelineStore>, threads: usize) -> Self {
        Self { compiled: HashMap::new(), checked, store, threads }
    }

    /// Whether shaders keep the compiler's bounds checks.
    pub fn checked(&self) -> bool {
        self.checked
    }

    pub fn get(&mut self, device: &wgpu::Device, kernel: Kernel) -> &wgpu::ComputePipeline {
        let (checked, store) = (self.checked, &self.store);
        self.compiled
            .entry(kernel)
            .or_insert_with(|| compile(device, kernel, checked, store.as_ref()))
    }

    /// Has every kernel compiled again.
    pub fn forget(&mut self) {
        self.compiled.clear();
    }

    /// Compiles those of `kernels` that are not yet compiled, on several threads.
    pub fn prepare(&mut self, device: &wgpu::Device, kernels: impl IntoIterator<Item = Kernel>) {
        let missing: Vec<_> =
            kernels.into_iter().filter(|kernel| !self.compiled.contains_key(kernel)).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let (checked, store) = (self.checked, self.store.as_ref());
        let compiled = std::thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                while let Some(&kernel) =
                    missing.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    done.push((kernel, compile(device, kernel, checked, store)));
                }
                done
            };
            let workers: Vec<_> =
                (0..self.threads.min(missing.len())).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .flat_map(|worker| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Vec<_>>()
        });
        self.compiled.extend(compiled);
        if let Some(store) = &mut self.store {
            store.save();
        }
    }
}

fn compile(
    device: &wgpu::Device,
    kernel: Kernel,
    checked: bool,
    store: Option<&PipelineStore>,
) -> wgpu::ComputePipeline {
    // A malformed shader file is caught by the shader tests; here it becomes a validation error.
    let source = kernel.wgsl().unwrap_or_else(|mistake| format!("// {mistake}\n!"));
    let checks = match checked {
        true => wgpu::ShaderRuntimeChecks::checked(),
        false => wgpu::ShaderRuntimeChecks::unchecked(),
    };
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(kernel.name()),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    };
    // SAFETY: every kernel masks its own tails; `verify` and the tests run each of them between
    // guard regions, and `--checked` turns the checks back on.
    let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name()),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[],
            zero_initialize_workgroup_memory: false,
        },
        cache: store.map(|store| &store.raw),
    })
}
