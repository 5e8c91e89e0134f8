//! Pictures of a run: `report.html`, `results.png`, `confusion_matrix.png`, `val_predictions.jpg`,
//! `train_batch0.jpg`, and TensorBoard's event files; curves of other commands. Nothing here knows a
//! device or a network.

mod chart;
mod drawing;
mod history;
mod matrix;
mod mosaic;
mod page;
mod raster;
pub mod tensorboard;

use std::io::{Cursor, Write};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ImageEncoder, RgbImage};
use serde_json::Value;

pub use chart::{Curve, curves, curves_over};
pub use drawing::{Drawing, Ink};
pub use history::{History, Row};
pub use mosaic::{Tile, for_people, heated, heated_part, mosaic};
pub use raster::writable;

use crate::checkpoint::write_atomically;
use crate::error::{Context, Error, Result};
use crate::metrics::{Answered, Metrics};

/// Pixels of a file to a CSS pixel.
const SCALE: f64 = 1.5;
/// The name of the page.
pub const PAGE: &str = "report.html";
/// Of a hundred.
const JPEG_QUALITY: u8 = 90;

/// Everything a report tells.
pub struct Report<'a> {
    /// `args.json`.
    pub args: &'a Value,
    /// What the outputs stand for.
    pub classes: &'a [String],
    /// What the run has brought so far.
    pub history: &'a History,
    /// Epochs in all.
    pub epochs: u32,
    /// Images to train on.
    pub train_images: usize,
    /// Whether the run goes on.
    pub standing: Standing,
    /// The best epoch, from 1.
    pub best: Option<u32>,
    /// Device memory in bytes; 0 if that is not known.
    pub memory_bytes: u64,
    /// How the network answered the validation images; none without such.
    pub judged: Option<Judged<'a>>,
}

/// Whether a run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does, so that the page looks again.
    UnderWay,
    /// Nothing is left to do.
    Finished,
    /// It stopped before that: a sentence that says where or why.
    Stopped(String),
}

/// How a network answered the validation images.
pub struct Judged<'a> {
    /// The epoch after which it did, from 1.
    pub epoch: u32,
    /// How good the answers were.
    pub metrics: &'a Metrics,
    /// Images the report shows.
    pub shown: &'a Shown,
}

/// Images as the network sees them, with its answers to them.
#[derive(Default)]
pub struct Shown {
    /// The two classes most often confused first: what was taken for what.
    pub confused: Vec<Vec<Example>>,
    /// The images with the largest losses.
    pub losses: Vec<Example>,
    /// Images spread evenly over all.
    pub sample: Vec<Example>,
    /// Right and wrong answers with heat over what the network went by.
    pub heated: Vec<Example>,
}

/// An image and the answer to it.
#[derive(Clone)]
pub struct Example {
    /// The image as the network sees it.
    pub image: RgbImage,
    /// With heat over what the network went by, where that was asked for.
    pub heat: Option<RgbImage>,
    /// The file's name.
    pub name: String,
    /// The answer.
    pub answer: Answered,
}

impl Report<'_> {
    /// Writes `report.html` and the pictures beside it, each whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) with the path.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.write_files(folder).context(|| "drawing the pictures of the run")
    }

    fn write_files(&self, folder: &Path) -> Result<()> {
        let charts = self.charts();
        write_charts(&folder.join("results.png"), &charts)?;
        if let Some(judged) = &self.judged {
            let classes = writable(self.classes);
            let matrix = matrix::confusion_picture(judged.metrics, &classes).pixels(SCALE);
            write_png(&folder.join("confusion_matrix.png"), &matrix)?;
            let tiles: Vec<Tile> = judged.shown.sample.iter().map(|e| tile(e, &classes)).collect();
            if let Some(picture) = mosaic(&tiles) {
                write_jpeg(&folder.join("val_predictions.jpg"), &picture)?;
            }
        }
        let page = self.page(&charts);
        write_atomically(folder.join(PAGE), |file| file.write_all(page.as_bytes()))
    }

    /// Loss, accuracy and learning rate over the run.
    fn charts(&self) -> [Drawing; 3] {
        let History { epochs, steps } = self.history;
        let times = self.history.step_times();
        let of_epochs = |name: &str, ink: usize, value: fn(&Row) -> f64| Curve {
            name: name.into(),
            points: epochs.iter().map(|row| (f64::from(row.epoch), value(row))).collect(),
            ink: Ink::Series(ink),
            faint: false,
        };
        let losses = times.iter().zip(steps);
        let losses = losses.map(|(&time, step)| (time, step.loss.unwrap_or(f64::NAN))).collect();
        let by_step =
            Curve { name: "each step".into(), points: losses, ink: Ink::Series(0), faint: true };
        let groups = steps.iter().map(|step| step.lr.len()).max().unwrap_or(0);
        let rates: Vec<Curve> = (0..groups)
            .map(|group| {
                let rate = |step: &history::Step| step.lr.get(group).copied().unwrap_or(f64::NAN);
                Curve {
                    name: if groups == 1 { "all".into() } else { format!("pg{group}") },
                    points: times.iter().zip(steps).map(|(&t, step)| (t, rate(step))).collect(),
                    ink: Ink::Series(group),
                    faint: false,
                }
            })
            .collect();
        let loss = [
            by_step,
            of_epochs("train", 0, |row| row.train_loss),
            of_epochs("validation", 1, |row| row.val_loss),
        ];
        let mut accuracy = vec![
            of_epochs("train", 0, |row| 100.0 * row.train_top1),
            of_epochs("validation", 1, |row| 100.0 * row.val_top1),
        ];
        if self.classes.len() > 5 {
            accuracy.push(of_epochs("validation, first five", 2, |row| 100.0 * row.val_top5));
        }
        [
            chart::curves("Loss", "epoch", true, &loss),
            chart::curves("Accuracy in %", "epoch", false, &accuracy),
            chart::curves("Learning rate", "epoch", true, &rates),
        ]
    }
}

/// An answered image with what it is and what it was taken for.
fn tile(example: &Example, classes: &[String]) -> Tile {
    let Answered { label, predicted, confidence, .. } = example.answer;
    let ink = if example.answer.is_right() { Ink::Right } else { Ink::Wrong };
    let percent = format!("{:.0}% {}", 100.0 * confidence, classes[predicted]);
    let lines = vec![(classes[label].clone(), Ink::Text), (percent, ink)];
    Tile { image: example.image.clone(), lines }
}

/// Makes the page that [`Report::write`] wrote to `folder` say that the run, of `epochs` epochs, stands
/// so after the first `done`. Everything else in it stays.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) with the path.
pub fn restate(folder: &Path, standing: &Standing, done: u32, epochs: u32) -> Result<()> {
    let path = folder.join(PAGE);
    let page = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let page = page::restated(&page, standing, done, epochs);
    write_atomically(path, |file| file.write_all(page.as_bytes()))
}

/// Writes `train_batch0.jpg`: a batch as the network sees it before normalisation.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) with the path.
pub fn write_train_batch(folder: &Path, tiles: &[Tile]) -> Result<()> {
    match mosaic(tiles) {
        Some(picture) => write_jpeg(&folder.join("train_batch0.jpg"), &picture),
        None => Ok(()),
    }
}

/// Writes drawings side by side as a PNG.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) with the path.
pub fn write_charts(path: &Path, charts: &[Drawing]) -> Result<()> {
    let mut all = Drawing::default();
    for drawing in charts {
        all.place(drawing, all.size.0, 0.0);
    }
    write_png(path, &all.pixels(SCALE))
}

/// Writes an image as PNG, whole or not at all.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) with the path.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let bytes = png(image);
    write_atomically(path, |file| file.write_all(&bytes))
}

fn write_jpeg(path: &Path, image: &RgbImage) -> Result<()> {
    let bytes = jpeg(image);
    write_atomically(path, |file| file.write_all(&bytes))
}

/// The bytes of a PNG file.
pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(
        Cursor::new(&mut bytes),
        CompressionType::Fast,
        FilterType::Adaptive,
    );
    let color = image::ExtendedColorType::Rgb8;
    let written = encoder.write_image(image.as_raw(), image.width(), image.height(), color);
    written.expect("an RGB image in memory can be written to memory");
    bytes
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(Cursor::new(&mut bytes), JPEG_QUALITY);
    image.write_with_encoder(encoder).expect("an RGB image in memory can be written to memory");
    bytes
}
