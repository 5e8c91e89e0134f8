//! `wgrad evaluate`: how good a checkpoint is on labelled images.

use clap::Args;
use serde::Serialize;

use super::interrupt;
use super::shared::{ComputeOptions, ModelOptions, OutputOptions, Skips};
use crate::data::Labelled;
use crate::error::{Context, Error, Result};
use crate::train::config::DataSource;
use crate::train::judge;
use crate::train::metrics::{ClassMetrics, Metrics};

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
        let interrupt = interrupt::install();
        let root = self.data.root()?;
        let gpu = self.compute.open(&console)?;
        let network = self.model.load_classifier(&gpu, &console)?;
        let classes = network.classes();
        let labelled =
            Labelled::scan(&root, classes, None).context(|| "looking for labelled images")?;
        let folder = labelled.root.display();
        console.note(format_args!("{} images in {folder}", labelled.items.len()));
        let (batch_size, items) = (self.model.batch_size(), labelled.items.into());
        let judged = judge(&gpu, &*network, &items, batch_size, self.workers, &interrupt)
            .context(|| format!("evaluating on {folder}"))?;
        let metrics = judged.metrics;
        if metrics.images == 0 {
            return Err(Error::data(labelled.root, "holds no image that can be read"));
        }
        match console.is_json() {
            true => console.answer_json(&answer(&metrics, classes))?,
            false => console.answer(text(&metrics, classes))?,
        }
        let mut skips = Skips::new(&console);
        for skipped in labelled.skipped.iter().chain(&judged.failed) {
            skips.add(&skipped.path, &Error::data(&skipped.path, &skipped.reason));
        }
        skips.into_result()
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
