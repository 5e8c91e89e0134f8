//! What an archive holds, written beside it so that the next run need not walk it: a line of JSON with
//! the archive's size and time, and a line for each member. Where its folder is not writable, it goes
//! to the cache folder, and so where another file has its name; where that is not either, there is none.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Member;
use super::walk::Found;
use crate::cache;
use crate::checkpoint::write_atomically;

/// Changes whenever what is written does.
const VERSION: u32 = 2;
/// Of an archive's size, an index takes a small part; whatever is larger was not written here.
const MOST_BYTES: u64 = 1 << 30;

/// The first line: what the index is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    wgrad_index: u32,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    members: usize,
}

impl Head {
    fn of(archive: &Metadata, members: usize) -> Option<Self> {
        let modified = archive.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let modified = u64::try_from(modified.as_nanos()).ok()?;
        Some(Self { wgrad_index: VERSION, bytes: archive.len(), modified, members })
    }
}

/// A line for a member: name, offset, size, and why it cannot be used.
type Line = (String, u64, u64, Option<String>);

/// What the archive at `path` holds, from an index that is not older than the archive; none without
/// such.
pub fn load(path: &Path, archive: &Metadata) -> Option<Vec<Found>> {
    let beside = File::open(beside(path)).ok().and_then(|file| read(file, archive));
    beside.or_else(|| read(io::Cursor::new(cache::load(&name_in_cache(path)?)?), archive))
}

/// Keeps what the archive at `path` holds.
pub fn store(path: &Path, archive: &Metadata, members: &[(PathBuf, Member)]) {
    let Some(head) = Head::of(archive, members.len()) else { return };
    let write = |to: &mut dyn Write| {
        serde_json::to_writer(&mut *to, &head)?;
        for (name, Member { offset, size, problem, .. }) in members {
            let problem = problem.as_ref().map(ToString::to_string);
            let line: Line = (name.to_string_lossy().into(), *offset, *size, problem);
            to.write_all(b"\n")?;
            serde_json::to_writer(&mut *to, &line)?;
        }
        to.write_all(b"\n")
    };
    let beside = beside(path);
    if may_replace(&beside) && write_atomically(beside, |file| write(file)).is_ok() {
        return;
    }
    let mut bytes = Vec::new();
    if let (Ok(()), Some(name)) = (write(&mut bytes), name_in_cache(path)) {
        cache::store(&name, &bytes);
    }
}

/// Whether a file is an index or empty, or there is none: whatever else has the name is somebody's.
fn may_replace(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => {
            let mut head = String::new();
            let read = BufReader::new(file.take(1 << 10)).read_line(&mut head);
            read.is_ok() && (head.is_empty() || serde_json::from_str::<Head>(&head).is_ok())
        }
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn read(file: impl Read, archive: &Metadata) -> Option<Vec<Found>> {
    let mut lines = BufReader::new(file.take(MOST_BYTES)).lines();
    let head: Head = serde_json::from_str(&lines.next()?.ok()?).ok()?;
    if head != Head::of(archive, head.members)? {
        return None;
    }
    let mut found = Vec::new();
    for line in lines {
        let (name, offset, size, problem): Line = serde_json::from_str(&line.ok()?).ok()?;
        let name = PathBuf::from(name);
        // It lies where others may write.
        let is_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || offset.checked_add(size)? > archive.len() {
            return None;
        }
        found.push(Found { name, offset, size, bytes: None, problem });
    }
    (found.len() == head.members).then_some(found)
}

/// The index beside an archive.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".index");
    path.with_file_name(name)
}

fn name_in_cache(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("archive-{hash}.index"))
}
