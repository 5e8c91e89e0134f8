//! The strings in a checkpoint's header: classes, preprocessing, origin.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::nn::arch::Arch;

/// Mean of ImageNet's RGB channels, for pixels in 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of ImageNet's RGB channels, for pixels in 0 to 1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Larger inputs than any network is fed with; a header must not choose how much memory is used.
const MAX_IMAGE_SIZE: u32 = 8192;

const FORMAT: &str = "format";
/// What the network is.
pub(crate) const ARCH: &str = "wgrad.arch";
const CLASSES: &str = "wgrad.classes";
const IMAGE_SIZE: &str = "wgrad.image_size";
const MEAN: &str = "wgrad.mean";
const STD: &str = "wgrad.std";
const PROVENANCE: &str = "wgrad.provenance";
const CLASS_IDS: &str = "class_ids";

/// What a checkpoint says about its network.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Name of each output, in order.
    pub classes: Option<Vec<String>>,
    /// Side of the square input in pixels.
    pub image_size: Option<u32>,
    /// Subtracted from RGB values in 0 to 1; ImageNet's unless the file says otherwise.
    pub mean: [f32; 3],
    /// What RGB values are then divided by; ImageNet's unless the file says otherwise.
    pub std: [f32; 3],
    /// Where the weights come from, free-form.
    pub provenance: Option<Value>,
    /// Every other string of the header, kept when the checkpoint is written again.
    pub extra: BTreeMap<String, String>,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            classes: None,
            image_size: None,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            provenance: None,
            extra: BTreeMap::new(),
        }
    }
}

impl Meta {
    /// Reads the strings of a header whose tensors are those of `arch`; errors name the key.
    pub(super) fn parse(
        mut strings: BTreeMap<String, String>,
        arch: &Arch,
    ) -> Result<Self, String> {
        strings.remove(FORMAT);
        if let Some(name) = strings.remove(ARCH)
            && name != arch.to_string()
        {
            return Err(format!("{ARCH} says {name:?}, but the tensors are those of {arch}"));
        }
        let meta = Self {
            classes: json(&mut strings, CLASSES)?,
            image_size: json(&mut strings, IMAGE_SIZE)?,
            mean: json(&mut strings, MEAN)?.unwrap_or(IMAGENET_MEAN),
            std: json(&mut strings, STD)?.unwrap_or(IMAGENET_STD),
            provenance: strings
                .remove(PROVENANCE)
                .map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text))),
            extra: strings,
        };
        meta.check()?;
        Ok(meta)
    }

    /// The strings to write for a network of `arch`.
    pub(crate) fn strings(&self, arch: &Arch) -> Result<BTreeMap<String, String>, String> {
        self.check()?;
        let mut strings = self.extra.clone();
        strings.insert(FORMAT.into(), "pt".into());
        strings.insert(ARCH.into(), arch.to_string());
        strings.insert(MEAN.into(), format!("{:?}", self.mean));
        strings.insert(STD.into(), format!("{:?}", self.std));
        if let Some(classes) = &self.classes {
            strings.insert(CLASSES.into(), Value::from(classes.clone()).to_string());
        }
        if let Some(size) = self.image_size {
            strings.insert(IMAGE_SIZE.into(), size.to_string());
        }
        if let Some(provenance) = &self.provenance {
            strings.insert(PROVENANCE.into(), provenance.to_string());
        }
        Ok(strings)
    }

    /// What the header's string `class_ids` says, which nothing holds to a number of outputs:
    /// [`Checkpoint::class_ids`](super::Checkpoint::class_ids) does.
    pub(super) fn class_ids(&self) -> Vec<String> {
        let ids = self.extra.get(CLASS_IDS).map_or("", String::as_str);
        ids.split_whitespace().map(str::to_owned).collect()
    }

    /// Says what else the outputs are called; nothing for no ids.
    pub fn set_class_ids(&mut self, ids: &[String]) {
        if ids.is_empty() {
            self.extra.remove(CLASS_IDS);
        } else {
            self.extra.insert(CLASS_IDS.into(), ids.join(" "));
        }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(size) = self.image_size
            && !(1..=MAX_IMAGE_SIZE).contains(&size)
        {
            return Err(format!("{IMAGE_SIZE} is {size}; it must be 1 to {MAX_IMAGE_SIZE}"));
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return Err(format!("{MEAN} is {:?}; it must be finite", self.mean));
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return Err(format!("{STD} is {:?}; it must be finite and above zero", self.std));
        }
        Ok(())
    }
}

/// Takes the JSON under `key` out of `strings`.
fn json<T: DeserializeOwned>(
    strings: &mut BTreeMap<String, String>,
    key: &str,
) -> Result<Option<T>, String> {
    let read = |text: String| {
        serde_json::from_str(&text).map_err(|error| format!("{key} cannot be read: {error}"))
    };
    strings.remove(key).map(read).transpose()
}
