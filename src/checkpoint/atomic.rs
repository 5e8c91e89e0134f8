//! Files that are either there, complete, or not there.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// What the names of temporary files begin with.
const TEMPORARY: &str = ".wgrad-";

/// Whether this is a file that a killed process was writing.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
}

/// Writes the file at `path` through a temporary file in the same folder that takes its place only
/// once `fill` has succeeded and the bytes are on the disk. On any error, a full disk included, the
/// temporary file is removed and what was at `path` stays as it was.
///
/// # Errors
/// [`Error::Io`] with the path and the system's reason.
pub fn write_atomically(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    attempt(path, fill).map_err(Error::io(path))
}

/// [`write_atomically`] with what the file at `from` holds.
///
/// # Errors
/// [`Error::Io`] with the path of `to` and the system's reason.
pub fn copy_atomically(from: &Path, to: &Path) -> Result<()> {
    // Between the files themselves, which many systems can do without moving a byte.
    write_atomically(to, |file| io::copy(&mut File::open(from)?, file.get_mut()).map(drop))
}

/// Checks, before the work whose outcome goes to `path`, that [`write_atomically`] can write there.
///
/// # Errors
/// [`Error::Data`] with the system's reason.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let created = match path.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => temporary_beside(path),
    };
    created.map(drop).map_err(|error| {
        let what =
            format!("cannot be written: {error}; name a file in a folder that you can write to");
        Error::data(path, what)
    })
}

fn attempt(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A temporary file in the folder of `path`; it goes when dropped.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The system's reason alone: the name of a temporary file tells nobody anything.
    let mut reason = None;
    // Not private, as temporary files are by default: this one becomes the user's, under their umask.
    let create =
        |path: &Path| File::create_new(path).inspect_err(|error| reason = error.raw_os_error());
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).make_in(folder, create);
    temporary.map_err(|error| reason.map_or(error, io::Error::from_raw_os_error))
}
