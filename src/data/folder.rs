//! Listing a folder on the disk, and what file names say.

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Extensions of the files taken for images; what they hold is told from the content.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "bmp", "webp"];

/// A folder's visible entries, each kind sorted by name.
#[derive(Clone, Default)]
pub(super) struct Listing {
    /// Folders, also through links.
    pub folders: Vec<PathBuf>,
    /// Everything else.
    pub files: Vec<PathBuf>,
}

/// Lists `folder`, leaving out dot-files (and so `.ipynb_checkpoints`) and macOS's archive leftovers.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    let entries = folder.read_dir().map_err(Error::io(folder)).context(|| "listing the images")?;
    for entry in entries {
        let entry = entry.map_err(Error::io(folder)).context(|| "listing the images")?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") || name == "__MACOSX" {
            continue;
        }
        let path = entry.path();
        let is_folder = match entry.file_type() {
            Ok(kind) if !kind.is_symlink() => kind.is_dir(),
            _ => path.is_dir(),
        };
        if is_folder { &mut listing.folders } else { &mut listing.files }.push(path);
    }
    listing.folders.sort_unstable();
    listing.files.sort_unstable();
    Ok(listing)
}

/// Whether the file's name says that it is an image.
pub(super) fn has_image_extension(path: &Path) -> bool {
    EXTENSIONS.contains(&extension(path).as_str())
}

/// The first names of a list and how many more there are.
pub(super) fn enumerate(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// A file's extension in lower case, without the dot.
pub(super) fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}
