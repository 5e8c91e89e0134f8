//! Files that can be made again, kept between runs in the user's cache folder: above all what drivers
//! made of the kernels, one file an adapter and driver.
//!
//! A file that is missing, damaged or another driver's costs time, never an error.

use std::io::Write;
use std::path::PathBuf;

/// The folder for things that can be made again: `WGRAD_CACHE`, else `XDG_CACHE_HOME`, else the
/// platform's place in the home folder; none without any of these, or if `WGRAD_CACHE` is empty.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    if let Some(folder) = variable("WGRAD_CACHE") {
        return (!folder.as_os_str().is_empty()).then_some(folder);
    }
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else {
        variable("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("wgrad"))
}

/// Writes a cache file, whole or not at all; a cache that cannot be written is no cache.
pub fn store(name: &str, data: &[u8]) -> Option<()> {
    let folder = cache_folder()?;
    std::fs::create_dir_all(&folder).ok()?;
    let mut file = tempfile::NamedTempFile::new_in(&folder).ok()?;
    file.write_all(data).ok()?;
    file.persist(folder.join(name)).ok()?;
    Some(())
}

/// Reads a cache file.
pub fn load(name: &str) -> Option<Vec<u8>> {
    std::fs::read(cache_folder()?.join(name)).ok()
}

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
