//! What options call the library's choices.

use clap::ValueEnum;
use clap::builder::{PossibleValue, RangedU64ValueParser};

use crate::checkpoint::{Dtype, HeadPolicy};
use crate::data::{Augment, AutoAugment, MAX_WORKERS};
use crate::nn::BnPolicy;

/// What `--workers` takes.
pub fn workers() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(..=MAX_WORKERS as u64)
}

impl ValueEnum for Dtype {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::F32, Self::F16, Self::Bf16]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }))
    }
}

impl ValueEnum for HeadPolicy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Keep, Self::Reset]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto")
                .help("Keep it when its class list (or, without one, its size) matches the data"),
            Self::Keep => PossibleValue::new("keep").help("Keep it; it must be of the data's size"),
            Self::Reset => PossibleValue::new("reset").help("Start from a new one"),
        })
    }
}

impl ValueEnum for BnPolicy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Train, Self::Frozen]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Train => PossibleValue::new("train")
                .help("Normalise by the batch's statistics and update the running ones"),
            Self::Frozen => PossibleValue::new("frozen")
                .help("Normalise by the running statistics and leave them alone"),
        })
    }
}

impl ValueEnum for Augment {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::None, Self::Light, Self::Strong]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::None => PossibleValue::new("none").help("Not at all"),
            Self::Light => PossibleValue::new("light").help("Random crops and flips"),
            Self::Strong => PossibleValue::new("strong").help("Also rotation, colours and erasing"),
        })
    }
}

impl ValueEnum for AutoAugment {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Ra, Self::Ta]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Ra => PossibleValue::new("ra").help("RandAugment: two operations of magnitude 9"),
            Self::Ta => {
                PossibleValue::new("ta").help("TrivialAugmentWide: one operation of any magnitude")
            }
        })
    }
}
