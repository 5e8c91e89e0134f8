//! Folders with files in them, on the disk or in archives.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::archive::{Archives, Member, archives_at, open};
use super::dataset::is_split;
use super::folder::{Listing, Others, enumerate, has_image_extension, list};
use super::item::Item;
use crate::error::{Error, Result};

/// Folders with files in them.
pub(super) struct Tree {
    /// The uppermost folder.
    pub root: PathBuf,
    /// What they are in, if not on the disk.
    pub archives: Archives,
    archived: Option<Archived>,
}

#[derive(Default)]
struct Archived {
    folders: BTreeMap<PathBuf, Listing>,
    files: HashMap<PathBuf, Member>,
}

impl Tree {
    /// The folder `root`, or what is in the archive `root` or in the archives in the folder `root`.
    ///
    /// # Errors
    /// [`Error::Data`] if there is nothing of that name, or an archive is cut short, damaged or
    /// hostile.
    pub fn open(root: &Path) -> Result<Self> {
        if let Err(error) = root.metadata() {
            return Err(match error.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::data(root, "no such folder or archive; check --data")
                }
                _ => Error::io(root)(error),
            });
        }
        let archives = archives_at(root)?;
        if archives.is_empty() {
            return Ok(Self::on_disk(root));
        }
        let (files, archives) = open(&archives)?;
        let archived = Archived::new(root, files);
        Ok(Self { root: archived.innermost(root), archives, archived: Some(archived) })
    }

    /// The folder `root` on the disk.
    pub fn on_disk(root: &Path) -> Self {
        Self { root: root.to_owned(), archives: Archives::default(), archived: None }
    }

    /// A folder's visible entries.
    pub fn list(&self, folder: &Path) -> Result<Listing> {
        match &self.archived {
            None => list(folder),
            Some(archived) => Ok(archived.folders.get(folder).cloned().unwrap_or_default()),
        }
    }

    /// Whether there is a folder of that path.
    pub fn is_folder(&self, path: &Path) -> bool {
        match &self.archived {
            None => path.is_dir(),
            Some(archived) => archived.folders.contains_key(path),
        }
    }

    /// An image of class `label`.
    fn item(&self, path: PathBuf, label: u32) -> Item {
        let member = self.archived.as_ref().and_then(|it| it.files.get(&path)).cloned();
        Item { path, label, member }
    }

    /// The names of `folder`'s class folders, sorted.
    pub fn class_names(&self, folder: &Path) -> Result<Vec<String>> {
        let folders = self.list(folder)?.folders;
        folders.iter().map(|class| class_name(class).map(str::to_owned)).collect()
    }

    /// Every image under `folder`'s class folders, labelled by the class's place in `classes`, in the
    /// order of torchvision's `ImageFolder`: by class, then by path.
    ///
    /// A class without a folder is fine; a folder with images that is no class is an error. Other files
    /// in the folders are added to `left_out`.
    pub fn labelled_images(
        &self,
        folder: &Path,
        classes: &[String],
        left_out: &mut Others,
    ) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for class_folder in self.list(folder)?.folders {
            let ClassFiles { images, others } = self.files_under(&class_folder)?;
            left_out.add(&others);
            let name = class_name(&class_folder)?;
            match classes.iter().position(|class| class == name) {
                Some(label) => {
                    items.extend(images.into_iter().map(|path| self.item(path, label as u32)));
                }
                None if images.is_empty() => {}
                None => {
                    let what = format!(
                        "class {name:?} is unknown; the {} known ones are {}. Rename or remove the \
                         folder",
                        classes.len(),
                        enumerate(classes),
                    );
                    return Err(Error::data(class_folder, what));
                }
            }
        }
        Ok(items)
    }

    /// The files of a class, also in folders in its folder.
    pub fn files_under(&self, class_folder: &Path) -> Result<ClassFiles> {
        let mut folders = vec![class_folder.to_owned()];
        // Links may lead back up; each real folder is walked once.
        let mut walked = HashSet::new();
        let mut listings = Vec::new();
        while let Some(folder) = folders.pop() {
            let real = match self.archived {
                None => folder.canonicalize().map_err(Error::io(&folder))?,
                Some(_) => folder.clone(),
            };
            if !walked.insert(real) {
                continue;
            }
            let listing = self.list(&folder)?;
            folders.extend(listing.folders);
            listings.push((folder, listing.files));
        }
        // `ImageFolder` compares folders as text, where "a b" comes before "a/b".
        listings.sort_unstable_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
        let files = listings.into_iter().flat_map(|(_, files)| files);
        let (images, others) = files.partition(|path| has_image_extension(path));
        Ok(ClassFiles { images, others })
    }
}

/// The files of a class, also in folders in its folder.
pub(super) struct ClassFiles {
    /// Image files, in `ImageFolder`'s order.
    pub images: Vec<PathBuf>,
    /// All other files.
    pub others: Vec<PathBuf>,
}

impl Archived {
    /// With `files`, whose paths begin at `root`.
    fn new(root: &Path, files: HashMap<PathBuf, Member>) -> Self {
        let mut archived = Self::default();
        archived.folders.insert(root.to_owned(), Listing::default());
        let names: BTreeSet<PathBuf> = files.keys().map(|name| root.join(name)).collect();
        for path in names {
            archived.add(root, &path);
        }
        archived.files = files.into_iter().map(|(name, it)| (root.join(name), it)).collect();
        archived
    }

    fn add(&mut self, root: &Path, file: &Path) {
        let mut child = file;
        while let Some(folder) = child.parent().filter(|_| child != root) {
            let is_new = !self.folders.contains_key(folder);
            let listing = self.folders.entry(folder.to_owned()).or_default();
            if child == file { &mut listing.files } else { &mut listing.folders }
                .push(child.to_owned());
            if !is_new {
                break;
            }
            child = folder;
        }
    }

    /// The folder that `root` only wraps, if it wraps one: archives are often made of a folder.
    fn innermost(&self, root: &Path) -> PathBuf {
        let mut root = root;
        while let Some(Listing { folders, files }) = self.folders.get(root)
            && let [folder] = &folders[..]
            && !files.iter().any(|file| has_image_extension(file))
            && !folder.file_name().and_then(|name| name.to_str()).is_some_and(is_split)
            && self.folders.get(folder).is_some_and(|inner| !inner.folders.is_empty())
        {
            root = folder;
        }
        root.to_owned()
    }
}

/// The image files (by extension) in a folder and all folders in it, in `ImageFolder`'s order: by
/// folder, then by name; and what else is there.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be listed.
pub fn image_files(folder: &Path) -> Result<(Vec<PathBuf>, Others)> {
    let ClassFiles { images, others: files } = Tree::on_disk(folder).files_under(folder)?;
    let mut others = Others::default();
    others.add(&files);
    Ok((images, others))
}

fn class_name(class_folder: &Path) -> Result<&str> {
    class_folder.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::data(class_folder, "the folder's name, a class, is not valid UTF-8; rename it")
    })
}
