//! The user's cache folder: files that can be made again, kept between runs.
//!
//! A file that is missing, damaged or made by something else costs time, never an error.

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
