//! How far a number may be from PyTorch's in f64, and whether it is.
//!
//! The fixtures say how far PyTorch's own f32 was off. Its few ways of summing do not exhaust the
//! right ones, so that is taken `FACTOR` times, with a floor of `FLOOR` of the tensor's size.
//! None of this was fitted to what this program computes: both are the fixtures' README's.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::verify::formulas::sample_indices;

const FACTOR: f64 = 4.0;
const FLOOR: f64 = 1e-6;

/// What is compared of a tensor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Its length.
    pub norm: f64,
    sum: f64,
    /// The largest absolute value.
    pub max: f64,
    /// Absent where only the three others are stored.
    #[serde(default)]
    at: Vec<f64>,
    f32: Deviation,
}

/// How far PyTorch's f32 was off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deviation {
    norm: f64,
    sum: f64,
    max: f64,
    #[serde(default)]
    at: f64,
    /// Of any element, and of all in the mean square: what a digest cannot compare.
    #[serde(default, rename = "most")]
    _most: f64,
    #[serde(default, rename = "rms")]
    _rms: f64,
}

/// Numbers that share an allowance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// PyTorch's, in f64.
    pub values: Vec<f64>,
    /// How far PyTorch's f32 was off.
    pub f32: f64,
}

/// The largest and the length of the weights a tensor of updates belongs to: an update is known to
/// the rounding of its weights, once a step.
#[derive(Clone, Copy)]
pub struct Rounded {
    /// Steps since the start.
    pub steps: usize,
    /// The largest absolute weight.
    pub max: f64,
    /// Length of the weights.
    pub norm: f64,
}

/// Everything compared so far.
#[derive(Default)]
pub struct Comparison {
    numbers: Vec<Number>,
}

/// A number and what it should be.
#[derive(Clone, Debug)]
pub struct Number {
    /// Which quantity: `losses`, `gradients`, …
    pub kind: &'static str,
    /// Which tensor, or the place in a series.
    pub what: String,
    /// Which part of a tensor's digest.
    pub part: String,
    /// This program's.
    pub found: f64,
    /// PyTorch's.
    pub expected: f64,
    /// How far off it may be.
    pub allowance: f64,
}

impl Number {
    /// The error as a share of the allowance.
    pub fn share(&self) -> f64 {
        match (self.found - self.expected).abs() {
            0.0 => 0.0,
            error if error.is_nan() => f64::INFINITY,
            error => error / self.allowance,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, what, part, found, expected, allowance } = self;
        let share = self.share();
        write!(
            f,
            "{kind} {what} {part}: {found:e}, PyTorch {expected:e} ± {allowance:.1e} ({share:.2} of it)"
        )
    }
}

impl Comparison {
    /// What was compared, in order.
    pub fn numbers(&self) -> &[Number] {
        &self.numbers
    }

    /// Numbers whose deviation is stated as a part of each.
    pub fn relative(&mut self, kind: &'static str, found: &[f64], expected: &Series) {
        self.series(kind, found, expected, |value| (FACTOR * expected.f32 + FLOOR) * value.abs());
    }

    /// Numbers whose deviation is stated as it is, with a floor by the largest of them.
    pub fn absolute(&mut self, kind: &'static str, found: &[f32], expected: &Series) {
        let largest = expected.values.iter().fold(0.0, |m: f64, value| m.max(value.abs()));
        let found: Vec<f64> = found.iter().map(|&value| value.into()).collect();
        self.series(kind, &found, expected, |_| FACTOR * expected.f32 + FLOOR * largest);
    }

    fn series(
        &mut self,
        kind: &'static str,
        found: &[f64],
        expected: &Series,
        allow: impl Fn(f64) -> f64,
    ) {
        self.exact(kind, "how many", found.len() as f64, expected.values.len() as f64);
        for (index, (&found, &expected)) in found.iter().zip(&expected.values).enumerate() {
            let (what, allowance) = (index.to_string(), allow(expected));
            self.numbers.push(Number {
                kind,
                what,
                part: String::new(),
                found,
                expected,
                allowance,
            });
        }
    }

    /// A number that has to be met exactly.
    pub fn exact(&mut self, kind: &'static str, what: &str, found: f64, expected: f64) {
        let (what, part) = (what.to_owned(), String::new());
        self.numbers.push(Number { kind, what, part, found, expected, allowance: 0.0 });
    }

    /// A tensor called `what`; `rounded` if it is one of updates or of updated weights.
    pub fn tensor(
        &mut self,
        kind: &'static str,
        what: &str,
        found: impl ExactSizeIterator<Item = f64> + Clone,
        expected: &Digest,
        rounded: Option<Rounded>,
    ) {
        let length = found.len() as f64;
        let sum: f64 = found.clone().sum();
        let norm = found.clone().map(|x| x * x).sum::<f64>().sqrt();
        let max = found.clone().fold(0.0, |m: f64, x| if x.is_nan() { x } else { m.max(x.abs()) });
        // One unit in the last place of the weights a step.
        let unit = |of: fn(&Rounded) -> f64| {
            rounded.as_ref().map_or(0.0, |r| r.steps as f64 * 2f64.powi(-23) * of(r))
        };
        let (of_each, of_norm) = (unit(|r| r.max), unit(|r| r.norm));
        let Digest { f32, .. } = expected;
        let allowance = |deviation: f64, floor: f64| FACTOR * deviation + floor;
        let for_each = FLOOR * expected.max + of_each;
        let for_norm = FLOOR * expected.norm + of_norm;
        let mut number = |part: String, found, expected, allowance| {
            let what = what.to_owned();
            self.numbers.push(Number { kind, what, part, found, expected, allowance });
        };
        number("norm".into(), norm, expected.norm, allowance(f32.norm, for_norm));
        number("sum".into(), sum, expected.sum, allowance(f32.sum, for_norm * length.sqrt()));
        number("max".into(), max, expected.max, allowance(f32.max, for_each));
        if !expected.at.is_empty() {
            let all: Vec<f64> = found.collect();
            for (index, &value) in sample_indices(all.len()).zip(&expected.at) {
                number(format!("[{index}]"), all[index], value, allowance(f32.at, for_each));
            }
        }
    }

    /// The largest share of an allowance that was used up.
    pub fn worst(&self) -> f64 {
        self.numbers.iter().map(Number::share).fold(0.0, f64::max)
    }

    /// The largest share of each kind of quantity.
    pub fn summary(&self) -> String {
        let mut kinds = BTreeMap::<&str, f64>::new();
        for number in &self.numbers {
            let share = kinds.entry(number.kind).or_default();
            *share = share.max(number.share());
        }
        let kinds: Vec<_> =
            kinds.iter().map(|(kind, share)| format!("{kind} {share:.2}")).collect();
        kinds.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_fails_when_it_should() {
        let deviation =
            || Deviation { norm: 1e-7, sum: 1e-7, max: 1e-7, at: 1e-7, _most: 0.0, _rms: 0.0 };
        let values = [3.0, -4.0, 0.5];
        let at = sample_indices(3).map(|index| values[index]).collect();
        let expected = Digest { norm: 25.25f64.sqrt(), sum: -0.5, max: 4.0, at, f32: deviation() };
        let worst = |values: [f64; 3], rounded| {
            let mut comparison = Comparison::default();
            comparison.tensor("gradients", "t", values.into_iter(), &expected, rounded);
            comparison.worst()
        };
        assert!(worst(values, None) < 0.01);
        let close = worst([3.0 + 2e-6, -4.0, 0.5], None);
        assert!(close > 0.2 && close < 1.0, "{close}");
        for wrong in [[3.0 + 2e-5, -4.0, 0.5], [-3.0, -4.0, 0.5], [3.0, -4.0, f64::NAN]] {
            assert!(worst(wrong, None) > 1.0, "{wrong:?}");
        }
        let rounded = Rounded { steps: 10, max: 100.0, norm: 100.0 };
        assert!(worst([3.0 + 2e-5, -4.0, 0.5], Some(rounded)) < 1.0);
        assert!(worst([3.0 + 1e-3, -4.0, 0.5], Some(rounded)) > 1.0);

        let series = Series { values: vec![2.0, -1.0], f32: 1e-7 };
        let mut comparison = Comparison::default();
        comparison.relative("losses", &[2.0, -1.0], &series);
        comparison.absolute("logits", &[2.0, -1.0], &series);
        assert_eq!(comparison.worst(), 0.0);
        comparison.relative("losses", &[2.0, -1.0 + 1e-5], &series);
        assert!(comparison.worst() > 1.0);
        let mut comparison = Comparison::default();
        comparison.absolute("logits", &[2.0, f32::NAN], &series);
        assert_eq!(comparison.worst(), f64::INFINITY);
    }
}
