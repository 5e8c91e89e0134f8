//! A ResNet on the device: torchvision's names outside, one arena of parameters inside.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::arch::{Arch, BlockSpec, ConvNorm};
use super::parameters::{ALIGNMENT, Parameters, Stage};
use crate::autograd::{Tape, Var};
use crate::checkpoint::HostTensor;
use crate::gpu::{Again, Gpu, Slice};
use crate::ops::{
    BatchNorm, BatchNormState, Conv2d, Dropout, MaxPool2d, Per, add, batch_norm_max_pool, conv2d,
    conv2d_batch_norm, conv2d_with_stats, dropout, global_avg_pool, linear, relu,
};
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

/// What batch norm does in the layers that are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BnPolicy {
    /// Normalise by the batch's statistics and update the running ones.
    Train,
    /// Normalise by the running statistics and leave them alone.
    Frozen,
}

/// How a forward pass is meant.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// What batch norm does in the stages that are trained.
    pub bn: BnPolicy,
    /// The first stage that is trained: stages before it are constants with frozen batch norm. None
    /// for evaluation.
    pub train_from: Option<Stage>,
    /// Whether parameters' gradients are added to what their memory holds.
    pub accumulate: bool,
    /// Whether to keep only the inputs of blocks for the way back, and compute again what is inside.
    pub recompute: bool,
    /// Weight of a batch in the running statistics that are updated.
    pub bn_momentum: f32,
}

impl Mode {
    /// Evaluation: running statistics, no gradients.
    pub const EVAL: Self = Self {
        bn: BnPolicy::Frozen,
        train_from: None,
        accumulate: false,
        recompute: false,
        bn_momentum: BN_MOMENTUM,
    };

    /// Training of everything from `stage` on.
    pub fn train_from(stage: Stage, bn: BnPolicy) -> Self {
        Self { bn, train_from: Some(stage), ..Self::EVAL }
    }

    /// Statistics of batches: batch norm uses those of each batch and keeps nothing of earlier ones.
    pub const BATCH_STATISTICS: Self =
        Self { bn: BnPolicy::Train, train_from: Some(Stage::Stem), bn_momentum: 1.0, ..Self::EVAL };

    fn trains(&self, stage: Stage) -> bool {
        self.train_from.is_some_and(|first| stage >= first)
    }

    fn updates_statistics(&self, stage: Stage) -> bool {
        self.trains(stage) && self.bn == BnPolicy::Train
    }
}

/// What is dropped in training, at random.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// Share of the features that the classifier does not get to see, 0 up to but without 1.
    pub dropout: f32,
    /// Share of the images that skip the last block; the first block is never skipped, those between
    /// linearly between: torchvision's stochastic depth, row by row.
    pub stochastic_depth: f32,
}

/// PyTorch's defaults.
const BN_MOMENTUM: f32 = 0.1;
/// What batch norm adds to variances.
pub const BN_EPSILON: f32 = 1e-5;
/// What tells the classifier's dropout from the blocks'.
const HEAD_SITE: u32 = u32::MAX;

/// A residual network.
pub struct ResNet {
    arch: Arch,
    classes: usize,
    parameters: Parameters,
    /// Running means and variances of every batch norm.
    statistics: Slice,
    stem: Unit,
    /// Blocks of layer1 to layer4.
    layers: [Vec<Rc<Block>>; 4],
    head: Head,
    /// What is dropped in training, and the key that says which.
    noise: OnceCell<(Noise, Slice)>,
    evaluations: Again<Evaluation>,
}

/// What decides which commands evaluate a network: images, their side in pixels, and bits of what is taken from
/// them and what they are divided by.
pub(crate) type Evaluation = (usize, u32, [[u32; 3]; 2]);

struct Block {
    /// Number of the block, from 0, and its share of the way to the last.
    number: u32,
    depth: f32,
    path: Vec<Unit>,
    downsample: Option<Unit>,
}

struct Head {
    weight: usize,
    bias: usize,
}

/// A convolution and the batch norm that follows it.
struct Unit {
    stage: Stage,
    norm: String,
    weight: usize,
    gamma: usize,
    beta: usize,
    /// Running mean and variance.
    running: Tensor,
    batches_tracked: Cell<i64>,
    conv: Conv2d,
}

impl ResNet {
    /// A network with random parameters; see [`initial`](super::initial).
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu, arch: Arch, classes: usize, seed: u64) -> Result<Self> {
        Self::with_tensors(gpu, arch, classes, seed, &BTreeMap::new())
    }

    /// A network with the tensors given, as [`ResNet::load`] has them, and the parameters of
    /// [`ResNet::new`] where there is none.
    ///
    /// # Errors
    /// Those of [`ResNet::load`].
    pub fn with_tensors(
        gpu: &Gpu,
        arch: Arch,
        classes: usize,
        seed: u64,
        tensors: &BTreeMap<&str, &HostTensor>,
    ) -> Result<Self> {
        let net = Self::blank(gpu, arch, classes)?;
        let missing = |name: &str| !tensors.contains_key(name);
        net.parameters.initialise_some(gpu, arch.features(), seed, missing)?;
        net.load(gpu, tensors)?;
        Ok(net)
    }

    /// A network whose parameters are yet to be set.
    pub(crate) fn blank(gpu: &Gpu, arch: Arch, classes: usize) -> Result<Self> {
        let parameters = Parameters::new(gpu, &arch, classes);
        let blocks = arch.blocks();
        let convs = |block: &BlockSpec| {
            let convs = block.convs.iter().chain(&block.downsample);
            convs.map(|conv| statistics_bytes(conv.out_channels)).sum::<u64>()
        };
        let bytes = statistics_bytes(arch.stem().out_channels);
        let statistics = gpu.lease(bytes + blocks.iter().map(convs).sum::<u64>());
        gpu.clear(&statistics);
        let mut taken = 0;
        let mut unit = |spec: ConvNorm| {
            let bytes = statistics_bytes(spec.out_channels);
            taken += bytes;
            Unit::new(gpu, &parameters, statistics.part(taken - bytes, bytes), spec)
        };
        let stem = unit(arch.stem())?;
        let mut layers: [Vec<Rc<Block>>; 4] = Default::default();
        let last = (blocks.len() - 1).max(1) as f32;
        for (number, spec) in (0..).zip(blocks) {
            let layer = Stage::of(&spec.name) as usize - Stage::Layer1 as usize;
            layers[layer].push(Rc::new(Block {
                number,
                depth: number as f32 / last,
                path: spec.convs.into_iter().map(&mut unit).collect::<Result<_>>()?,
                downsample: spec.downsample.map(&mut unit).transpose()?,
            }));
        }
        let head =
            Head { weight: parameters.index("fc.weight"), bias: parameters.index("fc.bias") };
        let noise = OnceCell::new();
        let evaluations = Again::default();
        Ok(Self { arch, classes, parameters, statistics, stem, layers, head, noise, evaluations })
    }

    /// Sets γ of the last batch norm of every block to zero, so that each block begins as the identity
    /// of its shortcut: torchvision's `zero_init_residual` (Goyal et al. 2017).
    ///
    /// # Errors
    /// What the device reported.
    pub fn zero_init_residual(&self, gpu: &Gpu) -> Result<()> {
        for unit in self.layers.iter().flatten().filter_map(|block| block.path.last()) {
            let zeros = vec![0.0; self.parameters.list()[unit.gamma].torch_shape[0]];
            self.parameters.set(gpu, unit.gamma, &zeros)?;
        }
        Ok(())
    }

    /// Drops at random from now on, in what is trained. What is dropped follows from
    /// [`ResNet::draw`]. Later calls change nothing.
    pub fn regularise(&self, gpu: &Gpu, noise: Noise) {
        if noise != Noise::default() {
            self.noise.get_or_init(|| (noise, gpu.lease(16)));
        }
    }

    /// Says what is dropped of the images that come next, the first of which is image `row` of a
    /// batch: all of it follows from `key` and the image's place in the batch.
    ///
    /// # Errors
    /// What the device reported.
    pub fn draw(&self, gpu: &Gpu, key: [u32; 2], row: usize) -> Result<()> {
        let Some((_, memory)) = self.noise.get() else { return Ok(()) };
        gpu.upload(memory, bytemuck::cast_slice(&[key[0], key[1], row as u32, 0]))
    }

    /// Evaluations from the images on, which are the same commands for as many images as before.
    pub(crate) fn evaluations(&self) -> &Again<Evaluation> {
        &self.evaluations
    }

    /// What kind of ResNet it is.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Outputs of the classifier.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How activations, and the weights that convolutions read, are stored; the classifier and what
    /// it sees are always f32.
    pub fn dtype(&self) -> Dtype {
        self.parameters.dtype()
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The parameters, to lease memory for gradients.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The running means and variances of every batch norm, in one piece of memory.
    pub fn statistics(&self) -> &Slice {
        &self.statistics
    }

    /// How many batches each batch norm has counted.
    pub fn batches_tracked(&self) -> Vec<i64> {
        self.units().map(|unit| unit.batches_tracked.get()).collect()
    }

    /// Sets what [`ResNet::batches_tracked`] gives.
    pub fn set_batches_tracked(&self, counts: &[i64]) {
        for (unit, &count) in self.units().zip(counts) {
            unit.batches_tracked.set(count);
        }
    }

    /// Overwrites the tensors given, by torchvision's names and in its layouts.
    ///
    /// # Errors
    /// [`Error::Shape`] naming a tensor that the network does not have or has in another size.
    pub fn load(&self, gpu: &Gpu, tensors: &BTreeMap<&str, &HostTensor>) -> Result<()> {
        for (&name, tensor) in tensors {
            if name.ends_with("num_batches_tracked") {
                continue;
            }
            let data = tensor.as_f32().ok_or_else(|| wrong_tensor(name))?;
            match self.parameters.list().iter().position(|p| p.name == name) {
                Some(index) => self.parameters.set(gpu, index, data)?,
                None if name.contains(".running_") => {}
                None => return Err(wrong_tensor(name)),
            }
        }
        self.parameters.cast(gpu)?;
        for unit in self.units() {
            let read = |leaf: &str| tensors.get(format!("{}.{leaf}", unit.norm).as_str());
            if let (Some(mean), Some(var)) = (read("running_mean"), read("running_var"))
                && let (Some(mean), Some(var)) = (mean.as_f32(), var.as_f32())
            {
                unit.running.upload(gpu, &[mean, var].concat())?;
            }
            if let Some(HostTensor { data: crate::checkpoint::HostData::I64(count), .. }) =
                read("num_batches_tracked")
            {
                unit.batches_tracked.set(count.first().copied().unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Every tensor, by torchvision's names and in its layouts. Waits for the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn tensors(&self, gpu: &Gpu) -> Result<BTreeMap<String, HostTensor>> {
        let mut tensors = BTreeMap::new();
        let values = self.parameters.download(gpu, self.parameters.values())?;
        for (parameter, values) in self.parameters.list().iter().zip(values) {
            let tensor = HostTensor::f32(parameter.torch_shape.clone(), values);
            tensors.insert(parameter.name.clone(), tensor);
        }
        for (name, data) in self.running_statistics(gpu)? {
            tensors.insert(name, HostTensor::f32([data.len()], data));
        }
        for unit in self.units() {
            let count = HostTensor::scalar(unit.batches_tracked.get());
            tensors.insert(format!("{}.num_batches_tracked", unit.norm), count);
        }
        Ok(tensors)
    }

    /// Every running mean and running variance, by torchvision's names. Waits for the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn running_statistics(&self, gpu: &Gpu) -> Result<Vec<(String, Vec<f32>)>> {
        let downloads: Vec<_> =
            self.units().map(|unit| (unit, gpu.download(unit.running.memory()))).collect();
        let mut statistics = Vec::with_capacity(2 * downloads.len());
        for (unit, download) in downloads {
            let running = unit.running.unpad(&download.wait_f32()?);
            let (mean, var) = running.split_at(running.len() / 2);
            statistics.push((format!("{}.running_mean", unit.norm), mean.to_vec()));
            statistics.push((format!("{}.running_var", unit.norm), var.to_vec()));
        }
        Ok(statistics)
    }

    /// Logits, a matrix of images × classes, of normalised images `(n, h, w, 3)`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images are too small for the network.
    pub fn forward(&self, tape: &Tape, images: &Var, mode: Mode) -> Result<Var> {
        self.forward_between(tape, images, Stage::Stem, Stage::Head, mode)
    }

    /// Runs the stages `from` to `to`, both included, on the output of the stage before `from`.
    ///
    /// # Errors
    /// Those of [`ResNet::forward`].
    pub fn forward_between(
        &self,
        tape: &Tape,
        input: &Var,
        from: Stage,
        to: Stage,
        mode: Mode,
    ) -> Result<Var> {
        let mut x = input.clone();
        for stage in Stage::ALL.into_iter().filter(|stage| (from..=to).contains(stage)) {
            x = self.stage(tape, stage, x, mode)?;
        }
        Ok(x)
    }

    /// What [`ResNet::forward_between`] gives after layer4, averaged over pixels: the features that
    /// the classifier sees, images × [`Arch::features`].
    ///
    /// # Errors
    /// Those of [`ResNet::forward`].
    pub fn features(&self, tape: &Tape, images: &Var) -> Result<Var> {
        let x = self.forward_between(tape, images, Stage::Stem, Stage::Layer4, Mode::EVAL)?;
        global_avg_pool(tape, &x)
    }

    /// The classifier on features.
    ///
    /// # Errors
    /// [`Error::Shape`] if the features are another network's.
    pub fn classify(&self, tape: &Tape, features: &Var, mode: Mode) -> Result<Var> {
        tape.enter("fc");
        let weight =
            self.parameters.parameter(tape, self.head.weight, mode.trains(Stage::Head), mode);
        let bias = self.parameters.parameter(tape, self.head.bias, mode.trains(Stage::Head), mode);
        match self.noise.get() {
            Some((noise, key)) if noise.dropout > 0.0 && mode.trains(Stage::Head) => {
                let options = Dropout { p: noise.dropout, per: Per::Element, site: HEAD_SITE };
                let features = dropout(tape, features, key, options)?;
                linear(tape, &features, &weight, Some(&bias))
            }
            _ => linear(tape, features, &weight, Some(&bias)),
        }
    }

    /// Counts a training step in the batch norms that took part in it.
    pub fn count_batch(&self, mode: Mode) {
        for unit in self.units().filter(|unit| mode.updates_statistics(unit.stage)) {
            unit.batches_tracked.set(unit.batches_tracked.get() + 1);
        }
    }

    fn stage(&self, tape: &Tape, stage: Stage, x: Var, mode: Mode) -> Result<Var> {
        match stage {
            Stage::Stem => {
                let [weight, gamma, beta] = self.stem.operands(tape, &self.parameters, mode);
                let state =
                    BatchNormState { gamma: &gamma, beta: &beta, running: &self.stem.running };
                let options = batch_norm_options(mode, stage, true);
                let pool = MaxPool2d { kernel: [3; 2], stride: [2; 2], padding: [1; 2] };
                let (y, stats) = if options.training {
                    conv2d_with_stats(tape, &x, &weight, self.stem.conv)?
                } else {
                    (conv2d(tape, &x, &weight, None, self.stem.conv)?, None)
                };
                batch_norm_max_pool(tape, &y, state, stats, options, pool)
            }
            Stage::Head => {
                let features = global_avg_pool(tape, &x)?;
                self.classify(tape, &features, mode)
            }
            layer => {
                let blocks = &self.layers[layer as usize - Stage::Layer1 as usize];
                blocks.iter().try_fold(x, |x, block| self.block(tape, block, x, mode, stage))
            }
        }
    }

    fn block(
        &self,
        tape: &Tape,
        block: &Rc<Block>,
        x: Var,
        mode: Mode,
        stage: Stage,
    ) -> Result<Var> {
        if !(mode.recompute && mode.trains(stage)) {
            return block.forward(tape, &self.parameters, self.noise.get(), &x, mode);
        }
        let (block, parameters) = (block.clone(), self.parameters.clone());
        let noise = self.noise.get().cloned();
        tape.recompute(&x, move |tape, x, again| {
            // The running statistics move once.
            let bn_momentum = if again { 0.0 } else { mode.bn_momentum };
            let mode = Mode { bn_momentum, ..mode };
            block.forward(tape, &parameters, noise.as_ref(), x, mode)
        })
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        let blocks = self.layers.iter().flatten();
        let units = blocks.flat_map(|block| block.path.iter().chain(&block.downsample));
        std::iter::once(&self.stem).chain(units)
    }
}

impl Block {
    fn forward(
        &self,
        tape: &Tape,
        parameters: &Parameters,
        noise: Option<&(Noise, Slice)>,
        x: &Var,
        mode: Mode,
    ) -> Result<Var> {
        let unit = |unit: &Unit, x: &Var, residual: Option<&Var>, relu: bool| {
            let [weight, gamma, beta] = unit.operands(tape, parameters, mode);
            let state = BatchNormState { gamma: &gamma, beta: &beta, running: &unit.running };
            let options = batch_norm_options(mode, unit.stage, relu);
            conv2d_batch_norm(tape, x, &weight, unit.conv, state, residual, options)
        };
        let residual = match &self.downsample {
            Some(downsample) => unit(downsample, x, None, false)?,
            None => x.clone(),
        };
        let (last, path) = self.path.split_last().expect("a block has convolutions");
        let mut y = x.clone();
        for inner in path {
            y = unit(inner, &y, None, true)?;
        }
        let depth = |noise: &Noise| noise.stochastic_depth * self.depth;
        match noise {
            Some((noise, key)) if depth(noise) > 0.0 && mode.trains(last.stage) => {
                let options = Dropout { p: depth(noise), per: Per::Row, site: self.number };
                let y = unit(last, &y, None, false)?;
                relu(tape, &add(tape, &residual, &dropout(tape, &y, key, options)?)?)
            }
            _ => unit(last, &y, Some(&residual), true),
        }
    }
}

impl Parameters {
    /// A parameter on a tape: differentiated by if it is trained and has room for a gradient.
    fn parameter(&self, tape: &Tape, index: usize, trains: bool, mode: Mode) -> Var {
        self.attach(tape, index, self.value(index), trains, mode)
    }

    /// The weight of a convolution on a tape, as [`Parameters::parameter`].
    fn weight(&self, tape: &Tape, index: usize, trains: bool, mode: Mode) -> Var {
        self.attach(tape, index, self.operand(index), trains, mode)
    }

    fn attach(&self, tape: &Tape, index: usize, value: Tensor, trains: bool, mode: Mode) -> Var {
        match self.gradient(index).filter(|_| trains) {
            Some(gradient) => tape.leaf_into(value, gradient, mode.accumulate),
            None => tape.constant(value),
        }
    }
}

impl Unit {
    /// The weight of the convolution, and γ and β of the batch norm.
    fn operands(&self, tape: &Tape, parameters: &Parameters, mode: Mode) -> [Var; 3] {
        tape.enter(&self.norm);
        let trains = mode.trains(self.stage);
        let weight = parameters.weight(tape, self.weight, trains, mode);
        let [gamma, beta] =
            [self.gamma, self.beta].map(|index| parameters.parameter(tape, index, trains, mode));
        [weight, gamma, beta]
    }

    fn new(gpu: &Gpu, parameters: &Parameters, running: Slice, spec: ConvNorm) -> Result<Self> {
        let channels = spec.out_channels;
        let shape = Shape::matrix(2, channels);
        let running = Tensor::view(running.part(0, shape.bytes()), shape);
        running.upload(gpu, &[vec![0.0; channels], vec![1.0; channels]].concat())?;
        Ok(Self {
            stage: Stage::of(&spec.conv),
            weight: parameters.index(&format!("{}.weight", spec.conv)),
            gamma: parameters.index(&format!("{}.weight", spec.norm)),
            beta: parameters.index(&format!("{}.bias", spec.norm)),
            running,
            batches_tracked: Cell::new(0),
            conv: Conv2d { stride: [spec.stride; 2], padding: [spec.padding; 2] },
            norm: spec.norm,
        })
    }
}

/// Bytes of a batch norm's running statistics, with a gap so that the next may be bound.
fn statistics_bytes(channels: usize) -> u64 {
    Shape::matrix(2, channels).bytes().next_multiple_of(ALIGNMENT)
}

fn batch_norm_options(mode: Mode, stage: Stage, relu: bool) -> BatchNorm {
    BatchNorm {
        training: mode.updates_statistics(stage),
        momentum: mode.bn_momentum,
        epsilon: BN_EPSILON,
        relu,
    }
}

fn wrong_tensor(name: &str) -> Error {
    Error::shape("load", format!("the network has no tensor {name} of floating-point numbers"))
}
