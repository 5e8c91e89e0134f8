//! Walking a tar archive that nobody vouches for: every size it claims is checked before anything of
//! that size is read or kept, and nothing is ever written.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entries, Entry, EntryType};

use crate::data::folder::has_image_extension;
use crate::error::{Error, Result};

/// The largest image file that is read.
const MOST_MEMBER: u64 = 256 << 20;
/// What is kept in memory of compressed archives, and of what all archives say of themselves.
const MOST_KEPT: u64 = 4 << 30;
/// Images hardly shrink, and tar pads them to blocks: what unpacks to more times its size than this,
/// and to more than [`SMALL`], holds something else.
const MOST_EXPANSION: u64 = 100;
/// What any compressed archive may unpack to.
const SMALL: u64 = 16 << 20;
/// Bytes that may lie between two members: headers, long names, attributes.
const MOST_BETWEEN: u64 = 1 << 20;
/// The longest name.
const MOST_NAME: usize = 4096;
/// What keeping a member takes besides its name and its bytes.
const MEMBER_OVERHEAD: u64 = 256;
/// Bytes of a block of tar's.
const BLOCK: u64 = 512;

/// A file in an archive; hidden ones are left out.
pub struct Found {
    /// Its path in the archive, of plain names only.
    pub name: PathBuf,
    /// Where its bytes begin in the archive, unpacked.
    pub offset: u64,
    /// How many they are.
    pub size: u64,
    /// The bytes themselves, of an image in a compressed archive.
    pub bytes: Option<Arc<[u8]>>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// What may still be kept, by all archives of a data set together.
pub struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU64::new(MOST_KEPT))
    }
}

impl Budget {
    /// Whether `bytes` more may be kept.
    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// Lists what an archive that is not compressed holds; the bytes of its members are passed over.
///
/// # Errors
/// [`Error::Data`] for an archive that is cut short, damaged, or hostile.
pub fn list(path: &Path, file: &File, budget: &Budget) -> Result<Vec<Found>> {
    let length = file.metadata().map_err(Error::io(path))?.len();
    let meter = Meter::default();
    let mut archive = Archive::new(Metered { inner: file, meter: &meter });
    let walk = Walk { path, meter: &meter, budget, length: Some(length), most: u64::MAX };
    let entries = archive.entries_with_seek().map_err(Error::io(path))?;
    walk.members(entries)
}

/// Unpacks a gzipped archive in one pass and keeps its images in memory.
///
/// # Errors
/// As [`list`], and [`Error::Data`] for one that unpacks to more than images can, or than is kept.
pub fn unpack(path: &Path, file: &File, budget: &Budget) -> Result<Vec<Found>> {
    let length = file.metadata().map_err(Error::io(path))?.len();
    let meter = Meter::default();
    let unpacked = MultiGzDecoder::new(io::BufReader::with_capacity(1 << 18, file));
    let mut archive = Archive::new(Metered { inner: unpacked, meter: &meter });
    let most = length.saturating_mul(MOST_EXPANSION).saturating_add(SMALL);
    let walk = Walk { path, meter: &meter, budget, length: None, most };
    let found = walk.members(archive.entries().map_err(Error::io(path))?)?;
    // The checksum of what was unpacked comes last.
    meter.limit.set(most);
    let rest = io::copy(&mut archive.into_inner(), &mut io::sink());
    let last = found.last().map(|member| member.name.as_path());
    rest.map_err(|error| walk.broken(&error, last))?;
    Ok(found)
}

/// How far an archive has been read.
#[derive(Default)]
struct Meter {
    at: Cell<u64>,
    /// Where reading must not go on.
    limit: Cell<u64>,
    /// Whether it wanted to.
    exceeded: Cell<bool>,
    /// Whether there was nothing more to read.
    ended: Cell<bool>,
}

/// Reads no further than its meter allows.
struct Metered<'a, R> {
    inner: R,
    meter: &'a Meter,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Meter { at, limit, exceeded, ended } = self.meter;
        let left = limit.get().saturating_sub(at.get());
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 && !buffer.is_empty() {
            exceeded.set(true);
            return Err(io::Error::other("more than there may be"));
        }
        let read = self.inner.read(&mut buffer[..wanted])?;
        ended.set(read == 0 && wanted > 0);
        at.set(at.get() + read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Metered<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.inner.seek(to)?;
        self.meter.at.set(at);
        Ok(at)
    }
}

/// A walk through an archive.
struct Walk<'a> {
    path: &'a Path,
    meter: &'a Meter,
    budget: &'a Budget,
    /// Bytes of an archive that is not compressed; of one that is, images are kept.
    length: Option<u64>,
    /// Bytes that it may unpack to.
    most: u64,
}

impl Walk<'_> {
    fn members<R: Read>(&self, mut entries: Entries<'_, Metered<'_, R>>) -> Result<Vec<Found>> {
        let mut found: Vec<Found> = Vec::new();
        // Where the member before ends.
        let mut end = 0_u64;
        loop {
            self.meter.limit.set(end.saturating_add(MOST_BETWEEN).min(self.most));
            let last = found.last().map(|member| member.name.as_path());
            let mut entry = match entries.next() {
                Some(entry) => entry.map_err(|error| self.broken(&error, last))?,
                None if self.meter.ended.get() => {
                    let what = "is cut short: what closes a tar archive is missing";
                    return Err(self.refused(format!("{what}{}; {AGAIN}", after(last))));
                }
                None => return Ok(found),
            };
            // A sparse file takes less than its size.
            let stored = match entry.header().entry_type() {
                EntryType::GNUSparse => entry.header().entry_size().unwrap_or(u64::MAX),
                _ => entry.size(),
            };
            end = entry.raw_file_position().saturating_add(stored);
            let bytes = entry.path_bytes().into_owned();
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_NAME)]).into_owned();
            if self.length.is_some_and(|length| end > length) {
                return Err(self.refused(format!("is cut short within {shown:?}; {AGAIN}")));
            }
            end = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            if end > self.most {
                return Err(self.refused(format!(
                    "unpacks to more than {MOST_EXPANSION} times its size (at {shown:?}), as no \
                     archive of images does; it is refused"
                )));
            }
            if let Some(member) = self.member(&mut entry, &bytes, shown)? {
                found.push(member);
            }
        }
    }

    /// A file to keep; none for folders, what is hidden, and what is no file.
    fn member<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        bytes: &[u8],
        shown: String,
    ) -> Result<Option<Found>> {
        if bytes.len() > MOST_NAME {
            let what = format!("holds a name of {} bytes; {MOST_NAME} are allowed", bytes.len());
            return Err(self.refused(what));
        }
        let Some(name) = self.plain(&shown)? else { return Ok(None) };
        let mut problem = None;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::Symlink | EntryType::Link => {
                problem = Some("is a link, and links in archives are not followed".to_owned());
            }
            EntryType::GNUSparse => problem = Some("is stored as a sparse file".to_owned()),
            _ => return Ok(None),
        }
        // What cannot be used has no bytes to speak of; a sparse file's size is not that in the archive.
        let size = if problem.is_some() { 0 } else { entry.size() };
        if std::str::from_utf8(bytes).is_err() {
            problem = Some("its name is not valid UTF-8".to_owned());
        }
        let offset = entry.raw_file_position();
        let is_image = has_image_extension(&name);
        if is_image && size > MOST_MEMBER {
            return Err(self.refused(format!(
                "holds {shown:?} of {} MiB; an image file may have {} MiB",
                size >> 20,
                MOST_MEMBER >> 20
            )));
        }
        let keeps = self.length.is_none() && is_image && problem.is_none();
        let kept = name.as_os_str().len() as u64 + MEMBER_OVERHEAD + if keeps { size } else { 0 };
        if !self.budget.take(kept) {
            return Err(self.refused(format!(
                "its images take more than the {} GiB of memory that compressed archives may take; \
                 unpack it with gunzip to a .tar file, which is read in place",
                MOST_KEPT >> 30
            )));
        }
        let mut content = None;
        if keeps {
            self.meter.limit.set(offset + size);
            // The size has been checked, and yet nothing is allocated on the archive's word alone.
            let mut bytes = Vec::with_capacity(size.min(1 << 20) as usize);
            let read = entry.read_to_end(&mut bytes);
            read.map_err(|error| self.broken(&error, Some(&name)))?;
            if bytes.len() as u64 != size {
                return Err(self.refused(format!("is cut short within {shown:?}; {AGAIN}")));
            }
            content = Some(bytes.into());
        }
        Ok(Some(Found { name, offset, size, bytes: content, problem }))
    }

    /// The path that a name means; none for what is hidden, and for the archive's own root.
    fn plain(&self, name: &str) -> Result<Option<PathBuf>> {
        let mut path = PathBuf::new();
        let mut hidden = false;
        for component in Path::new(name).components() {
            match component {
                Component::Normal(part) => {
                    hidden |= part.as_encoded_bytes().starts_with(b".") || part == "__MACOSX";
                    path.push(part);
                }
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(self.refused(format!(
                        "holds {name:?}, a path that leads out of the archive; it is refused"
                    )));
                }
            }
        }
        Ok((!hidden && !path.as_os_str().is_empty()).then_some(path))
    }

    /// What an error of reading means; `last` is the last member that was seen.
    fn broken(&self, error: &io::Error, last: Option<&Path>) -> Error {
        if self.meter.exceeded.get() {
            return self.refused(match self.meter.limit.get() == self.most {
                true => format!(
                    "unpacks to more than {MOST_EXPANSION} times its size, as no archive of images \
                     does; it is refused"
                ),
                false => {
                    format!("describes a member in more than {MOST_BETWEEN} bytes{}", after(last))
                }
            });
        }
        let ended = self.meter.ended.get() || error.kind() == io::ErrorKind::UnexpectedEof;
        let what = match last {
            None => "is no tar archive, or cut short or damaged at its beginning",
            Some(_) if ended => "is cut short",
            Some(_) => "is damaged",
        };
        self.refused(format!("{what}{} ({error}); {AGAIN}", after(last)))
    }

    fn refused(&self, what: String) -> Error {
        Error::data(self.path, what)
    }
}

/// What to do about an archive that is not whole.
const AGAIN: &str = "fetch or make it again";

fn after(last: Option<&Path>) -> String {
    last.map_or_else(String::new, |name| format!(" after {:?}", name.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn what_is_kept_of_all_archives_together_is_limited() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in [("a/1.png", 700), ("a/2.png", 300), ("a/notes.txt", 5000)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            builder.append_data(&mut header, name, &vec![0; size as usize][..]).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).unwrap();
        let about_them = 7 + 7 + 11 + 3 * MEMBER_OVERHEAD;
        type Read = fn(&Path, &File, &Budget) -> Result<Vec<Found>>;
        let cases: [(Vec<u8>, Read, u64); 2] =
            [(tar, list, about_them), (gzip.finish().unwrap(), unpack, about_them + 700 + 300)];
        for (bytes, read, needed) in cases {
            let read = |budget: &Budget| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                file.rewind().unwrap();
                read(Path::new("x"), &file, budget).map(|found| found.len())
            };
            let refused = |found: Result<usize>| {
                found.is_err_and(|error| error.to_string().contains("its images take more than"))
            };
            assert_eq!(read(&Budget(needed.into())).unwrap(), 3);
            assert!(refused(read(&Budget((needed - 1).into()))));
            let both = Budget((2 * needed - 1).into());
            assert!(read(&both).is_ok() && refused(read(&both)), "two archives");
        }
    }
}
