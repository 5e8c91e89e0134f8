//! `wgrad evaluate`: how good a checkpoint is on labelled images.

use clap::Args;
use serde::Serialize;

use super::interrupt;
use super::shared::{ComputeOptions, ModelOptions, OutputOptions, Skips};
use crate::data::{Augment, Labelled, Loader, Order, Transform};
use crate::error::{Context, Error, Result};
use crate::train::config::DataSource;
use crate::train::metrics::{ClassMetrics, Metrics, Tally};
use crate::train::{Console, Predictor};

/// Classes up to which the confusion matrix is shown to people.
const MATRIX_CLASSES: usize = 20;
/// Mistakes that are shown to people.
const MISTAKES: usize = 5;

/// Accuracy, loss, confusion matrix of a checkpoint on labelled images
#[derive(Args, Debug)]
pub struct Evaluate {
    /// A folder of class folders, or one with val/ or test/; demo is the bundled clip art
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    data: DataSource,

    /// Threads that load images; 0 for one a core
    #[arg(short = 'j', long, value_name = "N", default_value_t = 0)]
    workers: usize,

    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    images: u64,
    loss: f64,
    top1: f64,
    top5: f64,
    classes: &'a [String],
    per_class: Vec<NamedClass<'a>>,
    confusion: &'a [Vec<u64>],
}

#[derive(Serialize)]
struct NamedClass<'a> {
    class: &'a str,
    #[serde(flatten)]
    metrics: ClassMetrics,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let root = self.data.root()?;
        let gpu = self.compute.open(&console)?;
        let predictor = self.model.load(&gpu, &console)?;
        let labelled = Labelled::scan(&root, predictor.classes(), None)
            .context(|| "looking for labelled images")?;
        let mut skips = Skips::new(&console);
        for skipped in &labelled.skipped {
            skips.add(&skipped.path, &Error::data(&skipped.path, &skipped.reason));
        }
        let root = labelled.root.display().to_string();
        console.note(format_args!("{} images in {root}", labelled.items.len()));
        let metrics = self.evaluate(&predictor, labelled, &console, &mut skips)?;
        if metrics.images == 0 {
            return Err(Error::data(root, "holds no image that can be read"));
        }
        match console.is_json() {
            true => console.answer_json(&answer(&metrics, predictor.classes()))?,
            false => console.answer(text(&metrics, predictor.classes()))?,
        }
        skips.into_result()
    }

    fn evaluate(
        &self,
        predictor: &Predictor,
        labelled: Labelled,
        console: &Console,
        skips: &mut Skips,
    ) -> Result<Metrics> {
        let interrupt = interrupt::install();
        let images = labelled.items.len();
        let order = Order {
            seed: 0,
            epoch: 0,
            shuffle: false,
            batch_size: self.model.batch_size(),
            drop_last: false,
        };
        let transform = Transform { size: predictor.image_size(), augment: Augment::None };
        let batches = order.batches(images);
        let loader = Loader::new(labelled.items.into(), batches, transform, 0, 0, self.workers)?;
        let bar = console.epoch_bar("evaluating", images);
        let mut tally = Tally::new(predictor.classes().len());
        for batch in loader {
            interrupt.check()?;
            let batch = batch.context(|| "reading the images")?;
            for skipped in &batch.failed {
                skips.add(&skipped.path, &Error::data(&skipped.path, &skipped.reason));
            }
            if !batch.labels.is_empty() {
                let logits = predictor.logits(&batch.pixels, batch.labels.len())?;
                tally.add(&logits, &batch.labels);
            }
            let (loss, top1) = tally.so_far();
            bar.advance(batch.labels.len(), loss, top1);
        }
        Ok(tally.metrics())
    }
}

fn answer<'a>(metrics: &'a Metrics, classes: &'a [String]) -> Answer<'a> {
    let named = |(class, metrics): (&'a String, ClassMetrics)| NamedClass { class, metrics };
    Answer {
        images: metrics.images,
        loss: metrics.loss,
        top1: metrics.top1,
        top5: metrics.top5,
        classes,
        per_class: classes.iter().zip(metrics.per_class()).map(named).collect(),
        confusion: &metrics.confusion,
    }
}

fn text(metrics: &Metrics, classes: &[String]) -> String {
    let (top1, top5) = (100.0 * metrics.top1, 100.0 * metrics.top5);
    let mut lines = vec![
        format!(
            "{} images  loss {:.4}  Acc@1 {top1:.1}  Acc@5 {top5:.1}",
            metrics.images, metrics.loss
        ),
        String::new(),
    ];
    let width = classes.iter().map(|class| class.chars().count()).max().unwrap_or(0).max(5);
    lines.push(format!("{:>4} {:width$}  images  precision  recall     f1", "", "class"));
    for (index, (class, metrics)) in classes.iter().zip(metrics.per_class()).enumerate() {
        let ClassMetrics { images, precision, recall, f1 } = metrics;
        lines.push(format!(
            "{index:>4} {class:width$}  {images:>6}  {precision:>9.3}  {recall:>6.3}  {f1:>5.3}"
        ));
    }
    if classes.len() <= MATRIX_CLASSES {
        let row = |cells: &mut dyn Iterator<Item = String>| {
            cells.map(|cell| format!("{cell:>6}")).collect::<String>()
        };
        lines.push("\nimages of a class (row) taken for a class (column)".into());
        lines.push(format!(
            "{:>4}{}",
            "",
            row(&mut (0..classes.len()).map(|index| index.to_string()))
        ));
        for (index, counts) in metrics.confusion.iter().enumerate() {
            lines.push(format!("{index:>4}{}", row(&mut counts.iter().map(u64::to_string))));
        }
    }
    let mistakes = metrics.most_confused(MISTAKES);
    if !mistakes.is_empty() {
        lines.push("\nmost confused".into());
    }
    for mistake in mistakes {
        let (actual, predicted) = (&classes[mistake.actual], &classes[mistake.predicted]);
        lines.push(format!("{:>4} × {actual} taken for {predicted}", mistake.images));
    }
    lines.join("\n")
}
