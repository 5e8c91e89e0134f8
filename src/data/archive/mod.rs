//! Images in tar archives, read without unpacking them to the disk.
//!
//! An archive that is not compressed is read in place: its members are found once ([`walk`]), that is
//! kept beside it ([`index`]), and an image is one read at its offset. A gzipped archive cannot be read
//! from the middle; it is unpacked in one pass whenever it is opened, and its image files, compressed
//! as they are by themselves, stay in memory up to a limit.

mod index;
mod walk;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use self::walk::{Budget, Found};
use super::dataset::is_split;
use super::decode::probe_bytes;
use super::folder::{extension, has_image_extension, list};
use crate::error::{Error, Result};

/// How much of a member is read to see whether it is an image; nearly every header ends before.
const HEAD: u64 = 64 << 10;

/// An archive that is open, with how its members are read.
struct Archive {
    path: PathBuf,
    file: File,
}

/// A file in an archive.
#[derive(Clone)]
pub struct Member {
    archive: Arc<Archive>,
    /// Where it begins in the archive, unpacked.
    offset: u64,
    size: u64,
    /// Its bytes, if the archive is compressed.
    bytes: Option<Arc<[u8]>>,
    problem: Option<Arc<str>>,
}

impl Member {
    /// How long the file is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Why it cannot be used as an image, if that is known.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.as_ref().map(|problem| self.says(problem))
    }

    /// The file's bytes, or the first `most` of them.
    pub(super) fn read(&self, most: u64) -> io::Result<Cow<'_, [u8]>> {
        let size = self.size.min(most) as usize;
        if let Some(bytes) = &self.bytes {
            return Ok(Cow::Borrowed(&bytes[..size]));
        }
        let mut bytes = vec![0; size];
        read_at(&self.archive.file, &mut bytes, self.offset)?;
        Ok(Cow::Owned(bytes))
    }

    /// A text about the file that says which archive it is in.
    pub(super) fn says(&self, what: &str) -> String {
        format!("in {}: {what}", self.archive.path.display())
    }

    /// Notes if this is no image.
    fn look(&mut self) {
        // A disk's error is no property of the file's, and is met again when the image is read.
        let no_image = |most| self.read(most).ok().and_then(|bytes| probe_bytes(&bytes).err());
        let at_first = no_image(HEAD);
        let problem = if self.size > HEAD { at_first.and(no_image(self.size)) } else { at_first };
        self.problem = problem.map(Arc::from);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        let place = |it: &Self| (it.archive.path.clone(), it.offset, it.size);
        place(self) == place(other)
    }
}

impl Eq for Member {}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {}", self.size, self.archive.path.display())
    }
}

/// The files of an archive by their paths in it.
type Members = Vec<(PathBuf, Member)>;

/// What there is in archives, for those who want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archives {
    /// How many there are; none if images are files of their own.
    pub count: usize,
    /// What is kept in memory of those that are compressed.
    pub bytes_in_memory: u64,
}

/// The archives that `root` is, or holds without any folder beside them; empty where there are none.
///
/// # Errors
/// [`Error::Data`] for another file.
pub(super) fn archives_at(root: &Path) -> Result<Vec<PathBuf>> {
    if is_archive(root) && !root.is_dir() {
        return Ok(vec![root.to_owned()]);
    }
    if !root.is_dir() {
        let what = "is a file; images come as a folder of class folders, or as a .tar or .tar.gz \
                    archive of one";
        return Err(Error::data(root, what));
    }
    let listing = list(root)?;
    let archives = listing.files.into_iter().filter(|file| is_archive(file));
    Ok(if listing.folders.is_empty() { archives.collect() } else { Vec::new() })
}

/// Archives that are read at a time, each by a thread.
const MOST_AT_A_TIME: usize = 16;

/// The files in all `archives` by their paths, as if all were unpacked into the same folder.
///
/// An archive called like a split whose members are not in a folder of a split is that split.
///
/// # Errors
/// [`Error::Data`] for one that is cut short, damaged or hostile, and for a file that is in two.
pub(super) fn open(archives: &[PathBuf]) -> Result<(HashMap<PathBuf, Member>, Archives)> {
    let budget = Budget::default();
    let budget = &budget;
    let mut opened: Vec<Result<Members>> = Vec::new();
    for several in archives.chunks(MOST_AT_A_TIME) {
        opened.extend(thread::scope(|scope| {
            let threads: Vec<_> =
                several.iter().map(|path| scope.spawn(move || open_one(path, budget))).collect();
            let done = threads.into_iter().map(|thread| thread.join());
            done.map(|members| members.expect("reading does not panic")).collect::<Vec<_>>()
        }));
    }
    let mut files: HashMap<PathBuf, Member> = HashMap::new();
    let mut all = Archives { count: archives.len(), bytes_in_memory: 0 };
    for (path, members) in archives.iter().zip(opened) {
        let members = members?;
        let prefix = split_of(path, &members);
        for (name, member) in members {
            all.bytes_in_memory += member.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            match files.entry(prefix.join(name)) {
                // Of several files of one name in an archive the last counts, as when unpacking it.
                Entry::Occupied(mut at) if Arc::ptr_eq(&at.get().archive, &member.archive) => {
                    at.insert(member);
                }
                Entry::Occupied(at) => {
                    let (name, other) = (at.key().display(), at.get().archive.path.display());
                    return Err(Error::data(path, format!("holds {name}, as does {other}")));
                }
                Entry::Vacant(at) => {
                    at.insert(member);
                }
            }
        }
    }
    Ok((files, all))
}

/// The split whose name the archive has, unless its members are in folders of splits.
fn split_of(path: &Path, members: &Members) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    let in_split = |(name, _): &(PathBuf, Member)| {
        let mut folders = name.iter().take(2).filter_map(|folder| folder.to_str());
        folders.any(is_split)
    };
    if is_split(stem) && !members.iter().any(in_split) { stem.into() } else { PathBuf::new() }
}

fn open_one(path: &Path, budget: &Budget) -> Result<Members> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut head = Vec::new();
    (&file).take(6).read_to_end(&mut head).map_err(Error::io(path))?;
    io::Seek::rewind(&mut &file).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    let compressed = match head[..] {
        [0x1f, 0x8b, ..] => true,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(other_compression(path, "zstd")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(other_compression(path, "xz")),
        [b'B', b'Z', b'h', ..] => return Err(other_compression(path, "bzip2")),
        [b'P', b'K', 3, 4, ..] => return Err(Error::data(path, "is a zip archive; unpack it")),
        _ => false,
    };
    let known = if compressed { None } else { index::load(path, &metadata) };
    let is_known = known.is_some();
    let found = match known {
        Some(found) => found,
        None if compressed => walk::unpack(path, &file, budget)?,
        None => walk::list(path, &file, budget)?,
    };
    let archive = Arc::new(Archive { path: path.to_owned(), file });
    let member = |Found { name, offset, size, bytes, problem }| {
        let (archive, problem) = (archive.clone(), problem.map(Arc::from));
        (name, Member { archive, offset, size, bytes, problem })
    };
    let mut members: Members = found.into_iter().map(member).collect();
    if !is_known {
        look_at_all(&mut members);
    }
    if !is_known && !compressed {
        index::store(path, &metadata, &members);
    }
    Ok(members)
}

/// Notes which members that are called images are none; in parallel.
fn look_at_all(members: &mut [(PathBuf, Member)]) {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let share = members.len().div_ceil(workers).max(1);
    thread::scope(|scope| {
        for members in members.chunks_mut(share) {
            scope.spawn(|| {
                for (name, member) in members {
                    if member.problem.is_none() && has_image_extension(name) {
                        member.look();
                    }
                }
            });
        }
    });
}

/// Whether a file's name says that it is an archive.
fn is_archive(path: &Path) -> bool {
    let unzipped = path.file_stem().map(Path::new);
    match extension(path).as_str() {
        "tar" | "tgz" => true,
        "gz" => unzipped.is_some_and(|inner| extension(inner) == "tar"),
        _ => false,
    }
}

fn other_compression(path: &Path, name: &str) -> Error {
    let what = format!("is compressed with {name}; unpack it to a .tar file, or use gzip");
    Error::data(path, what)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}
