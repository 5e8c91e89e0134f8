//! `wgrad evaluate`: how good a checkpoint is on labelled images.

use std::num::NonZero;
use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use super::interrupt;
use super::shared::{ClassifierOptions, ComputeOptions, OutputOptions, Skips, check_answer};
use crate::data::{Labelled, Skipped};
use crate::error::{Context, Error, Result};
use crate::gpu::Gpu;
use crate::metrics::{Average, Calibration, ClassMetrics, Metrics, Tally, Temperature};
use crate::train::config::DataSource;
use crate::train::{Asking, Classifier, Interrupt, ask};

/// Classes up to which the confusion matrix is shown to people.
const MATRIX_CLASSES: usize = 20;
/// Mistakes that are shown to people.
const MISTAKES: usize = 5;

/// Accuracy, loss, confusion matrix of a checkpoint on labelled images
#[derive(Args, Debug)]
pub struct Evaluate {
    /// A folder of class folders, or one with val/ or test/, or a .tar or .tar.gz archive of one, or a
    /// folder of such archives; demo is the bundled clip art
    #[arg(long, value_name = "DIR|ARCHIVE|demo", default_value = "demo")]
    data: DataSource,

    /// Which images of the folder: train, val, test, all [default: val, else test, else all of a
    /// folder without splits; of the folder that the network was trained on, if it has no val/, val is
    /// what was held out of it]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,

    /// Test-time augmentation: the logits are the mean of the image's and its mirror image's
    /// [default: off]
    #[arg(long)]
    tta: bool,

    /// Divide the logits by T, 0.01 to 100; fit finds the T with which the images of val are
    /// answered with the least loss [default: 1]
    #[arg(long, value_name = "fit|T")]
    temperature: Option<TemperatureOption>,

    /// Also tell how often the class is among the K likeliest [default: 1 and 5]
    #[arg(long, value_name = "K")]
    top: Option<NonZero<usize>>,

    /// Threads that load images; 0 for one a core
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = super::values::workers()
    )]
    workers: usize,

    #[command(flatten)]
    model: ClassifierOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// What `--temperature` takes.
#[derive(Clone, Copy, Debug)]
enum TemperatureOption {
    Fit,
    Fixed(Temperature),
}

impl FromStr for TemperatureOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, high) = Temperature::RANGE;
        match text.parse() {
            _ if text == "fit" => Ok(Self::Fit),
            Ok(number) if (low..=high).contains(&number) => Ok(Self::Fixed(Temperature(number))),
            _ => Err(format!("it is fit, or a number from {low} to {high}")),
        }
    }
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
    split: &'a str,
    tta: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Top>,
    #[serde(rename = "macro")]
    macro_average: Average,
    #[serde(rename = "weighted")]
    weighted_average: Average,
    calibration: Calibration,
    #[serde(skip_serializing_if = "Option::is_none")]
    scaled: Option<&'a Scaled>,
}

#[derive(Serialize)]
struct NamedClass<'a> {
    class: &'a str,
    #[serde(flatten)]
    metrics: ClassMetrics,
}

/// How often the class was among the `k` likeliest.
#[derive(Serialize)]
struct Top {
    k: usize,
    accuracy: f64,
}

/// What changes when logits are divided by a temperature; no accuracy does.
#[derive(Serialize)]
struct Scaled {
    temperature: Temperature,
    /// The folder that it was fitted on; none for a temperature that was given.
    fitted_on: Option<String>,
    loss: f64,
    calibration: Calibration,
}

/// Logits and what they should have said.
#[derive(Default)]
struct Asked {
    logits: Vec<f32>,
    labels: Vec<u32>,
    items: Vec<usize>,
    failed: Vec<Skipped>,
}

impl Asked {
    fn metrics(&self, classes: usize, temperature: Temperature) -> Metrics {
        let mut tally = Tally::new(classes);
        tally.add(&temperature.scale(&self.logits), &self.labels, &self.items);
        tally.metrics()
    }
}

/// What was asked and how.
struct Question<'a> {
    gpu: &'a Gpu,
    network: &'a dyn Classifier,
    asking: Asking,
    interrupt: &'a Interrupt,
}

impl Question<'_> {
    fn ask(&self, folder: &Labelled) -> Result<Asked> {
        let mut asked = Asked::default();
        let items = folder.items.clone().into();
        let failed =
            ask(self.gpu, self.network, &items, self.asking, self.interrupt, |logits, batch| {
                asked.logits.extend_from_slice(logits);
                asked.labels.extend(&batch.labels);
                asked.items.extend(&batch.items);
            })
            .context(|| format!("evaluating on {}", folder.root.display()))?;
        if asked.labels.is_empty() {
            return Err(Error::data(&folder.root, "holds no image that can be read"));
        }
        let rows = asked.logits.chunks_exact(self.network.classes().len());
        for (row, &item) in rows.zip(&asked.items) {
            check_answer(&folder.items[item].path, row)?;
        }
        Ok(Asked { failed, ..asked })
    }
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let interrupt = interrupt::install();
        let root = self.data.root()?;
        let gpu = self.compute.open(&console)?;
        let network = self.model.load(&gpu, &console)?;
        let trainings = network.held_out();
        let training = trainings.first();
        let same = training.is_some_and(|training| training.is_of(&root));
        let scan = |split: Option<&str>| {
            // Of other images nothing was held out; who knows better says so, where the network does not.
            let training = training.filter(|it| same || (it.images.is_none() && split.is_some()));
            let held_out = training.map(|training| training.options);
            let by_name = Labelled::scan(&root, network.classes(), split, held_out);
            let by_id = || Labelled::scan(&root, network.class_ids(), split, held_out);
            let found = match network.class_ids() {
                [] => by_name,
                _ => by_name.or_else(|error| by_id().map_err(|_| error)),
            };
            found.context(|| "looking for labelled images")
        };
        let labelled = scan(self.split.as_deref())?;
        let all = match self.split {
            None if labelled.held_out => "; --split all takes all",
            _ => "",
        };
        console.note(format_args!("{} images in {}{all}", labelled.items.len(), labelled.name));
        if let Some(training) = training.filter(|_| !same) {
            match &training.images {
                Some(_) if training.is_at(&root) => console.warning(
                    "these are not just the images that training held some out of (have any come, gone or been \
                     renamed?): which of them the network has not seen cannot be told",
                ),
                _ if self.split.is_some() || labelled.root != root => {}
                Some(_) => console.note(format_args!(
                    "these are not just the images of {} that the network was trained on; if some are, it \
                     has seen most of those",
                    training.data
                )),
                None => console.note(format_args!(
                    "if these are the images of {}, --split val takes those that training held out",
                    training.data
                )),
            }
        }
        if labelled.held_out && trainings.len() > 1 {
            console.warning(
                "the networks were trained with different --seed or --val-fraction: some have seen \
                 images that they are judged on",
            );
        }
        if !labelled.others.is_empty() {
            console.note(format_args!("left out {}", labelled.others));
        }
        let (batch_size, workers) = (self.model.batch_size(), self.workers);
        let question = Question {
            gpu: &gpu,
            network: &*network,
            asking: Asking { batch_size, workers, flip: self.tta },
            interrupt: &interrupt,
        };
        let asked = question.ask(&labelled)?;
        let classes = network.classes().len();
        let metrics = asked.metrics(classes, Temperature(1.0));
        let (temperature, fitted_on) = match self.temperature {
            None => (None, None),
            Some(TemperatureOption::Fixed(temperature)) => (Some(temperature), None),
            Some(TemperatureOption::Fit) => {
                let val = scan(Some("val"))
                    .context(|| "--temperature fit takes the images of val; or give a number")?;
                let of_val = match val.name == labelled.name {
                    true => None,
                    false => Some(question.ask(&val)?),
                };
                let of_val = of_val.as_ref().unwrap_or(&asked);
                let fitted = Temperature::fit(&of_val.logits, &of_val.labels, classes);
                (Some(fitted), Some(val.name))
            }
        };
        let scaled = temperature.map(|temperature| {
            let metrics = asked.metrics(classes, temperature);
            let (loss, calibration) = (metrics.loss, metrics.calibration());
            Scaled { temperature, fitted_on, loss, calibration }
        });
        let top = self.top.map(|k| Top { k: k.get(), accuracy: metrics.top(k.get()) });
        let answer = Answer {
            images: metrics.images,
            loss: metrics.loss,
            top1: metrics.top1,
            top5: metrics.top5,
            classes: network.classes(),
            per_class: named(network.classes(), metrics.per_class()),
            confusion: &metrics.confusion,
            split: &labelled.name,
            tta: self.tta,
            top,
            macro_average: metrics.macro_average(),
            weighted_average: metrics.weighted_average(),
            calibration: metrics.calibration(),
            scaled: scaled.as_ref(),
        };
        match console.is_json() {
            true => console.answer_json(&answer)?,
            false => console.answer(answer.text(&metrics))?,
        }
        let mut skips = Skips::new(&console);
        for skipped in labelled.skipped.iter().chain(&asked.failed) {
            skips.add(&skipped.path, &Error::data(&skipped.path, &skipped.reason));
        }
        skips.into_result()
    }
}

fn named(classes: &[String], metrics: Vec<ClassMetrics>) -> Vec<NamedClass<'_>> {
    let named = |(class, metrics)| NamedClass { class, metrics };
    classes.iter().map(String::as_str).zip(metrics).map(named).collect()
}

impl Answer<'_> {
    fn text(&self, metrics: &Metrics) -> String {
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let mut first = format!(
            "{} images  loss {:.4}  Acc@1 {}  Acc@5 {}",
            self.images,
            self.loss,
            percent(self.top1),
            percent(self.top5)
        );
        if let Some(Top { k, accuracy }) = self.top {
            first += &format!("  Acc@{k} {}", percent(accuracy));
        }
        let mut lines = vec![first];
        lines.push(format!("expected calibration error {} %", percent(self.calibration.ece)));
        if let Some(Scaled { temperature, fitted_on, loss, calibration }) = self.scaled {
            let origin = fitted_on.as_ref().map(|folder| format!(", fitted on {folder}"));
            lines.push(format!(
                "at temperature {:.4}{}: loss {loss:.4}, expected calibration error {} %",
                temperature.0,
                origin.unwrap_or_default(),
                percent(calibration.ece)
            ));
        }
        let lengths = self.classes.iter().map(|class| class.chars().count());
        let width = lengths.max().unwrap_or(0).max("weighted average".len());
        lines.push(String::new());
        lines.push(format!("{:>4} {:width$}  images  precision  recall     f1", "", "class"));
        let row = |index: &str, name: &str, images: u64, of: Average| {
            let Average { precision, recall, f1 } = of;
            format!(
                "{index:>4} {name:width$}  {images:>6}  {precision:>9.3}  {recall:>6.3}  {f1:>5.3}"
            )
        };
        for (index, NamedClass { class, metrics }) in self.per_class.iter().enumerate() {
            let &ClassMetrics { images, precision, recall, f1 } = metrics;
            let of = Average { precision, recall, f1 };
            lines.push(row(&index.to_string(), class, images, of));
        }
        lines.push(row("", "macro average", self.images, self.macro_average));
        lines.push(row("", "weighted average", self.images, self.weighted_average));
        lines.extend(confusion_lines(metrics, self.classes));
        lines.join("\n")
    }
}

/// The matrix, if people can read it, and the most frequent mistakes.
fn confusion_lines(metrics: &Metrics, classes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
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
    lines
}
