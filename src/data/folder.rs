//! Class folders as torchvision's `ImageFolder` reads them: classes sorted, then paths sorted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::dataset::Item;
use crate::error::{Context, Error, Result};

/// Extensions of the files taken for images; what they hold is told from the content.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "bmp", "webp"];

/// A folder's visible entries, each kind sorted by name.
pub(super) struct Listing {
    /// Folders, also through links.
    pub folders: Vec<PathBuf>,
    /// Everything else.
    pub files: Vec<PathBuf>,
}

/// Lists `folder`, leaving out dot-files (and so `.ipynb_checkpoints`) and macOS's archive leftovers.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing { folders: Vec::new(), files: Vec::new() };
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

/// The names of `folder`'s class folders, sorted.
pub(super) fn class_names(folder: &Path) -> Result<Vec<String>> {
    list(folder)?.folders.iter().map(|class| class_name(class).map(str::to_owned)).collect()
}

/// Every image under `folder`'s class folders, labelled by the class's place in `classes`.
///
/// A class without a folder is fine; a folder with images that is no class is an error.
pub(super) fn labelled_images(folder: &Path, classes: &[String]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for class_folder in list(folder)?.folders {
        let images = files_under(&class_folder)?.images;
        let name = class_name(&class_folder)?;
        match classes.iter().position(|class| class == name) {
            Some(label) => {
                let label = label as u32;
                items.extend(images.into_iter().map(|path| Item { path, label }));
            }
            None if images.is_empty() => {}
            None => {
                let what = format!(
                    "class {name:?} is unknown; the {} known ones are {}. Rename or remove the folder",
                    classes.len(),
                    enumerate(classes),
                );
                return Err(Error::data(class_folder, what));
            }
        }
    }
    Ok(items)
}

/// The image files (by extension) in a folder and all folders in it, in `ImageFolder`'s order: by
/// folder, then by name.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be listed.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(files_under(folder)?.images)
}

/// The files of a class, also in folders in its folder.
pub(super) struct ClassFiles {
    /// Image files, in `ImageFolder`'s order.
    pub images: Vec<PathBuf>,
    /// All other files.
    pub others: Vec<PathBuf>,
}

/// Walks a class folder with all folders in it.
pub(super) fn files_under(class_folder: &Path) -> Result<ClassFiles> {
    let mut folders = vec![class_folder.to_owned()];
    // Links may lead back up; each real folder is walked once.
    let mut walked = HashSet::new();
    let mut listings = Vec::new();
    while let Some(folder) = folders.pop() {
        if !walked.insert(folder.canonicalize().map_err(Error::io(&folder))?) {
            continue;
        }
        let listing = list(&folder)?;
        folders.extend(listing.folders);
        listings.push((folder, listing.files));
    }
    // `ImageFolder` compares folders as text, where "a b" comes before "a/b".
    listings.sort_unstable_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
    let files = listings.into_iter().flat_map(|(_, files)| files);
    let (images, others) = files.partition(|path| has_image_extension(path));
    Ok(ClassFiles { images, others })
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

fn class_name(class_folder: &Path) -> Result<&str> {
    class_folder.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::data(class_folder, "the folder's name, a class, is not valid UTF-8; rename it")
    })
}
