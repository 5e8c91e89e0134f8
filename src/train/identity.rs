//! Whether a run that goes on is still the same: its images, and its options.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::console::shell_word;
use super::run_dir::RunDir;
use crate::data::{Dataset, Item};
use crate::error::{Error, Result};

/// What identifies the images of a run: those of each class in each split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(BTreeMap<String, Class>);

/// The images of a class in a split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Class {
    images: usize,
    bytes: u64,
    /// SHA-256 over paths below the data set's folder, and sizes.
    sha256: String,
}

impl Fingerprint {
    /// Of the images of a data set, by the sizes of their files as they are now.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that has gone.
    pub fn of(dataset: &Dataset) -> Result<Self> {
        let mut classes = BTreeMap::new();
        for (split, items) in [("train", &dataset.train), ("val", &dataset.val)] {
            for (label, name) in (0..).zip(&dataset.classes) {
                let of_class = items.iter().filter(|item| item.label == label);
                classes.insert(format!("{split}/{name}"), Class::of(&dataset.root, of_class)?);
            }
        }
        Ok(Self(classes))
    }

    /// Checks that the images are those that the run was begun with.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first class whose images are not.
    pub fn check(&self, begun_with: &Self) -> Result<()> {
        let names = self.0.keys().chain(begun_with.0.keys());
        for name in names {
            let (then, now) = (begun_with.0.get(name), self.0.get(name));
            if then == now {
                continue;
            }
            let count = |class: Option<&Class>| match class {
                Some(class) => format!("{} images of {} bytes", class.images, class.bytes),
                None => "none".into(),
            };
            let (then, now) = (count(then), count(now));
            let apart = match then == now {
                true => format!("{now} under other names"),
                false => format!("{now}, {then} before"),
            };
            return Err(Error::Usage(format!(
                "--resume: the images of {name} are not those that the run was begun with: {apart}; \
                 bring them back, or begin a new run"
            )));
        }
        Ok(())
    }
}

impl Class {
    fn of<'a>(root: &Path, items: impl Iterator<Item = &'a Item>) -> Result<Self> {
        let mut class = Self::default();
        let mut hash = Sha256::new();
        for item in items {
            let (path, bytes) = (&item.path, item.bytes()?);
            class.images += 1;
            class.bytes += bytes;
            hash.update(path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update(bytes.to_le_bytes());
        }
        class.sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(class)
    }
}

/// The command that goes on with what `name` began in a folder; none if nothing does.
pub fn command_to_resume(name: &str, folder: &Path) -> Option<String> {
    let command = match name {
        "finetune" | "pretrain" => name,
        "distill" => "fuse distill",
        _ => return None,
    };
    Some(format!("wgrad {command} --resume {}", shell_word(folder)))
}

/// Checks that what was begun in `folder`, with `args` as its `args.json`, can be gone on with by `name`.
///
/// # Errors
/// [`Error::Usage`] with what goes on with it, if anything does.
pub fn check_command(name: &str, args: &Value, folder: &Path) -> Result<()> {
    let begun = args["command"].as_str().unwrap_or_default();
    if begun == name {
        return Ok(());
    }
    let advice = match command_to_resume(begun, folder) {
        Some(command) => format!("`{command}` goes on"),
        None => "that cannot be gone on with, only done again".into(),
    };
    let folder = folder.display();
    Err(Error::Usage(format!(
        "--resume {folder}: it was begun by another command, {begun}; {advice}"
    )))
}

/// Checks that the options, as `args.json` has them, are those that the run in `folder` was begun with.
///
/// # Errors
/// [`Error::Usage`] naming the first that differs and is not among `may_change`.
pub fn check_options(
    now: &Value,
    begun_with: &Value,
    may_change: &[&str],
    folder: &RunDir,
) -> Result<()> {
    let (Value::Object(now), Value::Object(then)) = (now, begun_with) else {
        return Err(Error::Usage("--resume: args.json holds no options".into()));
    };
    // An option may be in one of them only: then the other had none.
    for name in now.keys().chain(then.keys()) {
        let [then, now] = [then, now].map(|options| options.get(name).unwrap_or(&Value::Null));
        if may_change.contains(&name.as_str()) || then == now {
            continue;
        }
        let option = name.replace('_', "-");
        let weights = match folder.last() {
            last if last.is_file() => format!(" from its weights, --weights {}", shell_word(&last)),
            _ => String::new(),
        };
        return Err(Error::Usage(format!(
            "--resume: the run was begun with another {option} ({then}, now {now}); leave the \
             option out, or begin a new run{weights}"
        )));
    }
    Ok(())
}
