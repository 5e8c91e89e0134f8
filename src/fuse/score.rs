//! What networks answer on a split, kept whole, so that answers can be joined before they are
//! counted.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::metrics::Calibration;

/// How answers are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Average {
    /// The mean of the probabilities.
    #[default]
    Probabilities,
    /// The mean of the logits: the geometric mean of the probabilities, which lets a network that is
    /// sure of a "no" overrule the others.
    Logits,
}

/// The logarithms of the probabilities that `logits` stand for.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let lse = log_sum_exp(logits.iter().copied());
    logits.iter().map(|logit| logit - lse).collect()
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if values.clone().all(|value| value == f64::NEG_INFINITY) {
        return largest;
    }
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// Joins what several networks say of one image, each the logarithms of its probabilities.
pub fn join(answers: &[&[f64]], average: Average) -> Vec<f64> {
    let (count, classes) = (answers.len() as f64, answers[0].len());
    let at = |class: usize| answers.iter().map(move |answer| answer[class]);
    match average {
        Average::Probabilities => {
            (0..classes).map(|class| log_sum_exp(at(class)) - count.ln()).collect()
        }
        Average::Logits => {
            let means: Vec<f64> =
                (0..classes).map(|class| at(class).sum::<f64>() / count).collect();
            let lse = log_sum_exp(means.iter().copied());
            means.iter().map(|mean| mean - lse).collect()
        }
    }
}

/// What a network, or several together, say of every image of a split.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Outputs of the network.
    classes: usize,
    /// Images × classes: logarithms of probabilities.
    log_probabilities: Vec<f64>,
    labels: Vec<u32>,
}

impl Answers {
    /// None yet, of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, ..Self::default() }
    }

    /// Adds the logits of images of the classes `labels`.
    pub fn add(&mut self, logits: &[f32], labels: &[u32]) {
        let rows = logits.chunks_exact(self.classes);
        self.log_probabilities.extend(rows.flat_map(log_softmax));
        self.labels.extend_from_slice(labels);
    }

    /// The answers of several networks to the same images, joined.
    pub fn joined(several: &[&Self], average: Average) -> Self {
        let first = several[0];
        let image = |at: usize| {
            let rows = several
                .iter()
                .map(|answers| &answers.log_probabilities[at..at + first.classes])
                .collect::<Vec<_>>();
            join(&rows, average)
        };
        let images = (0..first.log_probabilities.len()).step_by(first.classes.max(1));
        Self { log_probabilities: images.flat_map(image).collect(), ..first.clone() }
    }

    /// How good they are; all NaN without images. An image without an answer (see
    /// [`crate::metrics::is_answer`]) is wrong, and the loss NaN.
    pub fn score(&self) -> Score {
        let images = self.labels.len() as f64;
        let (mut top1, mut loss) = (0.0, 0.0);
        let mut answers = Vec::with_capacity(self.labels.len());
        for (row, &label) in self.log_probabilities.chunks_exact(self.classes).zip(&self.labels) {
            loss -= row[label as usize];
            if row.iter().any(|probability| probability.is_nan()) {
                continue;
            }
            // Of equal probabilities the first counts, as everywhere.
            let mut best = 0;
            (1..row.len())
                .for_each(|class| best = if row[class] > row[best] { class } else { best });
            let is_right = best == label as usize;
            top1 += f64::from(u8::from(is_right));
            answers.push((row[best].exp(), is_right));
        }
        Score {
            images: self.labels.len(),
            top1: top1 / images,
            loss: loss / images,
            ece: Calibration::new(answers.into_iter()).ece,
        }
    }
}

/// How good answers were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Images answered.
    pub images: usize,
    /// Share of images whose likeliest class was right, 0 to 1.
    pub top1: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Expected calibration error, 0 to 1: how far the probability of the likeliest class is from
    /// the share of images it is right for, over 15 bins of probability.
    pub ece: f64,
}

impl Score {
    /// What networks are compared by: whether there is a finite loss at all, accuracy, then loss.
    pub fn rank(&self) -> (bool, f64, f64) {
        (self.loss.is_finite(), self.top1, -self.loss)
    }
}

/// Accuracy in percent, loss, calibration error in percent.
impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6.1}  {:>6.3}  {:>5.1}", 100.0 * self.top1, self.loss, 100.0 * self.ece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose first class has this probability.
    fn sure(probability: f32) -> [f32; 2] {
        [(probability / (1.0 - probability)).ln(), 0.0]
    }

    #[test]
    fn scores_count_accuracy_loss_and_calibration() {
        let mut answers = Answers::new(2);
        // Three answers at 0.9 of which two are right, one at 0.6 that is right.
        answers.add(&[sure(0.9), sure(0.9), sure(0.9), sure(0.6)].concat(), &[0, 0, 1, 0]);
        let score = answers.score();
        assert_eq!((score.images, score.top1), (4, 0.75));
        let loss = -(2.0 * 0.9f64.ln() + 0.1f64.ln() + 0.6f64.ln()) / 4.0;
        assert!((score.loss - loss).abs() < 1e-6, "{score:?}");
        let ece = 0.75 * (0.9 - 2.0 / 3.0) + 0.25 * 0.4;
        assert!((score.ece - ece).abs() < 1e-6, "{score:?}");
        // The likeliest class may be any, and of equals it is the first.
        let mut answers = Answers::new(3);
        answers.add(&[0.0, 1.0, 2.0, 0.0, 2.0, 2.0, 2.0, 0.0, 2.0, 0.0, 2.0, 1.0], &[2, 1, 0, 1]);
        assert_eq!(answers.score().top1, 1.0);
    }

    #[test]
    fn of_equal_accuracies_the_lower_loss_ranks_first() {
        let score = |top1, loss| Score { images: 2, top1, loss, ece: 0.0 }.rank();
        assert!(score(0.5, 1.0) > score(0.5, 2.0) && score(0.6, 2.0) > score(0.5, 1.0));
        assert!(score(0.1, 9.0) > score(0.9, f64::NAN));
    }

    #[test]
    fn an_image_without_an_answer_is_wrong() {
        let nan = f32::NAN;
        let mut broken = Answers::new(2);
        broken.add(&[[nan, 0.0], [nan, nan], sure(0.9)].concat(), &[0, 0, 0]);
        let score = broken.score();
        assert_eq!(score.top1, 1.0 / 3.0);
        assert!(score.loss.is_nan() && score.ece.is_finite(), "{score:?}");
        let mut wrong = Answers::new(2);
        wrong.add(&sure(0.9), &[1]);
        assert!(wrong.score().rank() > score.rank(), "it answers");
        // What every network rules out is ruled out.
        let mut sure = Answers::new(2);
        sure.add(&[1.0, f32::NEG_INFINITY], &[0]);
        for average in [Average::Probabilities, Average::Logits] {
            let score = Answers::joined(&[&sure, &sure], average).score();
            assert_eq!((score.top1, score.loss), (1.0, 0.0), "{average:?}");
        }
    }

    #[test]
    fn ensembles_average_probabilities_or_logits() {
        let mut first = Answers::new(2);
        first.add(&sure(0.9), &[0]);
        let mut second = Answers::new(2);
        second.add(&sure(0.2), &[0]);
        let probability =
            |average| Answers::joined(&[&first, &second], average).log_probabilities[0].exp();
        assert!((probability(Average::Probabilities) - 0.55).abs() < 1e-6);
        // Odds of 9 and 1/4 have the geometric mean 1.5.
        assert!((probability(Average::Logits) - 0.6).abs() < 1e-6);
        // Image by image, also where one network rules out what another does not.
        let (mut first, mut second) = (Answers::new(2), Answers::new(2));
        first.add(&[sure(0.9), [0.0, f32::NEG_INFINITY]].concat(), &[0, 1]);
        second.add(&[sure(0.2), sure(0.5)].concat(), &[0, 1]);
        let joined = Answers::joined(&[&first, &second], Average::Probabilities);
        for (found, expected) in joined.log_probabilities.iter().zip([0.55, 0.45, 0.75, 0.25]) {
            assert!((found.exp() - expected).abs() < 1e-6, "{joined:?}");
        }
        assert_eq!((joined.log_probabilities.len(), &joined.labels[..]), (4, &[0, 1][..]));
    }

    #[test]
    fn an_ensemble_of_one_says_the_same() {
        let mut answers = Answers::new(3);
        answers.add(&[1.0, -200.0, 3.0], &[1]);
        for average in [Average::Probabilities, Average::Logits] {
            let joined = Answers::joined(&[&answers], average).score();
            assert!((joined.loss - answers.score().loss).abs() < 1e-12);
        }
    }
}
