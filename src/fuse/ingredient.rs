//! The networks that go into a fusion: read, named, and brought into line.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::average::{Tensors, distance};
use crate::checkpoint::{Checkpoint, HostTensor, file_sha256};
use crate::error::{Context, Error, Result};
use crate::train::read_finite;

/// Beyond this [`distance`] two networks are taken for strangers: their cosine is below a half, where
/// fine-tunes of one network stay above 0.9.
const STRANGERS: f64 = 0.7;

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

    /// Its name in tables: the file without what all names have in common would be shorter, but a
    /// path can be pasted.
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

    /// Brings the classifier's rows into the order of `classes`, by name; a network without names
    /// needs as many outputs.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the classes that do not agree with those of `whose`.
    pub fn order_classes(&mut self, classes: &[String], whose: &dyn Display) -> Result<()> {
        self.check_classes(classes, whose)?;
        let own = self.checkpoint.meta.classes.replace(classes.to_vec());
        if let Some(own) = own.filter(|own| own != classes) {
            let of = |class: &String| own.iter().position(|name| name == class).unwrap_or_default();
            let rows: Vec<usize> = classes.iter().map(of).collect();
            for name in ["fc.weight", "fc.bias"] {
                if let Some(tensor) = self.checkpoint.tensors.get_mut(name) {
                    *tensor = select_rows(tensor, &rows);
                }
            }
        }
        Ok(())
    }

    /// Fails unless its classifier is one for `classes`, in whatever order.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the classes that do not agree with those of `whose`.
    pub fn check_classes(&self, classes: &[String], whose: &dyn Display) -> Result<()> {
        let Some(outputs) = self.checkpoint.num_classes() else {
            return Err(self.error("it has no classifier (fc); fine-tune it first"));
        };
        if fits(&self.checkpoint, classes) {
            return Ok(());
        }
        Err(self.error(match &self.checkpoint.meta.classes {
            Some(own) => {
                format!("has other classes than {whose}: {}", differences(own, classes))
            }
            None => {
                format!("has {outputs} classes without names, but {whose} has {}", classes.len())
            }
        }))
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

/// Whether a checkpoint's classifier is one for these classes.
pub fn fits(checkpoint: &Checkpoint, classes: &[String]) -> bool {
    match (&checkpoint.meta.classes, checkpoint.num_classes()) {
        (Some(own), _) => {
            own.len() == classes.len() && classes.iter().all(|class| own.contains(class))
        }
        (None, outputs) => outputs == Some(classes.len()),
    }
}

fn select_rows(tensor: &HostTensor, rows: &[usize]) -> HostTensor {
    let data = tensor.as_f32().unwrap_or_default();
    let width = data.len() / tensor.shape[0].max(1);
    let row = |&row: &usize| &data[row * width..(row + 1) * width];
    HostTensor::f32(tensor.shape.clone(), rows.iter().flat_map(row).copied().collect())
}

/// Which names only one of two lists has.
fn differences(own: &[String], classes: &[String]) -> String {
    const SHOWN: usize = 5;
    let only = |of: &[String], not: &[String]| {
        let mut names: Vec<&str> =
            of.iter().filter(|name| !not.contains(name)).map(String::as_str).collect();
        let more = if names.len() > SHOWN { ", …" } else { "" };
        names.truncate(SHOWN);
        names.join(", ") + more
    };
    let (surplus, missing) = (only(own, classes), only(classes, own));
    match (surplus.is_empty(), missing.is_empty()) {
        (false, false) => format!("{surplus} instead of {missing}"),
        (false, true) => format!("also {surplus}"),
        (true, false) => format!("it lacks {missing}"),
        (true, true) => "some of its names come twice".into(),
    }
}
