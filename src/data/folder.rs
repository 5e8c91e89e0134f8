//! Listing a folder on the disk, and what file names say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Extensions of the files taken for images; what they hold is told from the content.
const EXTENSIONS: [&str; 13] =
    ["jpg", "jpeg", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff", "pbm", "pgm", "ppm", "pnm"];
/// Files that systems leave in folders.
const LITTER: [&str; 2] = ["Thumbs.db", "desktop.ini"];

/// Files in class folders that are no images by their names: how many of each extension.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(BTreeMap<String, usize>);

impl Others {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Counts files; those that systems leave there do not count.
    pub(super) fn add(&mut self, files: &[PathBuf]) {
        let is_litter = |path: &Path| LITTER.iter().any(|name| path.ends_with(name));
        for path in files.iter().filter(|path| !is_litter(path)) {
            *self.0.entry(extension(path)).or_default() += 1;
        }
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let mut kinds: Vec<_> = self.0.iter().collect();
        kinds.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let told = |(extension, count): &(&String, &usize)| match extension.is_empty() {
            true => format!("{count} without an extension"),
            false => format!("{count} {extension}"),
        };
        let shown: Vec<_> = kinds.iter().take(SHOWN).map(told).collect();
        let more = if kinds.len() > SHOWN { ", …" } else { "" };
        match self.0.values().sum() {
            1 => write!(f, "1 file that is no image by its name: {}", shown[0]),
            count => {
                let what = "files that are no images by their names";
                write!(f, "{count} {what}: {}{more}", shown.join(", "))
            }
        }
    }
}

/// A folder's visible entries, each kind sorted by name.
#[derive(Clone, Default)]
pub(super) struct Listing {
    /// Folders, also through links.
    pub folders: Vec<PathBuf>,
    /// Everything else.
    pub files: Vec<PathBuf>,
}

/// Lists `folder`, leaving out dot-files (and so `.ipynb_checkpoints`), macOS's archive leftovers, and what was
/// trained here before.
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
        if is_folder && holds_runs(&path) {
            continue;
        }
        if is_folder { &mut listing.folders } else { &mut listing.files }.push(path);
    }
    listing.folders.sort_unstable();
    listing.files.sort_unstable();
    Ok(listing)
}

/// Whether a folder is a run's, or the one that runs lie in unless they are told otherwise.
fn holds_runs(folder: &Path) -> bool {
    let is_run = |folder: &Path| {
        let holds = |name| folder.join(name).is_dir();
        folder.join("args.json").is_file() && (holds("state") || holds("weights"))
    };
    let entries = || folder.read_dir().into_iter().flatten().flatten();
    is_run(folder) || (folder.ends_with("runs") && entries().any(|entry| is_run(&entry.path())))
}

/// Whether the file's name says that it is an image.
pub(super) fn has_image_extension(path: &Path) -> bool {
    EXTENSIONS.contains(&extension(path).as_str())
}

/// The first names of a list and how many more there are; names of classes have commas in them.
pub(super) fn enumerate(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// A file's extension in lower case, without the dot.
pub(super) fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}
