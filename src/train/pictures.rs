//! Which images of a run are shown, and when its report is drawn anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use image::RgbImage;
use serde_json::Value;

use super::grad_cam::{Activations, layer_for};
use super::leg::Leg;
use super::network::Network;
use super::run::{Images, Run};
use super::run_dir::read_json;
use super::source::Source;
use super::validate::in_order;
use crate::data::{Item, Items};
use crate::error::{Error, Result};
use crate::metrics::{Answered, Metrics};
use crate::report::tensorboard::Events;
use crate::report::{
    Example, History, Ink, Judged, PAGE, Report, Shown, Standing, Tile, heated, restate, writable,
    write_train_batch,
};

/// Kinds of mistakes shown, and images of each.
const CONFUSED: (usize, usize) = (6, 4);
/// Images of the largest losses.
const LOSSES: usize = 12;
/// Images in `val_predictions.jpg`.
const SAMPLE: usize = 16;
/// Wrong answers, and as many right ones, that get heat.
const HEATED: usize = 4;

/// What has been drawn already.
#[derive(Default)]
pub struct Pictures {
    /// The first batch, and whether its images were augmented.
    batch: Option<bool>,
    /// TensorBoard's file, once something is in it.
    pub(super) events: Option<Events>,
}

/// How a network answered the validation images.
pub struct Answers<'a> {
    /// The epoch after which it did, from 1.
    pub epoch: u32,
    /// The network.
    pub network: &'a Network,
    /// What it answered.
    pub metrics: &'a Metrics,
}

impl Run<'_> {
    /// Draws the report after an epoch.
    pub(super) fn illustrate(&mut self, leg: &Leg, images: &Images, metrics: Option<&Metrics>) {
        let started = Instant::now();
        let (epoch, network) = (self.progress.epoch, leg.network);
        let judged = metrics.map(|metrics| Answers { epoch, network, metrics });
        let mut drawn = vec![self.draw_batch(leg, images)];
        drawn.push(self.draw(images, judged, Standing::UnderWay));
        if self.config.tensorboard {
            drawn.push(self.add_events(leg));
        }
        // What heat maps took is not what the next steps take.
        let largest = self.config.step_images().min(leg.source.train_images());
        let blank = leg.source.blank(network, leg.image_size, largest);
        drawn.push(leg.stepper.arrange(&leg.optimizer, &blank).map(|_| ()));
        self.tell_drawn(started, drawn);
    }

    /// Draws the report of a run that has ended, with the answers of its best weights; none without
    /// images to validate with.
    pub(super) fn illustrate_end(&self, images: &Images, best: Option<Answers>) {
        let started = Instant::now();
        let standing = match self.progress.complete {
            true => Standing::Finished,
            false => Standing::Stopped(format!(
                "Stopped after {} steps by --max-steps; --resume with more of them goes on.",
                self.progress.step
            )),
        };
        let drawn = vec![self.draw(images, best, standing)];
        self.tell_drawn(started, drawn);
    }

    /// Says in the report why the run does not go on; draws one where there is none yet.
    pub(super) fn illustrate_stop(&self, images: &Images, error: &Error) {
        let started = Instant::now();
        let standing = Standing::Stopped(match error.exit_code() {
            130 => format!("Interrupted after {} steps; --resume goes on.", self.progress.step),
            _ => format!("Stopped by an error: {}.", error.chain()),
        });
        let drawn = match self.folder.path().join(PAGE).exists() {
            true => restate(self.folder.path(), &standing, self.progress.epoch, self.epochs),
            false => self.draw(images, None, standing),
        };
        self.tell_drawn(started, vec![drawn]);
    }

    /// Neither a run nor the other pictures end because one could not be drawn.
    fn tell_drawn(&self, started: Instant, drawn: Vec<Result<()>>) {
        for error in drawn.into_iter().filter_map(Result::err) {
            self.console.warning(error.chain());
        }
        let seconds = started.elapsed().as_secs_f64();
        self.console.detail(format_args!("pictures drawn in {seconds:.2} s"));
    }

    fn draw(&self, images: &Images, answers: Option<Answers>, standing: Standing) -> Result<()> {
        let args: Value = read_json(&self.folder.args())?;
        let history = History::read(self.folder.path())?;
        let names = args["classes"].as_array().into_iter().flatten();
        let classes: Vec<String> =
            names.map(|name| name.as_str().unwrap_or_default().to_owned()).collect();
        let shown = match &answers {
            Some(answers) => self.choose(answers.network, &images.val, answers.metrics)?,
            None => Shown::default(),
        };
        let judged = |Answers { epoch, metrics, .. }| Judged { epoch, metrics, shown: &shown };
        let report = Report {
            args: &args,
            classes: &classes,
            history: &history,
            epochs: self.epochs,
            train_images: images.train.len(),
            standing,
            best: self.progress.best.as_ref().map(|best| best.epoch),
            memory_bytes: self.progress.memory_bytes,
            judged: answers.map(judged),
        };
        report.write(self.folder.path())
    }

    /// Chooses the images of the report and loads them.
    fn choose(&self, network: &Network, items: &Items, metrics: &Metrics) -> Result<Shown> {
        let choice = Choice::new(metrics);
        let images = self.load(network, items, &choice.items())?;
        let example = |answer: &Answered| {
            let path = &items[answer.item].path;
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            let image = images.get(&answer.item)?.clone();
            Some(Example { image, heat: None, name, answer: *answer })
        };
        let examples = |answers: &[Answered]| answers.iter().filter_map(example).collect();
        let mut heated_examples: Vec<Example> = examples(&choice.heated);
        self.heat(network, &mut heated_examples)?;
        Ok(Shown {
            confused: choice.confused.iter().map(|answers| examples(answers)).collect(),
            losses: examples(&choice.losses),
            sample: examples(&choice.sample),
            heated: heated_examples,
        })
    }

    /// Lays heat over what spoke for the likeliest class.
    fn heat(&self, network: &Network, examples: &mut [Example]) -> Result<()> {
        if examples.is_empty() {
            return Ok(());
        }
        let pixels: Vec<u8> = examples.iter().flat_map(|it| it.image.as_raw()).copied().collect();
        let classes: Vec<usize> = examples.iter().map(|it| it.answer.predicted).collect();
        let layer = layer_for(network.image_size);
        let activations = Activations::new(self.gpu, network, &pixels, examples.len(), layer)?;
        for (example, map) in examples.iter_mut().zip(activations.heat(&classes)?) {
            example.heat = Some(heated(&example.image, &map.normalised(), map.width));
        }
        Ok(())
    }

    /// These items as the network sees them in evaluation; without those that cannot be read.
    fn load(
        &self,
        network: &Network,
        items: &Items,
        chosen: &BTreeSet<usize>,
    ) -> Result<BTreeMap<usize, RgbImage>> {
        let subset: Vec<Item> = chosen.iter().map(|&item| items[item].clone()).collect();
        let chosen: Vec<usize> = chosen.iter().copied().collect();
        let mut images = BTreeMap::new();
        let (size, batch) = (network.image_size, 16);
        for batch in in_order(&subset.into(), size, batch, self.config.workers)?.lenient() {
            let batch = batch?;
            for (&item, image) in batch.items.iter().zip(images_of(&batch.pixels, size)) {
                images.insert(chosen[item], image);
            }
        }
        Ok(images)
    }

    /// Draws the run's first batch, and once more when images are augmented.
    fn draw_batch(&mut self, leg: &Leg, images: &Images) -> Result<()> {
        let augmented = matches!(leg.source, Source::Images { .. });
        if self.pictures.batch == Some(true) || self.pictures.batch == Some(augmented) {
            return Ok(());
        }
        let (network, epoch) = (leg.network, self.progress.epoch - 1);
        let mut batches = leg.source.batches(self.config, epoch, leg.smallest);
        batches.truncate(1);
        let (pixels, labels, size) = match &leg.source {
            Source::Images { .. } => {
                let size = leg.image_size;
                let mut batches = leg.source.load(self.config, size, epoch, batches, 0)?;
                let Some(batch) = batches.next().transpose()? else { return Ok(()) };
                (batch.pixels, batch.labels, size)
            }
            Source::Features { train, .. } => {
                let items =
                    batches.iter().flatten().map(|&image| train.items[image % train.items.len()]);
                let loaded = self.load(network, &images.train, &items.collect())?;
                (
                    loaded.values().flat_map(|image| image.as_raw()).copied().collect(),
                    loaded.keys().map(|&item| images.train[item].label).collect(),
                    network.image_size,
                )
            }
        };
        let classes = writable(&network.classes);
        let label = |label: u32| vec![(classes[label as usize].clone(), Ink::Text)];
        let tiles: Vec<Tile> = images_of(&pixels, size)
            .zip(labels)
            .take(64)
            .map(|(image, class)| Tile { image, lines: label(class) })
            .collect();
        write_train_batch(self.folder.path(), &tiles)?;
        self.pictures.batch = Some(augmented);
        Ok(())
    }
}

/// Images of `size` × `size` pixels.
fn images_of(pixels: &[u8], size: u32) -> impl Iterator<Item = RgbImage> + '_ {
    let image = move |bytes: &[u8]| RgbImage::from_raw(size, size, bytes.to_vec());
    pixels.chunks_exact((size * size * 3) as usize).filter_map(image)
}

/// The answers that are shown.
struct Choice {
    confused: Vec<Vec<Answered>>,
    losses: Vec<Answered>,
    sample: Vec<Answered>,
    heated: Vec<Answered>,
}

impl Choice {
    fn new(metrics: &Metrics) -> Self {
        let mut by_loss = metrics.answers.clone();
        by_loss.sort_by(|a, b| b.loss.total_cmp(&a.loss));
        let (kinds, each) = CONFUSED;
        let of_kind = |actual: usize, predicted: usize| {
            let of_kind = move |a: &&Answered| (a.label, a.predicted) == (actual, predicted);
            by_loss.iter().filter(of_kind).take(each).copied().collect()
        };
        let mistakes = metrics.most_confused(kinds);
        let (right, wrong): (Vec<Answered>, _) =
            by_loss.iter().partition(|answer| answer.is_right());
        let mut heated: Vec<Answered> = wrong.into_iter().take(HEATED).collect();
        heated.extend(spread(&right, HEATED));
        Self {
            confused: mistakes.iter().map(|it| of_kind(it.actual, it.predicted)).collect(),
            losses: by_loss.iter().take(LOSSES).copied().collect(),
            sample: spread(&metrics.answers, SAMPLE),
            heated,
        }
    }

    /// The images that have to be loaded.
    fn items(&self) -> BTreeSet<usize> {
        let confused = self.confused.iter().flatten();
        let all = confused.chain(&self.losses).chain(&self.sample).chain(&self.heated);
        all.map(|answer| answer.item).collect()
    }
}

/// At most `count` of `answers`, evenly spread.
fn spread(answers: &[Answered], count: usize) -> Vec<Answered> {
    let count = count.min(answers.len());
    (0..count).map(|index| answers[index * answers.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Tally;

    #[test]
    fn what_is_shown_is_what_went_wrong_first() {
        // Image i has the class i % 2 and is taken for class 0, ever more surely.
        let mut tally = Tally::new(2);
        for item in 0..40 {
            tally.add(&[item as f32 / 10.0, -0.1], &[item % 2], &[item as usize]);
        }
        let choice = Choice::new(&tally.metrics());
        assert_eq!(choice.losses.len(), LOSSES);
        assert_eq!(choice.losses[0].item, 39);
        assert_eq!(choice.confused.len(), 1, "one kind of mistake");
        let items: Vec<_> = choice.confused[0].iter().map(|answer| answer.item).collect();
        assert_eq!(items, [39, 37, 35, 33]);
        assert_eq!(choice.sample.len(), SAMPLE);
        let right = choice.heated.iter().filter(|answer| answer.is_right()).count();
        assert_eq!((choice.heated.len(), right), (2 * HEATED, HEATED));
        assert!(choice.items().len() <= 40);

        let none = Choice::new(&Tally::new(2).metrics());
        assert!(none.items().is_empty());
    }
}
