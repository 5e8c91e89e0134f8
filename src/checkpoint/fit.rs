//! What of a checkpoint a network for given classes can start from.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Checkpoint, HostTensor};
use crate::error::{Error, Result};
use crate::nn::arch::Arch;

/// What becomes of a checkpoint's classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPolicy {
    /// Keep it when its class list (or, without one, its size) matches the data.
    Auto,
    /// Keep it; an error when its size does not match.
    Keep,
    /// Start from a new one.
    Reset,
}

/// What was taken from a checkpoint and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// How many tensors the network starts from.
    pub loaded: usize,
    /// Tensors the network initialises itself although the checkpoint may have them.
    pub reset: Vec<String>,
    /// Why they were reset.
    pub reason: Option<String>,
    /// Tensors the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors the network has no place for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than the network's.
    pub mis_shaped: Vec<MisShaped>,
}

/// A tensor of another shape than the network's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MisShaped {
    /// The tensor.
    pub name: String,
    /// Its shape in the checkpoint.
    pub found: Vec<usize>,
    /// Its shape in the network.
    pub expected: Vec<usize>,
}

impl Checkpoint {
    /// The tensors a network of `arch` for `classes` starts from, by torchvision's names. Those of
    /// the classifier are left out when it is reset; the network then initialises them.
    ///
    /// # Errors
    /// [`Error::Usage`] when the checkpoint holds another network, or when [`HeadPolicy::Keep`]
    /// meets a classifier of another size or none.
    pub fn fit(
        &self,
        arch: &Arch,
        classes: &[String],
        head: HeadPolicy,
    ) -> Result<(BTreeMap<&str, &HostTensor>, LoadReport)> {
        if *arch != self.arch {
            return Err(Error::Usage(format!(
                "the weights are a {}, not a {arch}; leave --arch out or choose other weights",
                self.arch
            )));
        }
        let reason = self.reason_to_reset(classes, head)?;
        let mut report = LoadReport {
            missing: self.missing.clone(),
            unexpected: self.unexpected.clone(),
            ..LoadReport::default()
        };
        let mut tensors: BTreeMap<_, _> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        if reason.is_some() {
            for entry in arch.head_entries(classes.len()) {
                if let Some(tensor) = tensors.remove(entry.name.as_str())
                    && tensor.shape != entry.shape
                {
                    report.mis_shaped.push(MisShaped {
                        name: entry.name.clone(),
                        found: tensor.shape.clone(),
                        expected: entry.shape,
                    });
                }
                report.reset.push(entry.name);
            }
        }
        report.reason = reason;
        report.loaded =
            tensors.keys().filter(|name| !self.missing.iter().any(|m| m == *name)).count();
        Ok((tensors, report))
    }

    fn reason_to_reset(&self, classes: &[String], head: HeadPolicy) -> Result<Option<String>> {
        let sizes =
            |outputs| format!("{outputs} classes in the checkpoint, {} in the data", classes.len());
        let why = match (self.num_classes(), &self.meta.classes) {
            (None, _) => Some("the checkpoint has no classifier".into()),
            (Some(outputs), _) if outputs != classes.len() => Some(sizes(outputs)),
            _ if head == HeadPolicy::Keep => None,
            (_, Some(names)) if names != classes => {
                Some("the checkpoint's classes have other names than the data's".into())
            }
            _ => None,
        };
        match (head, why) {
            (HeadPolicy::Reset, why) => Ok(why.or_else(|| Some("as asked for".into()))),
            (HeadPolicy::Keep, Some(why)) => {
                Err(Error::Usage(format!("--head keep: {why}; use --head auto or reset")))
            }
            (_, why) => Ok(why),
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded)?;
        if !self.reset.is_empty() {
            write!(f, "\nreset: {}", list(&self.reset))?;
            if let Some(reason) = &self.reason {
                write!(f, " ({reason})")?;
            }
        }
        if !self.missing.is_empty() {
            write!(f, "\nmissing: {}", list(&self.missing))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "\nunexpected, ignored: {}", list(&self.unexpected))?;
        }
        if !self.mis_shaped.is_empty() {
            write!(f, "\nof another shape: {}", list(&self.mis_shaped))?;
        }
        Ok(())
    }
}

impl fmt::Display for MisShaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} where {:?} is needed", self.name, self.found, self.expected)
    }
}

/// The first few of `items`, and how many more there are.
pub(super) fn list<T: fmt::Display>(items: &[T]) -> String {
    list_by(", ", items)
}

/// [`list`] with another separator.
pub(super) fn list_by<T: fmt::Display>(separator: &str, items: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = items.iter().take(SHOWN).map(T::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(separator),
        more => format!("{} and {more} more", shown.join(separator)),
    }
}
