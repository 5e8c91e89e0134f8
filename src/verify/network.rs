//! The whole ResNet-18 in training, against what PyTorch computed.
//!
//! The fixtures (`tests/fixtures/network`) hold ten training steps by PyTorch in f64 on images by
//! formula, from the bundled weights: losses, the first step's gradients, what became of every
//! tensor. One of them is compiled in, so that it can be checked on anybody's adapter.

use std::collections::BTreeMap;

use half::f16;
use serde::Deserialize;

use super::allowance::{Comparison, Digest, Rounded, Series};
use super::formulas::{self, CLASSES};
use super::{NETWORK, Row, Verdict};
use crate::checkpoint::{
    Checkpoint, HeadPolicy, HostData, HostTensor, IMAGENET_MEAN, IMAGENET_STD, Source,
};
use crate::error::{Error, Result};
use crate::gpu::{Download, Gpu, Slice};
use crate::nn::{BnPolicy, Mode, ResNet, Stage};
use crate::ops::case::Worst;
use crate::ops::{CrossEntropy, Targets, cross_entropy, labels, normalize};
use crate::optim::{Algorithm, Optimizer, Settings};
use crate::{Dtype, Shape, Tape, Tensor, Var};

/// Side of the images.
const SIZE: usize = 64;

/// Momentum 0.9, weight decay 1e-4, batches of four.
const SGD: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/network/resnet18_sgd.json"));

/// The case's name.
pub const NAME: &str = "resnet18, ten steps of 4 images of 64x64";

/// Trains ten steps of the fixture and says how each kind of number compares with PyTorch's.
pub fn check(gpu: &Gpu) -> Vec<Row> {
    let row = |case: &str, what: &str, verdict| Row {
        op: NETWORK,
        case: case.into(),
        kernel: String::new(),
        judged: Vec::new(),
        what: what.into(),
        verdict,
    };
    let fixture = Fixture::sgd();
    let trained = fixture.and_then(|fixture| fixture.train(gpu, &fixture.config));
    let trained = match trained {
        Ok(trained) => trained,
        Err(error @ Error::Checkpoint { .. }) => {
            return vec![row(NAME, "start", Verdict::Unsupported(error.to_string()))];
        }
        Err(error) => return vec![row(NAME, "run", Verdict::Failed(error.to_string()))],
    };
    // The worst number of each tensor.
    let mut rows: Vec<Row> = Vec::new();
    for (index, number) in trained.comparison.numbers().iter().enumerate() {
        let worst = Worst {
            share: number.share(),
            position: [index, 0, 0, 0],
            found: number.found,
            expected: number.expected,
            allowance: number.allowance,
        };
        let case = format!("{NAME}: {}", number.kind);
        match rows.last_mut().filter(|row| row.case == case && row.what == number.what) {
            Some(last) if last.share() >= Some(worst.share) => {}
            Some(last) => last.verdict = Verdict::Compared(worst),
            None => rows.push(row(&case, &number.what, Verdict::Compared(worst))),
        }
    }
    if let Err(error) = gpu.check_guards() {
        rows.push(row(NAME, "guards", Verdict::Failed(error.to_string())));
    }
    rows
}

/// Ten steps by PyTorch; `tests/fixtures/network/README.md` says what is what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    /// What was trained, and how.
    pub config: Config,
    /// Batch number and images of each step.
    batches: Vec<(u32, usize)>,
    logits: Logits,
    losses: Series,
    grad_norms: Series,
    gradients: BTreeMap<String, Digest>,
    updates: BTreeMap<String, Digest>,
    #[serde(rename = "final")]
    last: BTreeMap<String, Digest>,
    batches_tracked: i64,
}

#[derive(Clone, Debug, Deserialize)]
struct Logits {
    train: Matrix,
    eval: Matrix,
}

#[derive(Clone, Debug, Deserialize)]
struct Matrix {
    values: Vec<[f64; CLASSES]>,
    f32: f64,
}

impl Matrix {
    fn series(&self) -> Series {
        Series { values: self.values.concat(), f32: self.f32 }
    }
}

/// The settings of a fixture. One that is not known here must not pass unnoticed, hence the unknown
/// are denied and PyTorch's defaults, which wgrad does not let one change, are checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "torch.optim's names; the fixtures' README has the others")]
pub struct Config {
    pub optimizer: String,
    pub lr: f64,
    pub momentum: f64,
    pub nesterov: bool,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub norm_weight_decay: f64,
    pub label_smoothing: f32,
    pub batch_norm: String,
    pub trainable: String,
    pub clip_grad_norm: Option<f64>,
    pub l2_sp: f64,
    #[serde(rename = "last_batch")]
    _last_batch: usize,
}

impl Config {
    fn settings(&self) -> Result<Settings> {
        let algorithm = match self.optimizer.as_str() {
            "sgd" => Algorithm::Sgd { momentum: self.momentum, nesterov: self.nesterov },
            "adam" => Algorithm::Adam,
            "adamw" => Algorithm::AdamW,
            other => return Err(unknown("optimizer", other)),
        };
        let betas = (self.beta1, self.beta2, self.eps);
        if betas != (0.9, 0.999, 1e-8) {
            return Err(unknown("betas and eps", &format!("{betas:?}")));
        }
        Ok(Settings {
            algorithm,
            weight_decay: self.weight_decay,
            norm_weight_decay: self.norm_weight_decay,
            clip_grad_norm: self.clip_grad_norm,
            l2_sp: self.l2_sp,
        })
    }

    fn train_from(&self) -> Result<Stage> {
        match self.trainable.as_str() {
            "all" => Ok(Stage::Stem),
            "head" => Ok(Stage::Head),
            other => Err(unknown("trainable part", other)),
        }
    }

    fn batch_norm(&self) -> Result<BnPolicy> {
        match self.batch_norm.as_str() {
            "train" => Ok(BnPolicy::Train),
            "frozen" => Ok(BnPolicy::Frozen),
            other => Err(unknown("batch norm", other)),
        }
    }
}

fn unknown(what: &str, value: &str) -> Error {
    Error::Usage(format!("the fixture's {what} {value} is not known here"))
}

/// Images by formula and their labels, on the device.
pub struct Batch {
    /// How many.
    pub images: usize,
    /// Their side.
    pub size: usize,
    pixels: Slice,
    labels: Targets,
}

impl Batch {
    /// The batch of this number.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu, number: u32, images: usize, size: usize) -> Result<Self> {
        Self::part(gpu, number, 0, images, size)
    }

    /// Its images from `from` on, `images` of them.
    ///
    /// # Errors
    /// What the device reported.
    pub fn part(gpu: &Gpu, number: u32, from: usize, images: usize, size: usize) -> Result<Self> {
        let mut bytes = formulas::pixels(number, from + images, size);
        bytes.drain(..from * size * size * 3);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let pixels = gpu.lease(bytes.len() as u64);
        gpu.upload(&pixels, &bytes)?;
        let labels = labels(gpu, &formulas::labels(number, from + images)[from..])?;
        Ok(Self { images, size, pixels, labels })
    }

    /// The network's input.
    ///
    /// # Errors
    /// Those of [`normalize`].
    pub fn input(&self, tape: &Tape) -> Result<Var> {
        let shape = Shape::new(self.images, self.size, self.size, 3);
        let (gpu, dtype) = (tape.gpu(), Dtype::of_activations(tape.gpu()));
        let input = normalize(gpu, &self.pixels, shape, IMAGENET_MEAN, IMAGENET_STD, dtype)?;
        Ok(tape.constant(input))
    }
}

/// The ResNet-18 that the fixtures start from: the bundled one, all of it rounded to f16, with a
/// head by formula.
///
/// # Errors
/// Those of finding and reading the weights, and what the device reported.
pub fn start(gpu: &Gpu) -> Result<ResNet> {
    let path = Source::Bundled.resolve(&mut |_| ())?;
    let mut checkpoint = Checkpoint::read(path.unwrap_or_default())?;
    for tensor in checkpoint.tensors.values_mut() {
        if let HostData::F32(values) = &mut tensor.data {
            values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
    let classes: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
    let (mut tensors, _) = checkpoint.fit(&checkpoint.arch, &classes, HeadPolicy::Reset)?;
    let head = checkpoint.arch.head_entries(CLASSES).map(|entry| {
        let values = formulas::head(&entry);
        (entry.name, HostTensor::f32(entry.shape, values))
    });
    tensors.extend(head.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    ResNet::with_tensors(gpu, checkpoint.arch, CLASSES, 0, &tensors)
}

/// Logits in evaluation mode, image by image.
///
/// # Errors
/// What the device reported.
pub fn evaluate(gpu: &Gpu, net: &ResNet, batch: &Batch) -> Result<Vec<f32>> {
    let tape = Tape::no_grad(gpu);
    let logits = net.forward(&tape, &batch.input(&tape)?, Mode::EVAL)?;
    logits.value().download(gpu)
}

/// What a forward pass on the way to gradients gives.
pub struct Passed {
    /// Images × classes.
    pub logits: Tensor,
    /// The loss comes first.
    pub loss: Download,
}

/// Records forward and backward; `divisor` images share the mean loss.
///
/// # Errors
/// Those of the operations.
pub fn gradients(
    gpu: &Gpu,
    net: &ResNet,
    batch: &Batch,
    mode: Mode,
    label_smoothing: f32,
    divisor: usize,
) -> Result<Passed> {
    let seed = Tensor::from_host(gpu, Shape::vector(1), &[1.0])?;
    let tape = Tape::new(gpu);
    let logits = net.forward(&tape, &batch.input(&tape)?, mode)?;
    let options = CrossEntropy { label_smoothing, divisor: divisor as f32 };
    let output = cross_entropy(&tape, &logits, &batch.labels, options)?;
    let loss = gpu.download(output.stats.memory());
    tape.backward(&output.loss, seed)?;
    Ok(Passed { logits: logits.value().clone(), loss })
}

/// Ten steps, and how they compare.
pub struct Trained {
    /// The loss of each step, before its update.
    pub losses: Vec<f64>,
    /// PyTorch's, in f64.
    pub expected: Vec<f64>,
    /// Everything the fixture holds.
    pub comparison: Comparison,
}

impl Fixture {
    /// The one that is compiled in: SGD with momentum.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is malformed.
    pub fn sgd() -> Result<Self> {
        serde_json::from_str(SGD).map_err(|error| Error::Usage(format!("the fixture: {error}")))
    }

    /// Trains as `config` says on the fixture's batches and compares everything that is stored.
    ///
    /// # Errors
    /// Those of [`start`], and what the device reported.
    pub fn train(&self, gpu: &Gpu, config: &Config) -> Result<Trained> {
        let mut comparison = Comparison::default();
        let mut net = start(gpu)?;
        let before = net.tensors(gpu)?;
        let from = config.train_from()?;
        let mode = Mode::train_from(from, config.batch_norm()?);
        net.parameters_mut().require_gradients(gpu);
        let mut optimizer =
            Optimizer::new(gpu, net.parameters(), config.settings()?, from, |_| 1.0)?;

        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for (step, &(number, images)) in self.batches.iter().enumerate() {
            let batch = Batch::new(gpu, number, images, SIZE)?;
            optimizer.begin_step(gpu, config.lr)?;
            let passed = gradients(gpu, &net, &batch, mode, config.label_smoothing, images)?;
            net.count_batch(mode);
            if step == 0 {
                let train = passed.logits.download(gpu)?;
                comparison.absolute("logits (train)", &train, &self.logits.train.series());
                let eval = evaluate(gpu, &net, &batch)?;
                comparison.absolute("logits (eval)", &eval, &self.logits.eval.series());
            }
            optimizer.step(gpu)?;
            gpu.submit()?;

            losses.push(f64::from(passed.loss.wait_f32()?[0]));
            let all = net.parameters().download(gpu, arena(&net)?)?;
            let squares = all.iter().flatten().map(|&g| f64::from(g) * f64::from(g));
            norms.push(squares.sum::<f64>().sqrt());
            gpu.check_guards()?;
            if step == 0 {
                self.compare_gradients(&net, &all, &mut comparison);
            }
        }
        comparison.relative("losses", &losses, &self.losses);
        comparison.relative("grad_norms", &norms, &self.grad_norms);
        self.compare_tensors(&before, &net.tensors(gpu)?, &mut comparison);
        Ok(Trained { losses, expected: self.losses.values.clone(), comparison })
    }

    /// The first step's. Neither clipping nor the penalty has touched them: clipping scales on the
    /// way to the update, and the penalty is zero at the start.
    fn compare_gradients(&self, net: &ResNet, found: &[Vec<f32>], comparison: &mut Comparison) {
        let mut compared = 0;
        for (parameter, values) in net.parameters().list().iter().zip(found) {
            let values = values.iter().map(|&value| f64::from(value));
            if let Some(expected) = self.gradients.get(&parameter.name) {
                comparison.tensor("gradients", &parameter.name, values, expected, None);
                compared += 1;
            } else {
                comparison.exact("gradients", &parameter.name, values.map(f64::abs).sum(), 0.0);
            }
        }
        comparison.exact("gradients", "tensors", f64::from(compared), self.gradients.len() as f64);
    }

    fn compare_tensors(
        &self,
        before: &BTreeMap<String, HostTensor>,
        after: &BTreeMap<String, HostTensor>,
        comparison: &mut Comparison,
    ) {
        let mut compared = 0;
        for (name, after) in after {
            let before = &before[name];
            let (Some(old), Some(new)) = (before.as_f32(), after.as_f32()) else {
                let tracked = count(after) - count(before);
                comparison.exact("updates", name, tracked as f64, self.batches_tracked as f64);
                continue;
            };
            let moved = new.iter().zip(old).map(|(&new, &old)| f64::from(new) - f64::from(old));
            let (Some(update), Some(last)) = (self.updates.get(name), self.last.get(name)) else {
                comparison.exact("updates", name, moved.map(f64::abs).sum(), 0.0);
                continue;
            };
            let steps = self.batches.len();
            let rounded = Some(Rounded { steps, max: last.max, norm: last.norm });
            comparison.tensor("updates", name, moved, update, rounded);
            let values = new.iter().map(|&value| f64::from(value));
            comparison.tensor("final", name, values, last, rounded);
            compared += 1;
        }
        comparison.exact("updates", "tensors", f64::from(compared), self.updates.len() as f64);
    }
}

fn arena(net: &ResNet) -> Result<&Slice> {
    let gradients = net.parameters().gradients();
    gradients.ok_or_else(|| Error::Usage("the network has no memory for gradients".into()))
}

fn count(tensor: &HostTensor) -> i64 {
    match &tensor.data {
        HostData::I64(count) => count.first().copied().unwrap_or(0),
        _ => 0,
    }
}
