//! Data sets on disk: finding the splits, labelling, holding out, and weeding out unreadable files.

use std::path::{Path, PathBuf};
use std::thread;

use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use super::archive::Archives;
use super::decode::no_panic;
use super::folder::{Others, enumerate, has_image_extension};
use super::item::Item;
use super::random::{Purpose, generator};
use super::tree::Tree;
use crate::error::{Error, Result};

/// One unreadable image in this many is still put up with.
const TOLERATED: usize = 20;
/// How many unreadable images an error lists.
const LISTED: usize = 20;
/// The names under which the splits go, in whatever case.
const SPLITS: [&[&str]; 3] =
    [&["train", "training"], &["val", "valid", "validation"], &["test", "testing"]];

/// An image file that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
}

/// How [`Dataset::scan`] holds images out where the folder does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScanOptions {
    /// The share of each class held out for validation, from 0 (none) up to but without 1.
    pub val_fraction: f64,
    /// Decides which images are held out.
    pub seed: u64,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { val_fraction: 0.2, seed: 0 }
    }
}

/// Images to train on and to validate with.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The folder that was scanned; in an archive, the folder that holds everything.
    pub root: PathBuf,
    /// The names of the classes of the training images, sorted; a label is an index into them.
    pub classes: Vec<String>,
    /// Images to train on, in `ImageFolder`'s order: by class, then by path.
    pub train: Vec<Item>,
    /// Images to validate with, in the same order.
    pub val: Vec<Item>,
    /// The images under `test/`, in the same order; often none.
    pub test: Vec<Item>,
    /// Images whose header cannot be read, in none of the lists above.
    pub skipped: Vec<Skipped>,
    /// Folders of images beside `train/` that are no split, in none of the lists above.
    pub left_out: Vec<PathBuf>,
    /// How `val` was held out of the training images; none where the folder has a validation split.
    pub held_out: Option<ScanOptions>,
    /// Of which images it was, as [`Dataset::undivided`] has it.
    pub held_out_of: Option<String>,
    /// Other files in the class folders.
    pub others: Others,
    /// The archives that the images are in.
    pub archives: Archives,
}

impl Dataset {
    /// Reads a folder of class folders, or one with `train/` (also `training/`) and optionally `val/` (also
    /// `valid/`, `validation/`) and `test/` (also `testing/`), in whatever case, each a folder of class folders.
    /// What was trained there before, runs and their folder, is passed over. Without `val/`, a share of every
    /// class is held out: at least one image, unless it is the class's only one. A `test/` without
    /// class folders is not labelled and is left alone.
    ///
    /// Folders inside a class belong to it; dot-files are ignored, and files without an image's extension
    /// (JPEG, PNG, GIF, BMP, WebP, TIFF, PNM) only counted. Every image's header is read, nothing is
    /// decoded.
    ///
    /// `root` may also be a tar archive of such a folder, `.tar` or `.tar.gz`, or a folder of nothing
    /// but archives, which count as if all were unpacked into it.
    ///
    /// # Errors
    /// [`Error::Usage`] for a `val_fraction` out of range, [`Error::Io`] for a folder that cannot be
    /// listed, [`Error::Data`] for fewer than two classes, a class without images, a class that is in
    /// `val/` or `test/` only, a `val/` of which no image can be read, and more than 5 % unreadable images.
    pub fn scan(root: &Path, options: &ScanOptions) -> Result<Self> {
        if !(0.0..1.0).contains(&options.val_fraction) {
            let what = format!("--val-fraction {} is not in 0..1", options.val_fraction);
            return Err(Error::Usage(what));
        }
        Self::read(Tree::open(root)?, options)
    }

    fn read(tree: Tree, options: &ScanOptions) -> Result<Self> {
        let root = &tree.root;
        let splits = Splits::find(&tree)?;
        let classes = tree.class_names(&splits.train)?;
        let mut others = Others::default();
        let train = tree.labelled_images(&splits.train, &classes, &mut others)?;
        check_classes(&tree, &splits.train, &classes, &train)?;
        let mut labelled = |folder: &PathBuf| held_out_images(&tree, folder, &classes, &mut others);
        let val = splits.val.as_ref().map(&mut labelled).transpose()?;
        let test = splits.test.as_ref().map(labelled).transpose()?.unwrap_or_default();

        let held_out = val.is_none().then_some(*options);
        let (mut lists, skipped) = readable(root, [train, val.unwrap_or_default(), test])?;
        let held_out_of = held_out.map(|_| digest(&splits.train, &lists[0])).transpose()?;
        if held_out.is_some() {
            let train = std::mem::take(&mut lists[0]);
            [lists[0], lists[1]] = hold_out(train, classes.len(), options).into();
        }
        let [train, val, test] = lists;
        if let (Some(folder), true) = (&splits.val, val.is_empty()) {
            return Err(Error::data(folder, "none of the images can be read"));
        }
        if let Some(class) = first_empty_class(&classes, &train) {
            let folder = splits.train.join(class);
            return Err(Error::data(folder, "none of the class's images can be read"));
        }
        let archives = tree.archives;
        let left_out = splits.left_out;
        Ok(Self {
            root: tree.root,
            classes,
            train,
            val,
            test,
            skipped,
            left_out,
            held_out,
            held_out_of,
            others,
            archives,
        })
    }

    /// What tells the images of a folder without a validation split from any others: the SHA-256 of their
    /// paths in the folder that has the classes, and of their sizes, in hexadecimal. None where there is such a split.
    ///
    /// # Errors
    /// As [`Dataset::scan`].
    pub fn undivided(root: &Path) -> Result<Option<String>> {
        let tree = Tree::open(root)?;
        let Splits { train, val: None, .. } = Splits::find(&tree)? else { return Ok(None) };
        let classes = tree.class_names(&train)?;
        let items = tree.labelled_images(&train, &classes, &mut Others::default())?;
        let ([items], _) = readable(root, [items])?;
        digest(&train, &items).map(Some)
    }

    /// Moves a share of every class from `val` to `test`: at least one image, unless it is the class's
    /// only one. For choosing by `val` what is then reported on images that had no part in the
    /// choice. `seed` decides which.
    ///
    /// # Errors
    /// [`Error::Usage`] for a `fraction` out of range, or when there is a `test` already.
    pub fn hold_out_test(&mut self, fraction: f64, seed: u64) -> Result<()> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::Usage(format!("--test-fraction {fraction} is not in 0..1")));
        }
        if fraction > 0.0 && !self.test.is_empty() {
            let what = "--test-fraction: the data have a test split already; leave it out";
            return Err(Error::Usage(what.into()));
        }
        let options = ScanOptions { val_fraction: fraction, seed };
        (self.val, self.test) =
            hold_out(std::mem::take(&mut self.val), self.classes.len(), &options);
        Ok(())
    }

    /// What to warn of when folders of images are left out.
    pub fn left_out_warning(&self) -> Option<String> {
        let names: Vec<String> = self.left_out.iter().map(|folder| file_name(folder)).collect();
        (!names.is_empty()).then(|| {
            format!(
                "left out {}: {} holds folders and so is taken for the training images, what lies beside \
                 it for no class; if train is a class, move the images in its folders up into it, else \
                 move the classes into train/",
                enumerate(&names),
                self.root.join("train").display(),
            )
        })
    }

    /// How many of `items` each class has.
    pub fn per_class(&self, items: &[Item]) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        items.iter().for_each(|item| counts[item.label as usize] += 1);
        counts
    }
}

/// Images labelled by a given list of classes, to evaluate a network on.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// The folder that holds the class folders, or the splits.
    pub root: PathBuf,
    /// What people call these images: the folder, and which part of it.
    pub name: String,
    /// Whether they are a part of the folder that training makes itself.
    pub held_out: bool,
    /// The images, in `ImageFolder`'s order; split after split where there are several.
    pub items: Vec<Item>,
    /// Images whose header cannot be read.
    pub skipped: Vec<Skipped>,
    /// Other files in the class folders.
    pub others: Others,
}

impl Labelled {
    /// Reads a folder of class folders (or archives, as [`Dataset::scan`] does), all of which must be
    /// among `classes`; not every class needs a folder. `split` names a folder inside `root` that holds
    /// them: `train`, `test`, or any name of the validation split (`val`, `valid`, `validation`); `all` is
    /// every split. With `None` it is the validation split, else the test split, else `root` itself.
    ///
    /// `held_out` says how the network's training held images out of a folder without a validation split.
    /// Of such a folder, if it has every class, `val` and `train` are the parts that it was divided into,
    /// and `None` is the former unless there is a test split.
    ///
    /// # Errors
    /// As [`Dataset::scan`]; [`Error::Usage`] for a `split` that is a path rather than a name, and
    /// [`Error::Data`] when the split named does not exist, or when `root` has a training split only and
    /// none is named.
    pub fn scan(
        root: &Path,
        classes: &[String],
        split: Option<&str>,
        held_out: Option<ScanOptions>,
    ) -> Result<Self> {
        if let Some(name) = split
            && Path::new(name).file_name() != Some(name.as_ref())
        {
            let what = format!("--split {name}: it is a folder's name, such as train, val or test");
            return Err(Error::Usage(what));
        }
        let tree = Tree::open(root)?;
        if let Some(options) = held_out
            && let Ok(Splits { train, val: None, test, .. }) = Splits::find(&tree)
            && are_same(&tree.class_names(&train)?, classes)
        {
            match split {
                None if test.is_none() => return Self::part(tree, train, classes, &options, true),
                Some(name) if aliases(name) == aliases("val") => {
                    return Self::part(tree, train, classes, &options, true);
                }
                Some(name) if aliases(name) == aliases("train") => {
                    return Self::part(tree, train, classes, &options, false);
                }
                _ => {}
            }
        }
        let root = &tree.root;
        let split_of = |name| split_folder(&tree, name);
        let has_train = split_of("train").map(|train| has_folders(&tree, &train)).transpose()?;
        let has_train = has_train.unwrap_or(false);
        let folder = match split {
            Some("all") => return Self::all(&tree, classes),
            Some(name) => split_of(name)
                .ok_or_else(|| Error::data(root.join(name), "no such split; name another"))?,
            None => match split_of("val").or_else(|| split_of("test")) {
                Some(folder) => folder,
                None if has_train => {
                    let what = "has train/ but neither val/ nor test/; give the folder to evaluate on, \
                                or --split all";
                    return Err(Error::data(root, what));
                }
                None => root.to_owned(),
            },
        };
        let mut others = Others::default();
        let items = held_out_images(&tree, &folder, classes, &mut others)?;
        Self::of(folder, items, others)
    }

    /// Every split of a folder, or the folder itself where it has none.
    fn all(tree: &Tree, classes: &[String]) -> Result<Self> {
        let (mut items, mut others) = (Vec::new(), Others::default());
        for folder in
            ["train", "val", "test"].into_iter().filter_map(|name| split_folder(tree, name))
        {
            if has_folders(tree, &folder)? {
                items.extend(held_out_images(tree, &folder, classes, &mut others)?);
            }
        }
        if items.is_empty() {
            items = held_out_images(tree, &tree.root, classes, &mut others)?;
        }
        Self::of(tree.root.clone(), items, others)
    }

    fn of(root: PathBuf, items: Vec<Item>, others: Others) -> Result<Self> {
        let ([items], skipped) = readable(&root, [items])?;
        Ok(Self { name: root.display().to_string(), root, held_out: false, items, skipped, others })
    }

    /// What [`Dataset::scan`] holds out of the images in `folder`, or what it leaves; its classes are
    /// `classes`, in whatever order.
    fn part(
        tree: Tree,
        folder: PathBuf,
        classes: &[String],
        options: &ScanOptions,
        is_val: bool,
    ) -> Result<Self> {
        let dataset = Dataset::read(tree, options)?;
        let label = |class: &String| classes.iter().position(|name| name == class);
        let labels: Vec<u32> =
            dataset.classes.iter().filter_map(label).map(|label| label as u32).collect();
        let mut items = if is_val { dataset.val } else { dataset.train };
        items.iter_mut().for_each(|item| item.label = labels[item.label as usize]);
        let ScanOptions { val_fraction, seed } = options;
        let part = if is_val { "held out" } else { "left" };
        let name =
            format!("{} ({part} by --val-fraction {val_fraction} --seed {seed})", folder.display());
        if items.is_empty() {
            return Err(Error::data(name, "there are none; add images, or give --split all"));
        }
        let (skipped, others) = (dataset.skipped, dataset.others);
        Ok(Self { root: folder, name, held_out: is_val, items, skipped, others })
    }
}

/// Where the splits of a data set are.
struct Splits {
    train: PathBuf,
    val: Option<PathBuf>,
    test: Option<PathBuf>,
    /// Folders of images that are no split, where there are splits.
    left_out: Vec<PathBuf>,
}

impl Splits {
    fn find(tree: &Tree) -> Result<Self> {
        let root = &tree.root;
        let train = split_folder(tree, "train").unwrap_or_else(|| root.join("train"));
        let val = split_folder(tree, "val");
        let test = split_folder(tree, "test");
        // A class may be called "train": then its folder holds images, and has no val/ beside it.
        if has_folders(tree, &train)? || (tree.is_folder(&train) && val.is_some()) {
            let test = match test {
                Some(test) if has_folders(tree, &test)? => Some(test),
                _ => None,
            };
            let mut left_out = tree.list(root)?.folders;
            left_out.retain(|folder| !is_split(&file_name(folder)) && holds_images(tree, folder));
            return Ok(Self { train, val, test, left_out });
        }
        if let Some(val) = val
            && has_folders(tree, &val)?
        {
            let what = format!("has {}/ but no train/ with class folders", file_name(&val));
            return Err(Error::data(root, what));
        }
        Ok(Self { train: root.to_owned(), val: None, test: None, left_out: Vec::new() })
    }
}

/// Whether a folder of that name holds a split.
pub(super) fn is_split(name: &str) -> bool {
    aliases(name).is_some()
}

/// The names of the split that goes under this one, too.
fn aliases(name: &str) -> Option<&'static [&'static str]> {
    SPLITS.into_iter().find(|names| names.iter().any(|alias| name.eq_ignore_ascii_case(alias)))
}

/// The folder of the split called `name`, where there is one.
fn split_folder(tree: &Tree, name: &str) -> Option<PathBuf> {
    let exact = Some(tree.root.join(name)).filter(|folder| tree.is_folder(folder));
    exact.or_else(|| {
        let folders = tree.list(&tree.root).ok()?.folders;
        let is = |folder: &&PathBuf, alias: &str| file_name(folder).eq_ignore_ascii_case(alias);
        aliases(name)?.iter().find_map(|alias| folders.iter().find(|it| is(it, alias))).cloned()
    })
}

/// Whether two lists have the same names, in whatever order.
fn are_same(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|name| b.contains(name))
}

/// Whether there are images in a folder or in folders in it, as far as these can be read.
fn holds_images(tree: &Tree, folder: &Path) -> bool {
    tree.files_under(folder).is_ok_and(|files| !files.images.is_empty())
}

fn has_folders(tree: &Tree, folder: &Path) -> Result<bool> {
    Ok(tree.is_folder(folder) && !tree.list(folder)?.folders.is_empty())
}

/// There must be two classes at least, each with an image.
fn check_classes(tree: &Tree, folder: &Path, classes: &[String], items: &[Item]) -> Result<()> {
    if classes.is_empty() {
        return Err(no_class_folders(tree, folder)?);
    }
    if let Some(class) = first_empty_class(classes, items) {
        return Err(no_images(tree, &folder.join(class))?);
    }
    if let [class] = classes {
        let what = format!("only one class, {class:?}; training needs at least two class folders");
        return Err(Error::data(folder, what));
    }
    Ok(())
}

fn first_empty_class<'a>(classes: &'a [String], items: &[Item]) -> Option<&'a str> {
    let mut used = vec![false; classes.len()];
    items.iter().for_each(|item| used[item.label as usize] = true);
    used.iter().position(|used| !used).map(|label| classes[label].as_str())
}

/// What a class folder holds in place of images.
fn no_images(tree: &Tree, class_folder: &Path) -> Result<Error> {
    let mut others = Others::default();
    others.add(&tree.files_under(class_folder)?.others);
    let held = if others.is_empty() { String::new() } else { format!(" ({others})") };
    let what = format!(
        "the class folder holds no image{held}; add JPEG, PNG, GIF, BMP, WebP, TIFF or PNM files, or \
         remove the folder"
    );
    Ok(Error::data(class_folder, what))
}

/// What is wrong with a folder that has no folders in it.
fn no_class_folders(tree: &Tree, folder: &Path) -> Result<Error> {
    let files = tree.list(folder)?.files;
    let images = files.iter().filter(|path| has_image_extension(path)).count();
    let found = if images == 0 {
        "no images and no class folders".to_owned()
    } else {
        format!("{images} images, but not in class folders")
    };
    let shown = folder.display();
    let what = format!(
        "{found}; expected a folder for each class:\n  {shown}/cat/1.jpg\n  {shown}/cat/2.jpg\n  \
         {shown}/dog/1.jpg\nor the same under train/ and val/"
    );
    Ok(Error::data(folder, what))
}

/// The images of a split whose classes are given; there must be some.
fn held_out_images(
    tree: &Tree,
    folder: &Path,
    classes: &[String],
    others: &mut Others,
) -> Result<Vec<Item>> {
    let items = tree.labelled_images(folder, classes, others)?;
    if !items.is_empty() {
        return Ok(items);
    }
    if tree.list(folder)?.folders.is_empty() {
        return Err(no_class_folders(tree, folder)?);
    }
    Err(Error::data(folder, "the class folders hold no images"))
}

/// The SHA-256 of the paths of images below `folder`, and of their sizes.
fn digest(folder: &Path, items: &[Item]) -> Result<String> {
    let mut hash = Sha256::new();
    for item in items {
        for name in item.path.strip_prefix(folder).unwrap_or(&item.path) {
            hash.update(name.as_encoded_bytes());
            hash.update(b"/");
        }
        hash.update(item.bytes()?.to_le_bytes());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Moves a share of every class from `train` into a second list; both keep the order.
fn hold_out(train: Vec<Item>, classes: usize, options: &ScanOptions) -> (Vec<Item>, Vec<Item>) {
    let mut held_out = vec![false; train.len()];
    for label in 0..classes {
        let mut members: Vec<usize> =
            (0..train.len()).filter(|&at| train[at].label as usize == label).collect();
        if members.len() < 2 || options.val_fraction == 0.0 {
            continue;
        }
        let share = (members.len() as f64 * options.val_fraction).round() as usize;
        let share = share.clamp(1, members.len() - 1);
        members.shuffle(&mut generator(Purpose::Split, options.seed, 0, label));
        members[..share].iter().for_each(|&at| held_out[at] = true);
    }
    let mut held_out = held_out.into_iter();
    let (val, train) = train.into_iter().partition(|_| held_out.next() == Some(true));
    (train, val)
}

/// Takes the images whose header cannot be read out of all `lists`; too many of them are an error.
fn readable<const N: usize>(
    root: &Path,
    lists: [Vec<Item>; N],
) -> Result<([Vec<Item>; N], Vec<Skipped>)> {
    let total = lists.iter().map(Vec::len).sum();
    let mut skipped = Vec::new();
    let lists = lists.map(|items| {
        let reasons = probe_all(&items);
        let mut kept = Vec::with_capacity(items.len());
        for (item, reason) in items.into_iter().zip(reasons) {
            match reason {
                None => kept.push(item),
                Some(reason) => skipped.push(Skipped { path: item.path, reason }),
            }
        }
        kept
    });
    check_share(root, &skipped, total)?;
    Ok((lists, skipped))
}

/// An error that lists the unreadable images when they are more than 5 % of `total`.
pub(super) fn check_share(root: &Path, unreadable: &[Skipped], total: usize) -> Result<()> {
    if unreadable.len() * TOLERATED <= total {
        return Ok(());
    }
    let mut what = format!(
        "{} of {total} images cannot be read, more than {} %; repair or remove them:",
        unreadable.len(),
        100 / TOLERATED,
    );
    for Skipped { path, reason } in unreadable.iter().take(LISTED) {
        what += &format!("\n  {}: {reason}", path.display());
    }
    if unreadable.len() > LISTED {
        what += &format!("\n  and {} more", unreadable.len() - LISTED);
    }
    Err(Error::data(root, what))
}

/// For every item, why its header cannot be read, if so; in parallel.
fn probe_all(items: &[Item]) -> Vec<Option<String>> {
    let mut reasons = vec![None; items.len()];
    let workers = thread::available_parallelism().map_or(1, |count| count.get());
    let share = items.len().div_ceil(workers).max(1);
    thread::scope(|scope| {
        for (items, reasons) in items.chunks(share).zip(reasons.chunks_mut(share)) {
            scope.spawn(|| {
                for (item, reason) in items.iter().zip(reasons) {
                    *reason = no_panic(|| Ok(item.problem())).unwrap_or_else(Some);
                }
            });
        }
    });
    reasons
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
