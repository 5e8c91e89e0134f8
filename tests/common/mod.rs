//! What the tests share: the adapters to run on.

use wgrad::gpu::{FoundAdapter, Gpu, GpuOptions, adapters};

/// Opens every usable adapter.
///
/// # Panics
/// If there is none: a run that tested nothing must not pass.
pub fn every_gpu(options: GpuOptions) -> Vec<Gpu> {
    let usable = |found: &FoundAdapter| found.report.unusable.is_none();
    let gpus: Vec<_> = adapters()
        .into_iter()
        .filter(usable)
        .map(|found| {
            let name = format!("{} ({})", found.report.name, found.report.backend);
            Gpu::open_adapter(found, options).unwrap_or_else(|error| panic!("{name}: {error}"))
        })
        .collect();
    assert!(
        !gpus.is_empty(),
        "no adapter; on Debian and Ubuntu `apt-get install mesa-vulkan-drivers` brings a software one"
    );
    gpus
}
