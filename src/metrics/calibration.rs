//! Whether a classifier is right as often as it says.

use serde::Serialize;

/// Bins of equal width that confidences are sorted into, as in Guo et al., "On Calibration of Modern
/// Neural Networks" (2017).
const BINS: usize = 15;

/// Answers of about the same confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Images whose confidence falls into the bin.
    pub images: u64,
    /// Their mean confidence, 0 to 1; 0 without images.
    pub confidence: f64,
    /// The share of them that was right, 0 to 1; 0 without images.
    pub accuracy: f64,
}

/// How confidence and accuracy compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Expected calibration error: the mean over images of |accuracy − confidence| of their bin, 0 to
    /// 1; NaN without images.
    pub ece: f64,
    /// 15 bins of equal width from 0 to 1; a confidence on a border belongs to the lower.
    pub bins: Vec<Bin>,
}

impl Calibration {
    /// Of answers' confidences, each with whether the answer was right.
    pub fn new(answers: impl Iterator<Item = (f64, bool)>) -> Self {
        let mut bins = vec![Bin::default(); BINS];
        for (confidence, is_right) in answers {
            let bin = (confidence * BINS as f64).ceil() as usize;
            let bin = &mut bins[bin.clamp(1, BINS) - 1];
            bin.images += 1;
            bin.confidence += confidence;
            bin.accuracy += f64::from(u8::from(is_right));
        }
        let images: u64 = bins.iter().map(|bin| bin.images).sum();
        let gap: f64 = bins.iter().map(|bin| (bin.accuracy - bin.confidence).abs()).sum();
        for bin in bins.iter_mut().filter(|bin| bin.images > 0) {
            bin.confidence /= bin.images as f64;
            bin.accuracy /= bin.images as f64;
        }
        Self { ece: gap / images as f64, bins }
    }
}

/// A divisor of logits that makes a classifier as sure as it should be; no answer changes by it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Temperature(pub f64);

impl Temperature {
    /// As far as fitting goes: a classifier that is always right would be best at 0.
    pub const RANGE: (f64, f64) = (0.01, 100.0);

    /// The temperature at which the mean cross-entropy of `logits` (`labels.len()` × `classes`) is
    /// least, by Newton's method on its reciprocal β, in which the cross-entropy is convex:
    ///
    /// d/dβ = Σₖ pₖ·zₖ − z_label, d²/dβ² = Σₖ pₖ·zₖ² − (Σₖ pₖ·zₖ)².
    ///
    /// # Panics
    /// If the logits are of another size or a label is none of the classes.
    pub fn fit(logits: &[f32], labels: &[u32], classes: usize) -> Self {
        assert_eq!(logits.len(), labels.len() * classes, "a logit for each image and class");
        let derivatives = |beta: f64| {
            let (mut first, mut second) = (0.0, 0.0);
            for (row, &label) in logits.chunks_exact(classes).zip(labels) {
                let z = |index: usize| f64::from(row[index]);
                let largest = (0..classes).map(z).fold(f64::NEG_INFINITY, f64::max);
                let (mut sum, mut mean, mut square) = (0.0, 0.0, 0.0);
                // A class that is ruled out has a probability of 0 at every temperature.
                for logit in (0..classes).map(z).filter(|&logit| logit > f64::NEG_INFINITY) {
                    let power = (beta * (logit - largest)).exp();
                    sum += power;
                    mean += power * (logit - largest);
                    square += power * (logit - largest).powi(2);
                }
                let (mean, square) = (mean / sum, square / sum);
                first += mean - (z(label as usize) - largest);
                second += square - mean * mean;
            }
            (first, second)
        };
        let (mut low, mut high) = (1.0 / Self::RANGE.1, 1.0 / Self::RANGE.0);
        let mut beta: f64 = 1.0;
        for _ in 0..200 {
            let (first, second) = derivatives(beta);
            // The least lies where the slope is 0; it rises with β.
            if first > 0.0 {
                high = beta
            } else {
                low = beta
            }
            let newton = beta - first / second;
            let next = match newton > low && newton < high {
                true => newton,
                false => (low * high).sqrt(),
            };
            let moved = (next - beta).abs();
            beta = next;
            if moved <= 1e-12 * beta {
                break;
            }
        }
        Self(1.0 / beta)
    }

    /// Logits as they are at this temperature.
    pub fn scale(self, logits: &[f32]) -> Vec<f32> {
        logits.iter().map(|&logit| (f64::from(logit) / self.0) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::cross_entropy;

    #[test]
    fn the_expected_calibration_error_is_that_of_a_small_example() {
        // Bins of 1/15: 0.95 and 0.97 in the last, 0.62 in the tenth, 0.6 on the border above the
        // ninth, to which it belongs.
        let answers = [(0.95, true), (0.97, false), (0.62, true), (0.6, false)];
        let calibration = Calibration::new(answers.into_iter());
        // |1 − 1.92| + |1 − 0.62| + |0 − 0.6|, over 4 images.
        assert!((calibration.ece - (0.92 + 0.38 + 0.6) / 4.0).abs() < 1e-12);
        let images: Vec<_> = calibration.bins.iter().map(|bin| bin.images).collect();
        assert_eq!(images, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2]);
        let last = calibration.bins[14];
        assert!((last.confidence - 0.96).abs() < 1e-12 && last.accuracy == 0.5, "{last:?}");
        assert_eq!(calibration.bins[0], Bin::default(), "without images");
        assert!(Calibration::new(std::iter::empty()).ece.is_nan());
        let lowest = Calibration::new([(0.0, false), (0.05, false), (0.1, false)].into_iter());
        assert_eq!([lowest.bins[0].images, lowest.bins[1].images], [2, 1]);
    }

    #[test]
    fn a_temperature_makes_confidence_match_accuracy() {
        // Always logits (2, 0), right three times in four: best at the odds 3 : 1, 2/T = ln 3.
        let logits = [2.0, 0.0].repeat(4);
        let Temperature(found) = Temperature::fit(&logits, &[0, 0, 0, 1], 2);
        assert!((found - 2.0 / 3f64.ln()).abs() < 1e-9, "{found}");
        // What all logits of an image have in common makes no difference, however much that is.
        let Temperature(found) = Temperature::fit(&[5000.0, 5002.0].repeat(4), &[1, 1, 1, 0], 2);
        assert!((found - 2.0 / 3f64.ln()).abs() < 1e-9, "{found}");

        let logits: Vec<f32> = (0..60).map(|i| ((i * 37 + 11) % 23) as f32 / 3.0).collect();
        // Right but for every third.
        let answer =
            |row: &[f32]| (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        let answers = logits.chunks(3).map(answer).zip(0..);
        let labels: Vec<u32> =
            answers.map(|(class, i)| (class + u32::from(i % 3 == 0)) % 3).collect();
        let fitted = Temperature::fit(&logits, &labels, 3);
        let loss = |temperature: f64| -> f64 {
            let scaled = Temperature(temperature).scale(&logits);
            let rows = scaled.chunks(3).zip(&labels);
            rows.map(|(row, &label)| cross_entropy(row, label as usize)).sum()
        };
        for factor in [0.9, 0.99, 1.01, 1.1] {
            assert!(loss(fitted.0 * factor) > loss(fitted.0), "{fitted:?} × {factor}");
        }
    }

    #[test]
    fn a_temperature_has_limits() {
        let always_right = Temperature::fit(&[1.0, 0.0], &[0], 2);
        assert!((always_right.0 - 0.01).abs() < 1e-4, "{always_right:?}");
        let always_wrong = Temperature::fit(&[1.0, 0.0], &[1], 2);
        assert!((always_wrong.0 - 100.0).abs() < 1.0, "{always_wrong:?}");
        assert!(Temperature::fit(&[], &[], 2).0.is_finite());
        assert!(Temperature::fit(&[3.0, 3.0], &[1], 2).0.is_finite());
    }

    #[test]
    fn a_class_that_is_ruled_out_changes_no_temperature() {
        let logits = [2.0, 0.0, f32::NEG_INFINITY].repeat(4);
        let Temperature(found) = Temperature::fit(&logits, &[0, 0, 0, 1], 3);
        assert!((found - 2.0 / 3f64.ln()).abs() < 1e-9, "{found}");
    }
}
