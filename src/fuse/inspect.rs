//! What an ensemble holds, for `wgrad inspect`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ensemble::{Manifest, Member};
use super::score::Average;
use crate::checkpoint::{Inspection, describe, file_sha256};
use crate::error::Result;

/// Everything worth knowing about an ensemble.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EnsembleInspection {
    /// Its file.
    pub path: PathBuf,
    /// How answers are joined.
    pub average: Average,
    /// Side of the square input in pixels; none for the networks' own.
    pub image_size: Option<u32>,
    /// The networks, each of which counts as much as any other.
    pub members: Vec<MemberInspection>,
}

/// A network of an ensemble.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberInspection {
    /// Whether its file is another than when the ensemble was made.
    pub changed: bool,
    /// What its file holds.
    #[serde(flatten)]
    pub holds: Inspection,
}

/// Reads an ensemble's file and describes what it names.
///
/// # Errors
/// Those of reading the file, and those that it names.
pub fn describe_ensemble(path: &Path) -> Result<EnsembleInspection> {
    let Manifest { average, image_size, members } = Manifest::read(path)?;
    let describe_member = |member: &Member| {
        let holds = describe(&member.path)?;
        let changed = match &member.sha256 {
            Some(sha256) => *sha256 != file_sha256(&member.path)?,
            None => false,
        };
        Ok(MemberInspection { changed, holds })
    };
    let members = members.iter().map(describe_member).collect::<Result<_>>()?;
    Ok(EnsembleInspection { path: path.to_owned(), average, image_size, members })
}

impl fmt::Display for EnsembleInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, count) = (self.path.display(), self.members.len());
        let of = match self.average {
            Average::Probabilities => "probabilities",
            Average::Logits => "logits",
        };
        write!(f, "{path}: an ensemble of {count} networks, the mean of their {of}")?;
        if let Some(size) = self.image_size {
            write!(f, " at {size}×{size} px")?;
        }
        for MemberInspection { changed, holds } in &self.members {
            write!(f, "\n\n{holds:#}")?;
            if *changed {
                write!(f, "\nCHANGED        since the ensemble was made")?;
            }
        }
        Ok(())
    }
}
