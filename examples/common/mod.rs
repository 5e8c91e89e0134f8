//! What the examples share: images for any network, and the plainest training loop there is.

// Each example is a program of its own and takes what it needs.
#![allow(dead_code)]

use std::sync::Arc;

use wgrad::checkpoint::{Checkpoint, HeadPolicy, Source};
use wgrad::data::{Augment, Dataset, Item, Loader, Order, ScanOptions, Transform, demo_root};
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::nn::{BnPolicy, Mode, Parameters, ResNet, Stage};
use wgrad::ops::{CrossEntropy, cross_entropy, labels};
use wgrad::optim::schedule::Schedule;
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::{Error, Result, Shape, Tape, Tensor, Var};

/// Runs an example on the adapter that `WGPU_ADAPTER_NAME` names, or the best there is.
pub fn main(example: impl FnOnce(&Gpu) -> Result<()>) {
    let run = || {
        let gpu = Gpu::open(AdapterChoice::default().or_environment(), GpuOptions::default())?;
        println!("on {}", gpu.report().name);
        example(&gpu)
    };
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    }
}

/// A number given on the command line after the example's name, or `default`.
pub fn argument(default: usize) -> Result<usize> {
    let wrong = |text: String| Error::Usage(format!("{text:?} is no number; leave it out"));
    std::env::args().nth(1).map_or(Ok(default), |text| text.parse().map_err(|_| wrong(text)))
}

/// A network, as far as training it goes.
pub trait Net {
    /// What is learned.
    fn parameters(&self) -> &Parameters;

    /// Images × classes. Batch norm normalises by the batch if `training`, else by what it has seen.
    fn logits(&self, tape: &Tape, images: &Var, training: bool) -> Result<Var>;
}

/// Labelled images as networks take them.
#[derive(Clone)]
pub struct Images {
    pub items: Arc<[Item]>,
    /// Side in pixels.
    pub size: u32,
    /// Mean and deviation of the channels, scaled to 0…1, that networks are to see as 0 and 1.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// The bundled clip art: ten classes, images to train on, images to judge by.
pub struct Clipart {
    pub classes: Vec<String>,
    pub train: Images,
    pub val: Images,
}

impl Clipart {
    /// Images of `size` pixels, normalised as the bundled weights ask.
    pub fn scan(size: u32, weights: &Checkpoint) -> Result<Self> {
        let Dataset { classes, train, val, .. } =
            Dataset::scan(&demo_root()?, &ScanOptions::default())?;
        let (mean, std) = (weights.meta.mean, weights.meta.std);
        let images = |items: Vec<Item>| Images { items: items.into(), size, mean, std };
        Ok(Self { classes, train: images(train), val: images(val) })
    }
}

impl Images {
    /// An epoch's batches on the device, with their labels.
    pub fn batches<'a>(
        &'a self,
        gpu: &'a Gpu,
        order: Order,
        augment: Augment,
    ) -> Result<impl Iterator<Item = Result<(Tensor, Vec<u32>)>> + 'a> {
        let transform = Transform { size: self.size, augment, auto_augment: None };
        let batches = order.batches(self.items.len());
        let Order { seed, epoch, .. } = order;
        let loader = Loader::new(self.items.clone(), batches, transform, seed, epoch, 0)?;
        Ok(loader.map(move |batch| {
            let batch = batch?;
            let normalised = |(at, &byte): (usize, &u8)| {
                (f32::from(byte) / 255.0 - self.mean[at % 3]) / self.std[at % 3]
            };
            let values: Vec<f32> = batch.pixels.iter().enumerate().map(normalised).collect();
            let side = self.size as usize;
            let shape = Shape::new(batch.labels.len(), side, side, 3);
            Ok((Tensor::from_host(gpu, shape, &values)?, batch.labels))
        }))
    }
}

/// The images as they are, in their order.
pub const IN_ORDER: Order =
    Order { seed: 0, epoch: 0, shuffle: false, batch_size: 32, drop_last: false };

/// How a network is trained.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub algorithm: Algorithm,
    pub lr: f64,
    pub schedule: Schedule,
    pub batch_size: usize,
    pub steps: usize,
    pub augment: Augment,
    /// Decides order and augmentation.
    pub seed: u64,
}

/// Trains `net`, and returns the loss of each step before its update.
pub fn train(gpu: &Gpu, net: &impl Net, images: &Images, recipe: Recipe) -> Result<Vec<f64>> {
    let settings = Settings {
        algorithm: recipe.algorithm,
        weight_decay: 0.0,
        norm_weight_decay: 0.0,
        clip_grad_norm: None,
        l2_sp: 0.0,
    };
    let mut optimizer = Optimizer::new(gpu, net.parameters(), settings, Stage::Stem, |_| 1.0)?;
    let one = Tensor::from_host(gpu, Shape::vector(1), &[1.0])?;
    let mut losses = Vec::with_capacity(recipe.steps);
    let Recipe { batch_size, seed, .. } = recipe;
    // Batch norm learns little from a small last batch.
    let drop_last = images.items.len() >= batch_size;
    for epoch in 0.. {
        let order = Order { seed, epoch, shuffle: true, batch_size, drop_last };
        for batch in images.batches(gpu, order, recipe.augment)? {
            if losses.len() == recipe.steps {
                return Ok(losses);
            }
            let (pixels, classes) = batch?;
            let factor = recipe.schedule.factor(losses.len() as u64, recipe.steps as u64);
            optimizer.begin_step(gpu, recipe.lr * factor)?;
            let targets = labels(gpu, &classes)?;
            // From here on everything is recorded; the device begins when the loss is asked for.
            let tape = Tape::new(gpu);
            let logits = net.logits(&tape, &tape.constant(pixels), true)?;
            let options = CrossEntropy { label_smoothing: 0.0, divisor: classes.len() as f32 };
            let loss = cross_entropy(&tape, &logits, &targets, options)?.loss;
            tape.backward(&loss, one.clone())?;
            optimizer.step(gpu)?;
            losses.push(f64::from(loss.value().download(gpu)?[0]));
        }
    }
    Ok(losses)
}

/// How many of a hundred images `net` puts into the right class.
pub fn accuracy(gpu: &Gpu, net: &impl Net, images: &Images) -> Result<f64> {
    let (mut right, options) = (0.0, CrossEntropy { label_smoothing: 0.0, divisor: 1.0 });
    for batch in images.batches(gpu, IN_ORDER, Augment::None)? {
        let (pixels, classes) = batch?;
        let targets = labels(gpu, &classes)?;
        let tape = Tape::no_grad(gpu);
        let logits = net.logits(&tape, &tape.constant(pixels), false)?;
        let stats = cross_entropy(&tape, &logits, &targets, options)?.stats;
        right += f64::from(stats.download(gpu)?[1]);
    }
    Ok(100.0 * right / images.items.len() as f64)
}

/// The mean of numbers.
pub fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The weights that come with the program: a ResNet-18 that has seen Tiny ImageNet.
pub fn bundled() -> Result<Checkpoint> {
    let path = Source::Bundled.resolve(&mut |_| {})?;
    Checkpoint::read(path.ok_or_else(|| Error::Usage("no bundled weights".into()))?)
}

/// A ResNet of which the stages from `train_from` on are trained.
pub struct Residual {
    pub net: ResNet,
    pub train_from: Stage,
}

impl Residual {
    /// The network of `weights` with a new classifier.
    pub fn pretrained(
        gpu: &Gpu,
        weights: &Checkpoint,
        classes: &[String],
        seed: u64,
    ) -> Result<Self> {
        let this = Self::random(gpu, weights, classes, seed)?;
        let (tensors, _) = weights.fit(&weights.arch, classes, HeadPolicy::Reset)?;
        this.net.load(gpu, &tensors)?;
        Ok(this)
    }

    /// The same network with random weights.
    pub fn random(gpu: &Gpu, weights: &Checkpoint, classes: &[String], seed: u64) -> Result<Self> {
        let mut net = ResNet::new(gpu, weights.arch, classes.len(), seed)?;
        net.parameters_mut().require_gradients(gpu);
        Ok(Self { net, train_from: Stage::Stem })
    }
}

impl Net for Residual {
    fn parameters(&self) -> &Parameters {
        self.net.parameters()
    }

    fn logits(&self, tape: &Tape, images: &Var, training: bool) -> Result<Var> {
        let mode = match training {
            true => Mode::train_from(self.train_from, BnPolicy::Train),
            false => Mode::EVAL,
        };
        self.net.forward(tape, images, mode)
    }
}
