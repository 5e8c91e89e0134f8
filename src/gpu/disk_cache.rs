//! What drivers made of the kernels, kept between runs in the user's cache folder: one file an adapter
//! and driver.

use crate::cache::{load, store};

/// The driver's cache of compiled kernels, with what an earlier run left.
pub(super) struct PipelineStore {
    pub raw: wgpu::PipelineCache,
    name: String,
    /// Bytes last read or written.
    size: usize,
}

impl PipelineStore {
    /// None where the driver has no such cache.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let name = wgpu::util::pipeline_cache_key(info)?;
        let data = load(&name);
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("wgrad"),
            data: data.as_deref(),
            fallback: true,
        };
        // SAFETY: the file was written by `save` below under the key of this adapter; wgpu and the
        // driver check its header, and `fallback` starts afresh if it does not fit.
        let raw = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { raw, name, size: data.map_or(0, |data| data.len()) })
    }

    /// Keeps what has been compiled since.
    pub fn save(&mut self) {
        if let Some(data) = self.raw.get_data()
            && data.len() != self.size
        {
            self.size = data.len();
            let _ = store(&self.name, &data);
        }
    }
}
