//! One labelled image, wherever its bytes are.

use std::borrow::Cow;
use std::path::PathBuf;

use image::RgbImage;

use super::archive::Member;
use super::decode::{probe, read_rgb, rgb_from};
use crate::error::{Error, Result};

/// An image file and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The image file; in an archive, where it would be if that were unpacked into the folder that
    /// holds it, or in place of a single archive.
    pub path: PathBuf,
    /// The class's index.
    pub label: u32,
    /// The file in an archive; none for one of its own.
    pub member: Option<Member>,
}

impl Item {
    /// An image in a file of its own.
    pub fn file(path: impl Into<PathBuf>, label: u32) -> Self {
        Self { path: path.into(), label, member: None }
    }

    /// How long the image file is, now.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that has gone.
    pub fn bytes(&self) -> Result<u64> {
        match &self.member {
            None => Ok(self.path.metadata().map_err(Error::io(&self.path))?.len()),
            Some(member) => Ok(member.size()),
        }
    }

    /// The image file's bytes.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn read(&self) -> Result<Cow<'_, [u8]>> {
        let bytes = match &self.member {
            None => std::fs::read(&self.path).map(Cow::Owned),
            Some(member) => member.read(u64::MAX),
        };
        bytes.map_err(Error::io(&self.path))
    }

    /// The pixels, as [`super::decode`] has them, or the bare reason why there are none.
    pub(super) fn rgb(&self) -> Result<RgbImage, String> {
        let Some(member) = &self.member else { return read_rgb(&self.path) };
        let bytes = member.read(u64::MAX).map_err(|error| format!("cannot be read: {error}"));
        bytes.and_then(|bytes| rgb_from(&bytes)).map_err(|reason| member.says(&reason))
    }

    /// Why this cannot be an image, as far as its header tells.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.member {
            None => probe(&self.path).err(),
            Some(member) => member.problem(),
        }
    }
}
