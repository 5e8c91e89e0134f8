//! How closely a device must follow the exact numbers.

use std::fmt;

use half::f16;

use super::Array;
use crate::tensor::Shape;

/// What a device should compute, and how far from it rounding may take it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The exact numbers (to f64).
    pub values: Array,
    /// For each element, the largest error that f32 arithmetic explains.
    pub allowance: Vec<f64>,
    /// The same for kernels that go by another formula.
    pub looser: Vec<Looser>,
    /// For each element, how far it moves if every activation that is stored on the way to it moves
    /// by its own size; empty where there is none.
    pub intermediates: Vec<f64>,
}

/// What kernels that add up other, larger numbers may be off by.
#[derive(Clone, Debug)]
pub struct Looser {
    /// The pass whose choice decides.
    pub pass: &'static str,
    /// What the names of the kernels begin with.
    pub kernels: &'static str,
    /// For each element, the largest error that f32 arithmetic explains.
    pub allowance: Vec<f64>,
}

/// Unit roundoff of f32.
pub const EPSILON: f64 = f32::EPSILON as f64 / 2.0;
/// Unit roundoff of f16.
pub const HALF_EPSILON: f64 = 1.0 / 2048.0;

impl Expected {
    /// Results that may be off by `allowance`, element by element.
    pub fn within(values: Array, allowance: Vec<f64>) -> Self {
        Self { values, allowance, looser: Vec::new(), intermediates: Vec::new() }
    }

    /// Results that f32 arithmetic gets exactly right, such as a maximum.
    pub fn exact(values: Array) -> Self {
        let allowance = vec![0.0; values.data.len()];
        Self::within(values, allowance)
    }

    /// Results of sums of `terms` products. `magnitudes` holds Σ|term| of each element.
    ///
    /// The rounding errors of a sum of k terms are at most about k·ε·Σ|term|; they behave like a
    /// random walk, so what is allowed grows with √k: 4 + 2√k roundings of the whole sum.
    pub fn sums(values: Array, magnitudes: &[f64], terms: usize) -> Self {
        Self::within(values, Self::allowances(magnitudes, terms))
    }

    /// The allowances of [`Expected::sums`].
    pub fn allowances(magnitudes: &[f64], terms: usize) -> Vec<f64> {
        let roundings = 4.0 + 2.0 * (terms as f64).sqrt();
        // Below the smallest normal number devices may flush to zero.
        let allow =
            |magnitude: &f64| roundings * EPSILON * magnitude + f64::from(f32::MIN_POSITIVE);
        magnitudes.iter().map(allow).collect()
    }

    /// The same results added to what was there: one more sum, of terms that may cancel.
    pub fn added_to(mut self, held: &Array) -> Self {
        for (at, held) in held.data.iter().enumerate() {
            let more = 2.0 * EPSILON * (self.values.data[at].abs() + held.abs());
            self.allowances_mut().for_each(|allowance| allowance[at] += more);
            self.values.data[at] += held;
        }
        self
    }

    /// The same results, of which some kernels may be further off.
    pub fn or_by(mut self, looser: Looser) -> Self {
        self.looser.push(looser);
        self
    }

    /// The same results, on the way to which activations are stored; see
    /// [`Expected::intermediates`].
    pub fn through(mut self, intermediates: Vec<f64>) -> Self {
        self.intermediates = intermediates;
        self
    }

    /// What may be expected where activations on the way are stored in f16.
    pub fn through_half(mut self) -> Self {
        let intermediates = std::mem::take(&mut self.intermediates);
        for allowance in self.allowances_mut() {
            for (allowance, moved) in allowance.iter_mut().zip(&intermediates) {
                *allowance += HALF_EPSILON * moved;
            }
        }
        self
    }

    /// What may be expected if the results are stored in f16: rounded once more, and perhaps flushed
    /// to zero below the smallest normal number.
    pub fn stored_in_half(&self) -> Self {
        let mut stored = self.clone();
        for allowance in stored.allowances_mut() {
            for (allowance, value) in allowance.iter_mut().zip(&self.values.data) {
                let largest = value.abs() + *allowance;
                let share = if largest < f16::MIN_POSITIVE.to_f64() { 1.0 } else { HALF_EPSILON };
                *allowance += share * largest;
            }
        }
        stored
    }

    /// Every element's allowances, those of all kernels.
    pub fn allowances_mut(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        let looser = self.looser.iter_mut().map(|looser| &mut looser.allowance);
        std::iter::once(&mut self.allowance).chain(looser)
    }

    /// What is allowed if these kernels (pass, name) were chosen.
    pub fn allowance_of(&self, kernels: &[(&'static str, &'static str)]) -> &[f64] {
        let applies = |looser: &&Looser| {
            let chosen = kernels.iter().find(|(pass, _)| *pass == looser.pass);
            chosen.is_some_and(|(_, name)| name.starts_with(looser.kernels))
        };
        self.looser.iter().find(applies).map_or(&self.allowance, |looser| &looser.allowance)
    }

    /// Results of a fixed number of operations on numbers of the size of the result.
    pub fn rounded(values: Array, roundings: f64) -> Self {
        let allow = |value: &f64| roundings * EPSILON * value.abs() + f64::from(f32::MIN_POSITIVE);
        let allowance = values.data.iter().map(allow).collect();
        Self::within(values, allowance)
    }
}

/// The element of a result that used up most of its allowance.
#[derive(Clone, Debug)]
pub struct Worst {
    /// Error as a share of the allowance; above 1 is a failure.
    pub share: f64,
    /// Where.
    pub position: [usize; 4],
    /// What the device computed.
    pub found: f64,
    /// What it should have.
    pub expected: f64,
    /// How far off it may be.
    pub allowance: f64,
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share, position, found, expected, allowance } = self;
        write!(
            f,
            "at {position:?}: found {found:e}, expected {expected:e} ± {allowance:.1e} ({share:.2} of the allowance)"
        )
    }
}

/// Compares a device's numbers with what is expected of the kernels (pass, name) that made them.
///
/// Missing or surplus numbers, NaN and infinities where none belong count as infinitely wrong.
pub fn compare(
    found: &[f32],
    expected: &Expected,
    kernels: &[(&'static str, &'static str)],
) -> Worst {
    let (values, allowance) = (&expected.values, expected.allowance_of(kernels));
    let Shape { h, w, c, .. } = values.shape;
    let mut worst =
        Worst { share: 0.0, position: [0; 4], found: 0.0, expected: 0.0, allowance: 0.0 };
    if found.len() != values.data.len() {
        worst.share = f64::INFINITY;
        return worst;
    }
    for (index, (&found, &expected)) in found.iter().zip(&values.data).enumerate() {
        let (found, allowance) = (f64::from(found), allowance[index]);
        let error = (found - expected).abs();
        let share = match error {
            _ if found == expected => 0.0,
            _ if error.is_finite() && allowance > 0.0 => error / allowance,
            _ => f64::INFINITY,
        };
        if share > worst.share {
            let position = [index / (h * w * c), index / (w * c) % h, index / c % w, index % c];
            worst = Worst { share, position, found, expected, allowance };
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(values: &[f64]) -> Expected {
        let array = Array::new(Shape::vector(values.len()), values.to_vec());
        Expected::sums(array, &vec![1.0; values.len()], 16)
    }

    #[test]
    fn comparisons_fail_when_they_should() {
        let expected = expected(&[1.0, 2.0, 3.0]);
        assert_eq!(compare(&[1.0, 2.0, 3.0], &expected, &[]).share, 0.0);
        let close = compare(&[1.0, 2.0 + 2e-7, 3.0], &expected, &[]);
        assert!(close.share > 0.0 && close.share < 1.0, "{close}");
        let off = compare(&[1.0, 2.0, 3.0 + 1e-5], &expected, &[]);
        assert!(off.share > 1.0 && off.position == [0, 0, 0, 2], "{off}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(compare(&[1.0, bad, 3.0], &expected, &[]).share, f64::INFINITY);
        }
        assert_eq!(compare(&[1.0, 2.0], &expected, &[]).share, f64::INFINITY);
        assert_eq!(compare(&[1.0, 2.0, 3.0, 4.0], &expected, &[]).share, f64::INFINITY);
    }

    #[test]
    fn exact_results_allow_nothing() {
        let exact = Expected::exact(Array::new(Shape::vector(1), vec![1.0]));
        assert_eq!(compare(&[1.0], &exact, &[]).share, 0.0);
        assert_eq!(compare(&[1.0 + f32::EPSILON], &exact, &[]).share, f64::INFINITY);
    }

    #[test]
    fn allowances_stay_tight() {
        // A dot product of 4608 terms of size one may be off by 2e-5 of Σ|term|, not more.
        let array = Array::new(Shape::vector(1), vec![0.0]);
        assert!(Expected::sums(array.clone(), &[1.0], 4608).allowance[0] < 2e-5);
        // Half a unit in the last place of f16, and no more than a flush to zero takes.
        for (value, allowance) in [(0.0, 0.0), (1.0, 2f64.powi(-11)), (1e-5, 1e-5)] {
            let stored = Expected::exact(array.map(|_| value)).stored_in_half();
            assert_eq!(stored.allowance[0], allowance);
        }
    }
}
