//! The networks that go into a fusion: read, named, and brought into line.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::average::{Tensors, distance};
use crate::checkpoint::{Checkpoint, file_sha256};
use crate::error::{Context, Error, Result};
use crate::train::{DEFAULT_IMAGE_SIZE, read_finite};

/// Beyond this [`distance`] two networks are taken for strangers: their cosine is below a half, where
/// fine-tunes of one network stay above 0.9.
const STRANGERS: f64 = 0.7;

/// What to do about networks whose inputs are of different sizes.
pub const ONE_SIZE: &str = "give one --image-size for all";

/// Side of the square input, in pixels, of networks that are fused: `asked`, else what those that have a
/// size of their own agree on, else 224.
///
/// # Errors
/// [`Error::Usage`] with two sizes and with `advice` if they do not agree.
pub fn common_image_size(
    ingredients: &[Ingredient],
    asked: Option<u32>,
    advice: &str,
) -> Result<u32> {
    if let Some(size) = asked {
        return Ok(size);
    }
    let own = |one: &Ingredient| Some((one.checkpoint.meta.image_size?, one.name().to_string()));
    let mut sizes = ingredients.iter().filter_map(own);
    let Some((size, first)) = sizes.next() else { return Ok(DEFAULT_IMAGE_SIZE) };
    match sizes.find(|(other, _)| *other != size) {
        None => Ok(size),
        Some((other, second)) => Err(Error::Usage(format!(
            "the networks take inputs of {size} and {other} px ({first}, {second}); {advice}"
        ))),
    }
}

/// A checkpoint that is fused.
pub struct Ingredient {
    /// Its file.
    pub path: PathBuf,
    /// Of the file, in hexadecimal digits.
    pub sha256: String,
    /// What it holds.
    pub checkpoint: Checkpoint,
}

impl Ingredient {
    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    /// Those of [`read_finite`].
    pub fn read(path: &Path) -> Result<Self> {
        let doing = || format!("reading the network {}", path.display());
        Ok(Self {
            path: path.to_owned(),
            checkpoint: read_finite(path).context(doing)?,
            sha256: file_sha256(path).context(doing)?,
        })
    }

    /// The weights.
    pub fn tensors(&self) -> &Tensors {
        &self.checkpoint.tensors
    }

    /// Its name in messages.
    pub fn name(&self) -> impl Display {
        self.path.display()
    }

    /// An error about this file.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::checkpoint(&self.path, what)
    }

    /// Fails unless the network is `first`'s, read in the same way, so that the two can be averaged.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming both files.
    pub fn check_same_network(&self, first: &Self) -> Result<()> {
        let (ours, theirs) = (&self.checkpoint, &first.checkpoint);
        if ours.arch != theirs.arch {
            return Err(self.error(format!(
                "is a {}, but {} is a {}; weights of different networks cannot be averaged: join \
                 their answers with `wgrad fuse ensemble`, or teach one with `wgrad fuse distill`",
                ours.arch,
                first.path.display(),
                theirs.arch
            )));
        }
        if (ours.meta.mean, ours.meta.std) != (theirs.meta.mean, theirs.meta.std) {
            return Err(self.error(format!(
                "normalises its input by mean {:?} and std {:?}, but {} by {:?} and {:?}; their \
                 weights mean different things",
                ours.meta.mean,
                ours.meta.std,
                first.path.display(),
                theirs.meta.mean,
                theirs.meta.std
            )));
        }
        Ok(())
    }

    /// Brings the classifier's rows into the order of `classes`, by name.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the classes that do not agree with those of `whose`.
    pub fn order_classes(&mut self, classes: &[String], whose: &dyn Display) -> Result<()> {
        let ordered = self.checkpoint.order_classes(classes, whose);
        ordered.map_err(|what| self.error(what))
    }

    /// Fails unless its classifier is one for `classes`, in whatever order.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the classes that do not agree with those of `whose`.
    pub fn check_classes(&self, classes: &[String], whose: &dyn Display) -> Result<()> {
        self.checkpoint.check_is_for(classes, whose).map_err(|what| self.error(what))
    }

    /// Why its weights and `other`'s may have nothing to do with each other, if so.
    pub fn stranger(&self, other: &Self) -> Option<String> {
        let distance = distance(self.tensors(), other.tensors());
        (distance > STRANGERS).then(|| {
            format!(
                "{} and {} seem to have no common ancestor (their weights are {distance:.2} apart; \
                 0 are the same, 1 strangers): an average of such networks is seldom a network",
                self.name(),
                other.name()
            )
        })
    }
}
