//! Files from the Hugging Face Hub, through the cache that its Python libraries use.
//!
//! The `hf-hub` crate speaks the protocol, resumes and fills the cache. Added here: the same
//! environment variables as in Python, the checksum, a few attempts, and messages that help.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// A connection that breaks is resumed this often before giving up.
const ATTEMPTS: usize = 3;

/// The Hub as the environment configures it.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes there, those of an earlier attempt included.
    pub downloaded: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` as Python's
    /// `huggingface_hub` does.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// [`Hub::from_env`] with the variables from `var`.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        });
        let saved_token = || fs::read_to_string(home.join("token")).ok();
        let token = var("HF_TOKEN").or_else(saved_token).map(|token| token.trim().to_owned());
        let yes = |value: String| {
            matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
        };
        Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()),
            cache: var("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home.join("hub")),
            token: token.filter(|token| !token.is_empty()),
            offline: var("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// The local path of `file` of the model repository `repo`, from the cache if it is there,
    /// else downloaded into it. Either way its SHA-256 is checked where the Hub tells it, which it
    /// does for every large file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with what to do when the file is not cached and cannot be downloaded,
    /// or when the checksum differs (the file is then removed).
    pub fn fetch(
        &self,
        repo: &str,
        file: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        let address = format!("hf:{repo}/{file}");
        let refuse = |what: String| Error::checkpoint(&address, what);
        let cached = Cache::new(self.cache.clone()).repo(Repo::model(repo.into()));
        if let Some(path) = cached.get(file) {
            verify(&path, &blob_name(&path)).map_err(refuse)?;
            return Ok(path);
        }
        if self.offline {
            return Err(refuse(format!(
                "is not in the cache ({}) and HF_HUB_OFFLINE is set; run once with network, copy \
                 the file here and name it, or start from --weights bundled",
                self.cache.display()
            )));
        }
        let api = self.api().map_err(|error| refuse(self.explain(&error)))?;
        let remote = api.repo(Repo::model(repo.into()));
        let about =
            api.metadata(&remote.url(file)).map_err(|error| refuse(self.explain(&error)))?;
        let path = download(&remote, &cached, file, &about, progress)
            .map_err(|error| refuse(self.explain(&error)))?;
        verify(&path, about.etag()).map_err(refuse)?;
        Ok(path)
    }

    fn api(&self) -> std::result::Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.token.clone())
            .build()
    }

    /// What a failure means and what to do about it.
    fn explain(&self, error: &ApiError) -> String {
        let remedy = match status(error) {
            Some(401 | 403) => {
                "the repository does not exist, is private or is gated; check the name, or set \
                 HF_TOKEN"
            }
            Some(404) => "there is no such repository or file; check the name",
            Some(_) => "the server is in trouble; try again later",
            None if matches!(error, ApiError::LockAcquisition(_)) => {
                "another program is downloading it; wait for that one"
            }
            None if matches!(error, ApiError::IoError(_)) => {
                "check the connection and the space and permissions of the cache; what has \
                 arrived is kept and resumed"
            }
            None => {
                "check the connection; without network, copy the file here and name it, or start \
                 from --weights bundled"
            }
        };
        format!(
            "cannot be fetched from {} into {}: {error}; {remedy}",
            self.endpoint,
            self.cache.display()
        )
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Downloads into the cache; every attempt goes on where the one before it stopped.
fn download(
    remote: &ApiRepo,
    cached: &CacheRepo,
    file: &str,
    about: &Metadata,
    progress: &mut dyn FnMut(Progress),
) -> std::result::Result<PathBuf, ApiError> {
    // Where hf-hub keeps what has arrived. A part that is as long as the whole was left by a
    // process that died before renaming it; asking for what follows it would only fail.
    let part = cached.blob_path(about.etag()).with_extension("part");
    if fs::metadata(&part).is_ok_and(|part| part.len() >= about.size() as u64) {
        fs::remove_file(&part)?;
    }
    let mut attempt = 1;
    loop {
        match remote.download_with_progress(file, Reporter::new(progress)) {
            Err(error) if attempt < ATTEMPTS && is_transient(&error) => attempt += 1,
            outcome => return outcome,
        }
    }
}

fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(_) => status(error).is_none_or(|status| status >= 500),
        ApiError::IoError(error) => !matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied
                | io::ErrorKind::StorageFull
                | io::ErrorKind::ReadOnlyFilesystem
        ),
        _ => false,
    }
}

/// Turns hf-hub's reports into [`Progress`].
struct Reporter<'a> {
    report: &'a mut dyn FnMut(Progress),
    now: Progress,
}

impl<'a> Reporter<'a> {
    fn new(report: &'a mut dyn FnMut(Progress)) -> Self {
        Self { report, now: Progress { downloaded: 0, total: 0 } }
    }
}

impl hf_hub::api::Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        self.now = Progress { downloaded: 0, total: size as u64 };
    }

    fn update(&mut self, size: usize) {
        self.now.downloaded += size as u64;
        (self.report)(self.now);
    }

    fn finish(&mut self) {}
}

/// The name of the blob behind a path in the cache, which for large files is their SHA-256.
fn blob_name(path: &Path) -> String {
    let blob = fs::canonicalize(path).unwrap_or_default();
    blob.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Compares the file's SHA-256 with its entity tag, where that is one, and removes a file that
/// differs, blob and link.
fn verify(path: &Path, etag: &str) -> std::result::Result<(), String> {
    if etag.len() != 64 || !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = sha256(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    let blob = fs::canonicalize(path);
    let removed = blob.and_then(fs::remove_file).and_then(|()| match path.is_symlink() {
        true => fs::remove_file(path),
        false => Ok(()),
    });
    let remedy = match removed {
        Ok(()) => "it has been removed: run again to download it anew".into(),
        Err(error) => format!("remove {} and run again ({error})", path.display()),
    };
    Err(format!("is damaged: its SHA-256 is {found}, the Hub says {etag}; {remedy}"))
}

/// The SHA-256 of the file at `path` in hexadecimal digits.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut hasher = Sha256::new();
    loop {
        let chunk = file.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(chunk);
        let read = chunk.len();
        file.consume(read);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
