//! How good a classifier's answers are, counted on the host in f64.

mod calibration;

use std::fmt;

pub use calibration::{Bin, Calibration, Temperature};

use serde::{Deserialize, Deserializer, Serialize};

/// Probabilities of `logits`, each 0 to 1, together 1.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let powers: Vec<f64> = logits.iter().map(|&logit| (logit as f64 - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Minus the logarithm of `label`'s probability.
///
/// # Panics
/// If there is no such label.
pub fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&logit| (logit as f64 - largest).exp()).sum();
    sum.ln() + largest - logits[label] as f64
}

/// Whether `logits` are an answer: their probabilities are numbers. NaN, an infinite largest logit and
/// -∞ throughout are none, as for the loss on the device.
pub fn is_answer(logits: &[f32]) -> bool {
    !softmax(logits).iter().any(|probability| probability.is_nan())
}

/// The indices of the `k` largest logits, largest first; equal ones in their own order, NaN last.
pub fn top_k(logits: &[f32], k: usize) -> Vec<usize> {
    let rank = |&index: &usize| match logits[index] {
        logit if logit.is_nan() => f32::NEG_INFINITY,
        logit => logit,
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    order.truncate(k);
    order
}

/// Counts answers as they come.
#[derive(Clone, Debug)]
pub struct Tally {
    classes: usize,
    images: u64,
    loss: f64,
    top1: u64,
    top5: u64,
    /// Images of a class (row) taken for a class (column).
    confusion: Vec<u64>,
    /// Images of each class without an answer.
    unanswered: Vec<u64>,
    answers: Vec<Answered>,
}

/// What was answered to an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    /// Which image, as an index into the list of those asked about.
    pub item: usize,
    /// The image's class.
    pub label: usize,
    /// The likeliest class.
    pub predicted: usize,
    /// The probability of `predicted`, 0 to 1.
    pub confidence: f64,
    /// The probability of `label`, 0 to 1.
    pub probability: f64,
    /// Cross-entropy.
    pub loss: f64,
    /// How many classes were likelier than `label`.
    pub rank: usize,
}

impl Answered {
    /// What `logits` answer to the image `item` of the class `label`; none if they are no answer.
    ///
    /// # Panics
    /// If there is no such label.
    pub fn new(item: usize, label: usize, logits: &[f32]) -> Option<Self> {
        if !is_answer(logits) {
            return None;
        }
        let order = top_k(logits, logits.len());
        let (predicted, loss) = (order[0], cross_entropy(logits, label));
        Some(Self {
            item,
            label,
            predicted,
            confidence: (-cross_entropy(logits, predicted)).exp(),
            probability: (-loss).exp(),
            loss,
            rank: order.iter().position(|&class| class == label).unwrap_or(order.len()),
        })
    }

    /// Whether the likeliest class was the image's.
    pub fn is_right(&self) -> bool {
        self.predicted == self.label
    }
}

impl Tally {
    /// Nothing counted yet, for a network of `classes` outputs.
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            images: 0,
            loss: 0.0,
            top1: 0,
            top5: 0,
            confusion: vec![0; classes * classes],
            unanswered: vec![0; classes],
            answers: Vec::new(),
        }
    }

    /// Counts `logits` (`labels.len()` × classes) of the images `items`, of the classes `labels`. An
    /// image without an answer is wrong, was taken for nothing, and has a loss of NaN.
    ///
    /// # Panics
    /// If a label is none of the classes or the logits are of another size.
    pub fn add(&mut self, logits: &[f32], labels: &[u32], items: &[usize]) {
        assert_eq!(logits.len(), labels.len() * self.classes, "a logit for each image and class");
        assert_eq!(labels.len(), items.len(), "a label for each image");
        let rows = logits.chunks_exact(self.classes);
        for ((logits, &label), &item) in rows.zip(labels).zip(items) {
            self.images += 1;
            let Some(answer) = Answered::new(item, label as usize, logits) else {
                self.loss = f64::NAN;
                self.unanswered[label as usize] += 1;
                continue;
            };
            self.loss += answer.loss;
            self.top1 += u64::from(answer.rank < 1);
            self.top5 += u64::from(answer.rank < 5);
            self.confusion[answer.label * self.classes + answer.predicted] += 1;
            self.answers.push(answer);
        }
    }

    /// What was counted; all NaN without images.
    pub fn metrics(self) -> Metrics {
        let images = self.images as f64;
        Metrics {
            images: self.images,
            loss: self.loss / images,
            top1: self.top1 as f64 / images,
            top5: self.top5 as f64 / images,
            confusion: self.confusion.chunks(self.classes).map(<[u64]>::to_vec).collect(),
            unanswered: self.unanswered,
            answers: self.answers,
        }
    }
}

/// How good a network's answers were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Images asked about.
    pub images: u64,
    /// Mean cross-entropy; NaN if there is an image without an answer.
    pub loss: f64,
    /// Share of images whose likeliest class was right, 0 to 1.
    pub top1: f64,
    /// Share of images whose class was among the five likeliest, 0 to 1.
    pub top5: f64,
    /// Images of a class (row) taken for a class (column).
    pub confusion: Vec<Vec<u64>>,
    /// Images of each class that the network had no answer to: its logits were no numbers.
    #[serde(skip)]
    pub unanswered: Vec<u64>,
    /// What was answered to each image that was answered, in the order of asking.
    #[serde(skip)]
    pub answers: Vec<Answered>,
}

/// How a class fared. A ratio without anything to count is 0, as scikit-learn has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassMetrics {
    /// Its images.
    pub images: u64,
    /// Of the images taken for it, the share that were.
    pub precision: f64,
    /// Of its images, the share that were taken for it.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
}

/// Precision, recall and F1 of all classes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Average {
    /// Of the images taken for a class, the share that were.
    pub precision: f64,
    /// Of a class's images, the share that were taken for it.
    pub recall: f64,
    /// The mean of the classes' F1, not the F1 of the means.
    pub f1: f64,
}

/// Two classes, one of which was taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Confused {
    /// What the images were.
    pub actual: usize,
    /// What they were taken for.
    pub predicted: usize,
    /// How many.
    pub images: u64,
}

impl Metrics {
    /// How each class fared.
    pub fn per_class(&self) -> Vec<ClassMetrics> {
        let ratio = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let of_class = |class: usize| {
            let right = self.confusion[class][class];
            let images = self.confusion[class].iter().sum::<u64>() + self.unanswered[class];
            let taken_for_it = self.confusion.iter().map(|row| row[class]).sum();
            ClassMetrics {
                images,
                precision: ratio(right, taken_for_it),
                recall: ratio(right, images),
                f1: ratio(2 * right, images + taken_for_it),
            }
        };
        (0..self.confusion.len()).map(of_class).collect()
    }

    /// Share of images whose class was among the `k` likeliest, 0 to 1.
    pub fn top(&self, k: usize) -> f64 {
        let right = self.answers.iter().filter(|answer| answer.rank < k).count();
        right as f64 / self.images as f64
    }

    /// The mean over classes, as scikit-learn's `macro`: every class that has an image or was guessed
    /// counts alike.
    pub fn macro_average(&self) -> Average {
        let occurs = |class: usize| self.confusion.iter().any(|row| row[class] > 0);
        self.average(|class, of_class| f64::from(u8::from(of_class.images > 0 || occurs(class))))
    }

    /// The mean over classes, as scikit-learn's `weighted`: a class counts as often as it has images.
    pub fn weighted_average(&self) -> Average {
        self.average(|_, of_class| of_class.images as f64)
    }

    fn average(&self, weight: impl Fn(usize, &ClassMetrics) -> f64) -> Average {
        let classes = self.per_class();
        let weights: Vec<f64> =
            classes.iter().enumerate().map(|(index, class)| weight(index, class)).collect();
        let total: f64 = weights.iter().sum();
        if total == 0.0 {
            return Average::default();
        }
        let mean = |number: fn(&ClassMetrics) -> f64| {
            let sum: f64 = classes.iter().zip(&weights).map(|(class, w)| w * number(class)).sum();
            sum / total
        };
        Average { precision: mean(|c| c.precision), recall: mean(|c| c.recall), f1: mean(|c| c.f1) }
    }

    /// How far the probabilities can be believed, of the images that were answered.
    pub fn calibration(&self) -> Calibration {
        Calibration::new(self.answers.iter().map(|answer| (answer.confidence, answer.is_right())))
    }

    /// The `count` most frequent mistakes, the most frequent first.
    pub fn most_confused(&self, count: usize) -> Vec<Confused> {
        let rows = self.confusion.iter().enumerate();
        let cells = rows.flat_map(|(actual, row)| {
            let cell = move |(predicted, &images)| Confused { actual, predicted, images };
            row.iter().enumerate().map(cell)
        });
        let mut wrong: Vec<Confused> =
            cells.filter(|cell| cell.actual != cell.predicted && cell.images > 0).collect();
        wrong.sort_by_key(|cell| std::cmp::Reverse(cell.images));
        wrong.truncate(count);
        wrong
    }
}

/// What an epoch brought: a row of `results.csv`, a line of the console.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Epoch {
    /// Counts from 1, over both phases.
    pub epoch: u32,
    /// Epochs of both phases.
    pub epochs: u32,
    /// Since the run began.
    pub seconds: f64,
    /// Mean over the epoch's training images, each before the update of its step.
    pub train_loss: f64,
    /// Share of the training images that were right, 0 to 1, each before the update of its step.
    pub train_top1: f64,
    /// How the network then did on images it had not seen; none without such.
    pub val: Option<Validation>,
    /// How the average of its weights did; none without an average.
    pub val_ema: Option<Validation>,
    /// The learning rate of each group in the epoch's last step.
    pub lr: Vec<f64>,
    /// Training images a second, validation left out.
    pub images_per_second: f64,
}

/// How a network did on the validation images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean cross-entropy.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Share of images whose likeliest class was right, 0 to 1.
    pub top1: f64,
    /// Share of images whose class was among the five likeliest, 0 to 1.
    pub top5: f64,
}

/// JSON has no NaN: null stands for it.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl From<&Metrics> for Validation {
    fn from(metrics: &Metrics) -> Self {
        Self { loss: metrics.loss, top1: metrics.top1, top5: metrics.top5 }
    }
}

/// The console's line, accuracies in percent.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}/{}  loss {:.3}", self.epoch, self.epochs, self.train_loss)?;
        if let Some(Validation { top1, top5, .. }) = self.val {
            write!(f, "  val Acc@1 {:.1}  Acc@5 {:.1}", 100.0 * top1, 100.0 * top5)?;
        }
        if let Some(Validation { top1, .. }) = self.val_ema {
            write!(f, "  average {:.1}", 100.0 * top1)?;
        }
        write!(f, "  {:.0} img/s", self.images_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_and_cross_entropy_stand_large_logits() {
        let logits = [1000.0, 1001.0, 999.0];
        let probabilities = softmax(&logits);
        // e^-1, 1 and e^-2 over their sum.
        for (found, expected) in
            probabilities.iter().zip([0.244_728_47, 0.665_240_96, 0.090_030_57])
        {
            assert!((found - expected).abs() < 1e-8, "{found} {expected}");
        }
        for (label, probability) in probabilities.iter().enumerate() {
            assert!((cross_entropy(&logits, label) + probability.ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn top_k_breaks_ties_by_order_and_puts_nan_last() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, f32::NAN, 2.0], 5), [1, 2, 4, 0, 3]);
        assert_eq!(top_k(&[0.0, -0.0, 1.0], 1), [2]);
        assert_eq!(top_k(&[1.0, 2.0], 5), [1, 0], "fewer classes than asked for");
    }

    #[test]
    fn a_row_without_an_answer_is_wrong_and_taken_for_nothing() {
        let (nan, most, least) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let mut tally = Tally::new(3);
        tally.add(&[0.0, 1.0, least], &[1], &[0]);
        assert!(tally.clone().metrics().loss.is_finite(), "a class may be ruled out");
        for row in [[nan; 3], [0.0, nan, 0.0], [5.0, nan, 0.0], [least; 3], [most, 0.0, 0.0]] {
            assert!(!is_answer(&row) && Answered::new(0, 0, &row).is_none(), "{row:?}");
            tally.add(&row, &[0], &[1]);
        }
        let metrics = tally.metrics();
        assert_eq!((metrics.images, metrics.answers.len()), (6, 1));
        assert_eq!((metrics.top1, metrics.top5, metrics.top(3)), (1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0));
        assert!(metrics.loss.is_nan());
        assert_eq!(metrics.confusion, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]);
        assert_eq!(metrics.unanswered, [5, 0, 0]);
        assert_eq!((metrics.per_class()[0].images, metrics.per_class()[0].recall), (5, 0.0));
        assert!(metrics.most_confused(9).is_empty());
        assert!(metrics.calibration().ece.is_finite());
    }

    #[test]
    fn a_validation_without_a_loss_is_read_back() {
        let val = Validation { loss: f64::NAN, top1: 0.5, top5: 1.0 };
        let text = serde_json::to_string(&val).unwrap();
        let read: Validation = serde_json::from_str(&text).unwrap();
        assert!(read.loss.is_nan() && read.top1 == 0.5, "{read:?}");
        assert!(serde_json::from_str::<Validation>(r#"{"top1":0.5,"top5":1.0}"#).is_err());
    }

    /// Six classes, so that five guesses can miss.
    fn example() -> Metrics {
        let guess = |order: [usize; 6]| {
            let mut logits = [0.0; 6];
            order.into_iter().enumerate().for_each(|(rank, class)| logits[class] = -(rank as f32));
            logits
        };
        let answers = [
            (guess([0, 1, 2, 3, 4, 5]), 0),
            (guess([1, 0, 2, 3, 4, 5]), 0),
            (guess([1, 0, 2, 3, 4, 5]), 0),
            (guess([1, 0, 2, 3, 4, 5]), 1),
            (guess([0, 1, 2, 3, 4, 5]), 5),
        ];
        let mut tally = Tally::new(6);
        for (item, (logits, label)) in answers.into_iter().enumerate() {
            tally.add(&logits, &[label], &[item]);
        }
        tally.metrics()
    }

    #[test]
    fn accuracies_count_the_first_and_the_first_five() {
        let metrics = example();
        assert_eq!((metrics.images, metrics.top1, metrics.top5), (5, 0.4, 0.8));
        let sum: f64 = (0..6).map(|rank| f64::exp(-f64::from(rank))).sum();
        // The five labels had the ranks 0, 1, 1, 0 and 5.
        assert!((metrics.loss - (sum.ln() + 7.0 / 5.0)).abs() < 1e-12, "{}", metrics.loss);
    }

    #[test]
    fn classes_and_mistakes_are_read_off_the_confusion_matrix() {
        let metrics = example();
        let classes = metrics.per_class();
        let class = |images, precision, recall, f1| ClassMetrics { images, precision, recall, f1 };
        assert_eq!(classes[0], class(3, 0.5, 1.0 / 3.0, 0.4));
        assert_eq!(classes[1], class(1, 1.0 / 3.0, 1.0, 0.5));
        assert_eq!(classes[2], class(0, 0.0, 0.0, 0.0), "no image, never guessed");
        assert_eq!(classes[5], class(1, 0.0, 0.0, 0.0));
        let mistake = |actual, predicted, images| Confused { actual, predicted, images };
        assert_eq!(metrics.most_confused(9), [mistake(0, 1, 2), mistake(5, 0, 1)]);
        assert_eq!(metrics.most_confused(1), [mistake(0, 1, 2)]);
        let confusion = vec![vec![0, 1, 2], vec![3, 9, 0], vec![2, 0, 0]];
        let found = Metrics { confusion, ..metrics }.most_confused(3);
        assert_eq!(found, [mistake(1, 0, 3), mistake(0, 2, 2), mistake(2, 0, 2)]);
    }

    #[test]
    fn averages_are_scikit_learns() {
        // Labels 0 0 0 1 5, guesses 0 1 1 1 0: classes 0, 1 and 5 occur.
        let metrics = example();
        let near = |found: Average, precision: f64, recall: f64, f1: f64| {
            for (found, expected) in
                [(found.precision, precision), (found.recall, recall), (found.f1, f1)]
            {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        };
        near(metrics.macro_average(), 5.0 / 18.0, 4.0 / 9.0, 0.3);
        near(metrics.weighted_average(), (1.5 + 1.0 / 3.0) / 5.0, 0.4, (1.2 + 0.5) / 5.0);
        assert_eq!(Tally::new(3).metrics().macro_average(), Average::default());
        // Class 2 has no image but was guessed once, class 3 neither.
        let mut confusion = vec![vec![0; 4]; 4];
        (confusion[0][0], confusion[1][1], confusion[1][2]) = (1, 1, 1);
        let metrics = Metrics { confusion, unanswered: vec![0; 4], ..metrics };
        near(metrics.macro_average(), 2.0 / 3.0, 0.5, (1.0 + 2.0 / 3.0) / 3.0);
    }

    #[test]
    fn each_image_keeps_its_answer() {
        let metrics = example();
        let ranks: Vec<_> = metrics.answers.iter().map(|answer| answer.rank).collect();
        assert_eq!(ranks, [0, 1, 1, 0, 5]);
        assert_eq!((metrics.top(1), metrics.top(2), metrics.top(6)), (0.4, 0.8, 1.0));
        let sum: f64 = (0..6).map(|rank| f64::exp(-f64::from(rank))).sum();
        let Answered { item, label, predicted, confidence, probability, loss, .. } =
            metrics.answers[4];
        assert_eq!((item, label, predicted), (4, 5, 0));
        assert!((confidence - 1.0 / sum).abs() < 1e-12, "{confidence}");
        assert!((probability - f64::exp(-5.0) / sum).abs() < 1e-12, "{probability}");
        assert!((loss - (sum.ln() + 5.0)).abs() < 1e-12, "{loss}");
    }

    #[test]
    fn an_epoch_is_a_line() {
        let mut epoch = Epoch {
            epoch: 3,
            epochs: 5,
            seconds: 60.0,
            train_loss: 0.4121,
            train_top1: 0.9,
            val: Some(Validation { loss: 0.5, top1: 0.911, top5: 0.99 }),
            val_ema: None,
            lr: vec![0.01],
            images_per_second: 812.3,
        };
        let line = "epoch 3/5  loss 0.412  val Acc@1 91.1  Acc@5 99.0  812 img/s";
        assert_eq!(epoch.to_string(), line);
        epoch.val = None;
        assert_eq!(epoch.to_string(), "epoch 3/5  loss 0.412  812 img/s");
    }
}
