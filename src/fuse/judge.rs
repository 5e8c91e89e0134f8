//! One network on the device into which candidates are loaded, to be recalibrated and scored.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::FuseConfig;
use super::average::Tensors;
use super::score::{Answers, Average, Score};
use crate::Tape;
use crate::checkpoint::{Checkpoint, HostTensor};
use crate::data::{
    self, Augment, Dataset, Item, Items, Keep, Loader, Order, Room, ScanOptions, Transform,
};
use crate::error::{Context, Error, Result};
use crate::gpu::Gpu;
use crate::nn::Mode;
use crate::train::{Answer, Console, Interrupt, Network, Unreadable};

/// Bytes of decoded images that are kept, so that the next candidate need not wait for them.
const CACHE: u64 = 1 << 30;
/// Batches whose answers may be on their way.
const IN_FLIGHT: usize = 2;
/// Images a batch of statistics must have: two values a channel even where a single pixel is left.
const SMALLEST: usize = 2;

/// The images that fusions are recalibrated, chosen and reported on.
pub struct Images {
    /// The folder.
    pub root: PathBuf,
    /// The names of the classes, in the order of the labels.
    pub classes: Vec<String>,
    /// Training images, to recalibrate on.
    pub train: Items,
    /// Images to choose by.
    pub val: Items,
    /// Images to report on; often none.
    pub test: Items,
    /// How `val` was held out of the training images; none where the folder has a validation split.
    pub held_out: Option<ScanOptions>,
    /// Of which images.
    pub held_out_of: Option<String>,
    unreadable: RefCell<Unreadable>,
}

impl Images {
    /// Finds the images and tells of them.
    ///
    /// # Errors
    /// Those of [`Dataset::scan`], and [`Error::Data`] without an image to choose by.
    pub fn scan(config: &FuseConfig, console: &Console) -> Result<Self> {
        let root = config.data.root()?;
        let options = ScanOptions { val_fraction: config.val_fraction, seed: config.seed };
        let doing = || format!("looking for images in {}", root.display());
        let mut dataset = Dataset::scan(&root, &options).context(doing)?;
        let own_test = !dataset.test.is_empty();
        dataset.hold_out_test(config.test_fraction, config.seed)?;
        if dataset.val.is_empty() {
            let what = "there is no image to compare by; add val/, or raise --val-fraction";
            return Err(Error::data(root, what));
        }
        console.line(format_args!(
            "data: {} classes in {}: train {}, val {}, test {}{}",
            dataset.classes.len(),
            root.display(),
            dataset.train.len(),
            dataset.val.len(),
            dataset.test.len(),
            match (dataset.test.len(), own_test) {
                (0, _) =>
                    " (no test/, so val is both chosen by and reported: a flattering number; \
                     --test-fraction 0.5 keeps half of it for the report)",
                (_, true) => "",
                (_, false) => " (held out from val)",
            }
        ));
        if let Some(warning) = dataset.left_out_warning() {
            console.warning(warning);
        }
        if !dataset.others.is_empty() {
            console.line(format_args!("  left out {}", dataset.others));
        }
        let mut unreadable = Unreadable::default();
        unreadable.tell(console, &dataset.skipped);
        let room = Arc::new(Room::new(CACHE));
        let kept = |items: Vec<Item>| Items::keeping(items, None, Keep::Prepared, &room);
        Ok(Self {
            root,
            classes: dataset.classes,
            train: kept(dataset.train),
            val: kept(dataset.val),
            test: kept(dataset.test),
            held_out: dataset.held_out,
            held_out_of: dataset.held_out_of,
            unreadable: unreadable.into(),
        })
    }

    /// Numbers the classes in the order of `classes`, which has the same names.
    pub fn order_classes(&mut self, classes: &[String]) {
        let of = |class: &String| classes.iter().position(|name| name == class);
        let labels: Vec<u32> =
            self.classes.iter().map(|class| of(class).unwrap_or_default() as u32).collect();
        for split in [&mut self.train, &mut self.val, &mut self.test] {
            *split = split.relabelled(&labels);
        }
        self.classes = classes.to_vec();
    }
}

/// How a candidate did.
#[derive(Clone)]
pub struct Measured {
    /// On the images to choose by.
    pub val: Answers,
    /// On the images to report on, where there are such.
    pub test: Option<Answers>,
}

impl Measured {
    /// What several networks say together.
    pub fn joined(several: &[&Self], average: Average) -> Self {
        let of = |split: fn(&Self) -> Option<&Answers>| {
            let answers: Option<Vec<&Answers>> = several.iter().map(|m| split(m)).collect();
            answers.map(|answers| Answers::joined(&answers, average))
        };
        Self {
            val: of(|measured| Some(&measured.val)).expect("all were measured on val"),
            test: of(|measured| measured.test.as_ref()),
        }
    }

    /// How good the answers are.
    pub fn scores(&self) -> Scores {
        Scores { val: self.val.score(), test: self.test.as_ref().map(Answers::score) }
    }
}

/// How good a candidate's answers are.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scores {
    /// On the images to choose by.
    pub val: Score,
    /// On the images to report on, where there are such.
    pub test: Option<Score>,
}

/// What batch-norm statistics were computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recalibration {
    /// Training images.
    pub images: usize,
    /// The batches they came in; statistics are means over these.
    pub batches: usize,
    /// Images of a batch.
    pub batch_size: usize,
}

/// One network on the device into which candidates are loaded.
pub struct Judge<'a> {
    gpu: &'a Gpu,
    console: &'a Console,
    interrupt: &'a Interrupt,
    network: Network,
    batch_size: usize,
    workers: usize,
    seed: u64,
}

impl<'a> Judge<'a> {
    /// A judge of networks like `checkpoint`, on inputs of `image_size` × `image_size` pixels.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(
        gpu: &'a Gpu,
        config: &FuseConfig,
        checkpoint: &Checkpoint,
        image_size: u32,
        console: &'a Console,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let network = Network::from_checkpoint(gpu, checkpoint, Some(image_size))?;
        let batch_size = network.images_at_a_time(gpu, config.batch_size);
        let (workers, seed) = (config.workers, config.seed);
        Ok(Self { gpu, console, interrupt, network, batch_size, workers, seed })
    }

    /// Side of the square input in pixels.
    pub fn image_size(&self) -> u32 {
        self.network.image_size
    }

    fn load(&self, tensors: &Tensors) -> Result<()> {
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        self.network.net.load(self.gpu, &tensors.collect())
    }

    /// Scores a candidate on the images to choose by and to report on.
    ///
    /// # Errors
    /// [`Error::Interrupted`], too many unreadable images, and what the device reported.
    pub fn measure(&self, tensors: &Tensors, images: &Images) -> Result<Measured> {
        self.load(tensors)?;
        let val = self.answers(images, &images.val)?;
        let test = match images.test.is_empty() {
            true => None,
            false => Some(self.answers(images, &images.test)?),
        };
        Ok(Measured { val, test })
    }

    fn answers(&self, images: &Images, split: &Items) -> Result<Answers> {
        let mut answers = Answers::new(self.network.classes.len());
        let mut pending: VecDeque<(Answer, Vec<u32>)> = VecDeque::new();
        let mut settle = |(answer, labels): (Answer, Vec<u32>)| -> Result<()> {
            answers.add(&answer.wait()?, &labels);
            Ok(())
        };
        self.for_each(images, split, false, |batch| {
            let answer = self.network.evaluate(self.gpu, &batch.pixels, batch.labels.len())?;
            pending.push_back((answer, batch.labels.clone()));
            match pending.len() > IN_FLIGHT {
                true => pending.pop_front().map_or(Ok(()), &mut settle),
                false => Ok(()),
            }
        })?;
        pending.into_iter().try_for_each(settle)?;
        Ok(answers)
    }

    /// Computes a candidate's batch-norm statistics anew: the mean, over batches of training images
    /// without augmentation, of the mean and the unbiased variance of each, as PyTorch's
    /// `torch.optim.swa_utils.update_bn` does. The network runs on the device by the statistics of
    /// each batch; the means over batches are taken here, in f64.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no batch of two images, [`Error::Interrupted`], too many
    /// unreadable images, and what the device reported.
    pub fn recalibrate(&self, tensors: &mut Tensors, images: &Images) -> Result<Recalibration> {
        self.load(tensors)?;
        let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let (mut seen, mut batches) = (0, 0);
        self.for_each(images, &images.train, true, |batch| {
            let count = batch.labels.len();
            if count < SMALLEST {
                return Ok(());
            }
            let (gpu, network) = (self.gpu, &self.network);
            let pixels = network.upload(gpu, &batch.pixels)?;
            let tape = Tape::no_grad(gpu);
            let input = network.input(&tape, &pixels, count)?;
            network.net.forward(&tape, &input, Mode::BATCH_STATISTICS)?;
            for (name, values) in network.net.running_statistics(gpu)? {
                let sum = sums.entry(name).or_insert_with(|| vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
            }
            seen += count;
            batches += 1;
            Ok(())
        })?;
        if batches == 0 {
            let what = "there are no two training images in a batch to recalibrate batch norm on; \
                        raise --batch-size, or leave the statistics with --no-recalibrate";
            return Err(Error::Usage(what.into()));
        }
        for (name, sum) in sums {
            let mean = sum.iter().map(|sum| (sum / batches as f64) as f32).collect();
            tensors.insert(name, HostTensor::f32([sum.len()], mean));
        }
        for (name, tensor) in tensors.iter_mut() {
            if name.ends_with(".num_batches_tracked") {
                *tensor = HostTensor::scalar(batches as i64);
            }
        }
        Ok(Recalibration { images: seen, batches, batch_size: self.batch_size })
    }

    /// Hands over every batch, in an order that is always the same: the list's own, or one shuffled
    /// once and for all. Statistics need the latter, because a batch of one class is not typical.
    fn for_each(
        &self,
        images: &Images,
        split: &Items,
        shuffle: bool,
        mut take: impl FnMut(&data::Batch) -> Result<()>,
    ) -> Result<()> {
        let (size, batch_size) = (self.network.image_size, self.batch_size);
        let order = Order { seed: self.seed, epoch: 0, shuffle, batch_size, drop_last: false };
        let transform = Transform { size, augment: Augment::None, auto_augment: None };
        let batches = order.batches(split.len());
        for batch in Loader::new(split.clone(), batches, transform, 0, 0, self.workers)? {
            self.interrupt.check()?;
            let batch = batch?;
            images.unreadable.borrow_mut().tell(self.console, &batch.failed);
            if !batch.labels.is_empty() {
                take(&batch)?;
            }
        }
        Ok(())
    }
}
