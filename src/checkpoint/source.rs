//! Where starting weights come from: the value of `--weights`.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::hub::{Hub, Progress};
use crate::error::{Error, Result};

/// The bundled weights, from the root of the repository.
const BUNDLED: &str = "weights/resnet18-tiny-imagenet.safetensors";

/// What `imagenet` stands for: torchvision's own ImageNet weights, as timm publishes them.
const IMAGENET: &str = "timm/resnet18.tv_in1k";

/// The file a repository on the Hugging Face Hub keeps its weights in.
const HUB_FILE: &str = "model.safetensors";

/// What a run's folder stands for: the first of these that is in it.
const OF_RUN: [&str; 3] =
    ["weights/best.safetensors", "weights/fused.safetensors", "ensemble.json"];

const FORMS: &str = "FILE, a run's folder, bundled, imagenet or hf:OWNER/NAME[/FILE]";

/// Where starting weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: random initialisation.
    None,
    /// The weights that come with the program.
    Bundled,
    /// A file of a repository on the Hugging Face Hub.
    Hub {
        /// The repository, as in `timm/resnet18.tv_in1k`.
        repo: String,
        /// The file in it.
        file: String,
    },
    /// A file on this machine, or a run's folder.
    File(PathBuf),
}

impl Source {
    /// Reads the value of `--weights`: `FILE`, `bundled`, `imagenet`, `hf:OWNER/NAME[/FILE]` or
    /// `none`.
    ///
    /// # Errors
    /// [`Error::Usage`] with the known forms.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" => Err(Error::Usage(format!("nothing is named; give {FORMS}"))),
            "none" => Ok(Self::None),
            "bundled" => Ok(Self::Bundled),
            "imagenet" => Ok(Self::Hub { repo: IMAGENET.into(), file: HUB_FILE.into() }),
            _ => match text.strip_prefix("hf:") {
                Some(address) => Self::parse_hub(address),
                None => Ok(Self::File(text.into())),
            },
        }
    }

    fn parse_hub(address: &str) -> Result<Self> {
        let mut parts = address.splitn(3, '/');
        let repo = [parts.next(), parts.next()].map(Option::unwrap_or_default);
        let file = parts.next().unwrap_or(HUB_FILE);
        if repo.into_iter().chain(file.split('/')).all(is_plain) {
            return Ok(Self::Hub { repo: repo.join("/"), file: file.into() });
        }
        Err(Error::Usage(format!(
            "hf:{address}: expected hf:OWNER/NAME or hf:OWNER/NAME/FILE, as in hf:{IMAGENET}"
        )))
    }

    /// The file to read, downloaded first if need be (`progress` follows that); none for
    /// [`Source::None`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is no such file, or when it can be neither downloaded nor
    /// found in the cache.
    pub fn resolve(&self, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>> {
        match self {
            Self::None => Ok(None),
            Self::Bundled => bundled().map(Some),
            Self::Hub { repo, file } => Hub::from_env().fetch(repo, file, progress).map(Some),
            Self::File(path) if path.exists() => {
                let of_run = OF_RUN.map(|file| path.join(file)).into_iter().find(|it| it.is_file());
                Ok(Some(of_run.unwrap_or_else(|| path.clone())))
            }
            Self::File(path) => {
                Err(Error::checkpoint(path, format!("there is no such file; give {FORMS}")))
            }
        }
    }
}

/// A path component that can go into an address and into the cache as it is.
fn is_plain(component: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !component.is_empty() && component.chars().all(allowed) && !component.starts_with("..")
}

/// Looks from the current folder, from the executable upwards (an unpacked release, `target/`), and
/// where the program was built.
fn bundled() -> Result<PathBuf> {
    let executable = env::current_exe().unwrap_or_default();
    let folders = [Path::new("")]
        .into_iter()
        .chain(executable.ancestors().skip(1))
        .chain([Path::new(env!("CARGO_MANIFEST_DIR"))]);
    let found = folders.map(|folder| folder.join(BUNDLED)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::checkpoint(
            BUNDLED,
            "the bundled weights are neither here nor beside the program; run wgrad from its \
             repository, or give other weights (imagenet, or a file)",
        )
    })
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Bundled => f.write_str("bundled"),
            Self::Hub { repo, file } => write!(f, "hf:{repo}/{file}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_parses() {
        let hub = |repo: &str, file: &str| Source::Hub { repo: repo.into(), file: file.into() };
        for (text, source) in [
            ("none", Source::None),
            ("bundled", Source::Bundled),
            ("imagenet", hub("timm/resnet18.tv_in1k", "model.safetensors")),
            ("hf:microsoft/resnet-50", hub("microsoft/resnet-50", "model.safetensors")),
            ("hf:a/b/c/d.safetensors", hub("a/b", "c/d.safetensors")),
            ("runs/best.safetensors", Source::File("runs/best.safetensors".into())),
        ] {
            assert_eq!(Source::parse(text).unwrap(), source, "{text}");
            assert_eq!(Source::parse(&source.to_string()).unwrap(), source, "{source}");
        }
    }

    #[test]
    fn malformed_addresses_are_wrong_usage() {
        for text in
            ["", "hf:", "hf:resnet", "hf:a/", "hf:a/b/", "hf:a/../c", "hf:a/b/../c", "hf:a/b c"]
        {
            assert!(matches!(Source::parse(text), Err(Error::Usage(_))), "{text:?}");
        }
    }

    #[test]
    fn a_mistyped_word_says_what_there_is() {
        let error = Source::parse("imagnet").unwrap().resolve(&mut |_| {}).unwrap_err().to_string();
        assert!(error.starts_with("imagnet:") && error.contains("bundled, imagenet"), "{error}");
    }
}
