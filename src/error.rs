//! The one error type. Variants follow where an error comes from; texts carry the file, tensor or
//! shape concerned and what to do about it.

use std::path::{Path, PathBuf};

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by origin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was being done when `source` happened; each level is a line of the printed chain.
    #[error("{doing}")]
    Context {
        /// The activity, as in "loading the weights".
        doing: String,
        /// What went wrong.
        #[source]
        source: Box<Error>,
    },
    /// The command line or a configuration makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The user asked to stop; exit code 130.
    #[error("interrupted")]
    Interrupted,
    /// No usable adapter, or the adapter refused something.
    #[error("{0}")]
    Gpu(String),
    /// The adapter ran out of memory.
    #[error("the adapter ran out of memory {0}; lower --batch-size or --image-size")]
    OutOfMemory(String),
    /// The shapes given to an operation do not fit together.
    #[error("{op}: {what}")]
    Shape {
        /// The operation, by its registry name.
        op: &'static str,
        /// Which shapes, and what was expected.
        what: String,
    },
    /// A checkpoint cannot be read or does not fit the network.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// An image or a folder of images cannot be used.
    #[error("{}: {what}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Training cannot go on: the loss or the weights are no longer finite.
    #[error("{0}")]
    Diverged(String),
}

impl Error {
    /// An [`Error::Shape`] for operation `op`.
    pub fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }

    /// An [`Error::Checkpoint`] for the file at `path`.
    pub fn checkpoint(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// An [`Error::Data`] for the file or folder at `path`.
    pub fn data(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// An [`Error::Io`] for the file at `path`; made for `map_err(Error::io(path))`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// What was being done, down to what went wrong, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some texts already end with their cause's.
            if !text.ends_with(&cause_text) {
                text += ": ";
                text += &cause_text;
            }
            source = cause.source();
        }
        text
    }

    /// The process exit code: 2 for wrong usage, 130 for an interruption, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Context { source, .. } => source.exit_code(),
            Self::Usage(_) => 2,
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// Wraps an error in [`Error::Context`] with the text that `doing` makes.
    fn context<D: Into<String>>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<D: Into<String>>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|source| Error::Context { doing: doing().into(), source: Box::new(source) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn context_keeps_the_cause_and_its_exit_code() {
        let error = Err::<(), _>(Error::Usage("no such option".into()))
            .context(|| "reading the command line")
            .unwrap_err();
        assert_eq!(error.to_string(), "reading the command line");
        assert_eq!(error.source().unwrap().to_string(), "no such option");
        assert_eq!(error.exit_code(), 2);
    }
}
