//! The network a run starts from, and how it reads images.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Config;
use super::console::Console;
use super::saving::HeldOut;
use crate::checkpoint::{
    Checkpoint, Dtype, HeadPolicy, IMAGENET_MEAN, IMAGENET_STD, LoadReport, Meta,
};
use crate::error::{Context, Error, Result};
use crate::gpu::{Gpu, Slice};
use crate::nn::{Arch, Mode, ResNet, Stage};
use crate::ops::normalize;
use crate::tensor::{self, Shape, Tensor};
use crate::{Tape, Var};

/// Side of the input where neither the options nor the weights say.
pub const DEFAULT_IMAGE_SIZE: u32 = 224;

/// A network on a device together with how images become its input and what its outputs mean.
pub struct Network {
    /// The layers.
    pub net: ResNet,
    /// What the outputs stand for.
    pub classes: Vec<String>,
    /// What else they are called; empty where the weights do not say.
    pub class_ids: Vec<String>,
    /// How images were held out of its training, if the weights say so.
    pub held_out: Option<HeldOut>,
    /// Side of the square input in pixels.
    pub image_size: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

/// What a network is, apart from its numbers: its layers, and how images become its input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reading {
    arch: String,
    classes: Vec<String>,
    image_size: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Network {
    /// What the network is, apart from its numbers.
    pub fn reading(&self) -> Reading {
        Reading {
            arch: self.net.arch().to_string(),
            classes: self.classes.clone(),
            image_size: self.image_size,
            mean: self.mean,
            std: self.std,
        }
    }

    /// The network that `reading` describes, with numbers that mean nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for an architecture that does not exist, and what the device reported.
    pub fn blank(gpu: &Gpu, reading: &Reading) -> Result<Self> {
        let arch = Arch::from_name(&reading.arch)?;
        Ok(Self {
            net: ResNet::blank(gpu, arch, reading.classes.len())?,
            classes: reading.classes.clone(),
            class_ids: Vec::new(),
            held_out: None,
            image_size: reading.image_size,
            mean: reading.mean,
            std: reading.std,
        })
    }

    /// The network that `config` asks for, with an output for each of `classes`, and what became
    /// of the weights; no report for random ones.
    ///
    /// # Errors
    /// Those of finding, reading and fitting the weights, and [`Error::Checkpoint`] if they are not
    /// finite.
    pub fn start(
        gpu: &Gpu,
        config: &Config,
        classes: &[String],
        console: &Console,
    ) -> Result<(Self, Option<LoadReport>)> {
        let mut progress = console.download(&config.weights);
        let path = config
            .weights
            .resolve(&mut progress)
            .context(|| format!("finding the weights {}", config.weights))?;
        let Some(path) = path else {
            let arch = match config.arch {
                Some(arch) => arch,
                None => Arch::from_name("resnet18")?,
            };
            let net = ResNet::new(gpu, arch, classes.len(), config.seed)?;
            if config.zero_init_residual {
                net.zero_init_residual(gpu)?;
            }
            let network = Self {
                net,
                classes: classes.to_vec(),
                class_ids: Vec::new(),
                held_out: None,
                image_size: config.image_size.unwrap_or(DEFAULT_IMAGE_SIZE),
                mean: IMAGENET_MEAN,
                std: IMAGENET_STD,
            };
            return Ok((network, None));
        };
        let doing = || format!("loading the weights {}", path.display());
        let mut checkpoint = read_finite(&path).context(doing)?;
        checkpoint.call_classes_like(classes);
        // Where this cannot be done, `fit` says what becomes of the classifier.
        let ordered = checkpoint.order_classes(classes, &"the data");
        let arch = config.arch.unwrap_or(checkpoint.arch);
        let (tensors, report) = checkpoint.fit(&arch, classes, config.head).context(doing)?;
        if let (HeadPolicy::Keep, Err(what)) = (config.head, ordered) {
            console.warning(format_args!(
                "--head keep: {} {what}; its outputs now stand for the data's classes, in their order",
                path.display()
            ));
        }
        let net = ResNet::with_tensors(gpu, arch, classes.len(), config.seed, &tensors);
        let net = net.context(doing)?;
        let network = Self {
            net,
            classes: classes.to_vec(),
            class_ids: Vec::new(),
            held_out: HeldOut::of(checkpoint.meta.provenance.as_ref()),
            image_size: config
                .image_size
                .or(checkpoint.meta.image_size)
                .unwrap_or(DEFAULT_IMAGE_SIZE),
            mean: checkpoint.meta.mean,
            std: checkpoint.meta.std,
        };
        Ok((network, Some(report)))
    }

    /// The network in a checkpoint, to be evaluated.
    ///
    /// # Errors
    /// Those of reading it; [`Error::Checkpoint`] if it has no classifier or is not finite.
    pub fn load(gpu: &Gpu, path: &Path, image_size: Option<u32>) -> Result<Self> {
        let doing = || format!("loading the weights {}", path.display());
        let checkpoint = read_finite(path).context(doing)?;
        if checkpoint.num_classes().is_none() {
            let what = "it has no classifier (fc); fine-tune it first";
            return Err(Error::checkpoint(path, what)).context(doing);
        }
        Self::from_checkpoint(gpu, &checkpoint, image_size).context(doing)
    }

    /// The network in a checkpoint that has a classifier, to be evaluated.
    ///
    /// # Errors
    /// Those of [`ResNet::load`], and what the device reported.
    pub fn from_checkpoint(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        image_size: Option<u32>,
    ) -> Result<Self> {
        let count = checkpoint.num_classes().unwrap_or(0);
        let tensors = checkpoint.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let net = ResNet::with_tensors(gpu, checkpoint.arch, count, 0, &tensors.collect())?;
        let Meta { classes, image_size: own_size, mean, std, .. } = &checkpoint.meta;
        Ok(Self {
            net,
            classes: classes
                .clone()
                .unwrap_or_else(|| (0..count).map(|class| class.to_string()).collect()),
            class_ids: checkpoint.class_ids(),
            held_out: HeldOut::of(checkpoint.meta.provenance.as_ref()),
            image_size: image_size.or(*own_size).unwrap_or(DEFAULT_IMAGE_SIZE),
            mean: *mean,
            std: *std,
        })
    }

    /// Writes the network as a checkpoint. Waits for the device.
    ///
    /// # Errors
    /// What the device or the disk reported; nothing is left behind then.
    pub fn save(&self, gpu: &Gpu, path: &Path, provenance: serde_json::Value) -> Result<()> {
        let checkpoint = Checkpoint {
            arch: self.net.arch(),
            tensors: self.net.tensors(gpu)?,
            meta: Meta {
                classes: Some(self.classes.clone()),
                image_size: Some(self.image_size),
                mean: self.mean,
                std: self.std,
                provenance: Some(provenance),
                extra: Default::default(),
            },
            dtype: Dtype::F32,
            missing: Vec::new(),
            unexpected: Vec::new(),
        };
        checkpoint.write(path, Dtype::F32).context(|| "saving the weights")
    }

    /// Leases memory for `pixels` ([n, size, size, 3] bytes) and uploads them.
    ///
    /// # Errors
    /// What the device reported.
    pub fn upload(&self, gpu: &Gpu, pixels: &[u8]) -> Result<Slice> {
        let bytes = pixels.len().next_multiple_of(4);
        let slice = gpu.lease(bytes as u64);
        match bytes == pixels.len() {
            true => gpu.upload(&slice, pixels)?,
            false => {
                let mut padded = pixels.to_vec();
                padded.resize(bytes, 0);
                gpu.upload(&slice, &padded)?;
            }
        }
        Ok(slice)
    }

    /// The input of the network for `count` uploaded images of its own size.
    ///
    /// # Errors
    /// Those of [`normalize`].
    pub fn input(&self, tape: &Tape, pixels: &Slice, count: usize) -> Result<Var> {
        self.input_of_size(tape, pixels, count, self.image_size)
    }

    /// The input of the network for `count` uploaded images of `size` × `size` pixels.
    ///
    /// # Errors
    /// Those of [`normalize`].
    pub fn input_of_size(
        &self,
        tape: &Tape,
        pixels: &Slice,
        count: usize,
        size: u32,
    ) -> Result<Var> {
        let size = size as usize;
        let shape = Shape::new(count, size, size, 3);
        let dtype = self.net.dtype();
        Ok(tape.constant(normalize(tape.gpu(), pixels, shape, self.mean, self.std, dtype)?))
    }

    /// How many of `images` images the adapter can take at a time in evaluation.
    pub fn images_at_a_time(&self, gpu: &Gpu, images: usize) -> usize {
        let tensors = self.net.arch().outputs(self.image_size as usize);
        let bytes = tensors.map(|(side, channels)| Shape::new(1, side, side, channels).bytes());
        let largest = bytes.max().unwrap_or(1);
        images.min((gpu.binding_limit() / largest) as usize).max(1)
    }

    /// Logits of `count` images given as bytes, in evaluation; they are on their way when this
    /// returns.
    ///
    /// # Errors
    /// What the device reported.
    pub fn evaluate(&self, gpu: &Gpu, pixels: &[u8], count: usize) -> Result<Answer> {
        let pixels = self.upload(gpu, pixels)?;
        let preprocessing = [self.mean, self.std].map(|numbers| numbers.map(f32::to_bits));
        let kind = (count, self.image_size, preprocessing);
        let place = pixels.place();
        let mut downloads = self.net.evaluations().record(gpu, kind, &[place], || {
            let tape = Tape::no_grad(gpu);
            let input = self.input(&tape, &pixels, count)?;
            drop(pixels);
            let logits = self.net.forward(&tape, &input, Mode::EVAL)?;
            Ok(vec![logits.value().memory().clone()])
        })?;
        gpu.submit()?;
        let download = downloads.pop().expect("there are logits");
        let shape = Shape::matrix(count, self.net.classes());
        Ok(Answer { shape, dtype: tensor::Dtype::F32, download })
    }

    /// Shape of what the stages before `first` make of `count` images: for the classifier, after the
    /// average over pixels.
    pub fn activation(&self, first: Stage, count: usize) -> Shape {
        let arch = self.net.arch();
        if first == Stage::Head {
            return Shape::matrix(count, arch.features());
        }
        let mut side = self.image_size.div_ceil(4) as usize;
        let mut channels = arch.stem().out_channels;
        for block in arch.blocks().iter().filter(|block| Stage::of(&block.name) < first) {
            for conv in &block.convs {
                side = side.div_ceil(conv.stride);
                channels = conv.out_channels;
            }
        }
        Shape::new(count, side, side, channels)
    }

    /// What the stages before `first` make of `count` images given as bytes, in evaluation; it is on
    /// its way when this returns.
    ///
    /// # Errors
    /// What the device reported.
    pub fn before(&self, gpu: &Gpu, first: Stage, pixels: &[u8], count: usize) -> Result<Answer> {
        let pixels = self.upload(gpu, pixels)?;
        let tape = Tape::no_grad(gpu);
        let input = self.input(&tape, &pixels, count)?;
        let last = Stage::ALL.into_iter().rfind(|&stage| stage < first);
        let features = match last {
            Some(Stage::Layer4) => self.net.features(&tape, &input)?,
            Some(last) => self.net.forward_between(&tape, &input, Stage::Stem, last, Mode::EVAL)?,
            None => input,
        };
        Answer::new(gpu, features.value())
    }

    /// Uploads what the stages before `first` made of `count` images.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are other than [`Network::activation`]'s many features.
    pub fn features(
        &self,
        gpu: &Gpu,
        first: Stage,
        features: &[f32],
        count: usize,
    ) -> Result<Tensor> {
        let shape = self.activation(first, count);
        let dtype = if first == Stage::Head { tensor::Dtype::F32 } else { self.net.dtype() };
        Tensor::from_host_as(gpu, shape, features, dtype)
    }

    /// The logits of images of which the stages before `first` made `features`.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn after(&self, tape: &Tape, first: Stage, features: Tensor, mode: Mode) -> Result<Var> {
        let features = tape.constant(features);
        match first {
            Stage::Head => self.net.classify(tape, &features, mode),
            first => self.net.forward_between(tape, &features, first, Stage::Head, mode),
        }
    }
}

/// Numbers on their way from the device.
pub struct Answer {
    shape: Shape,
    dtype: tensor::Dtype,
    download: crate::gpu::Download,
}

impl Answer {
    /// Submits what is recorded, and the download of `tensor`.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu, tensor: &Tensor) -> Result<Self> {
        let download = gpu.download(tensor.memory());
        gpu.submit()?;
        Ok(Self { shape: tensor.shape(), dtype: tensor.dtype(), download })
    }

    /// Waits for the numbers.
    ///
    /// # Errors
    /// What the device reported.
    pub fn wait(self) -> Result<Vec<f32>> {
        Ok(self.dtype.read(self.shape, &self.download.wait()?))
    }
}

/// Reads a checkpoint that computation survives.
///
/// # Errors
/// Those of [`Checkpoint::read`], and [`Error::Checkpoint`] naming tensors that are not finite.
pub fn read_finite(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::read(path)?;
    let broken = checkpoint.non_finite();
    if broken.is_empty() {
        return Ok(checkpoint);
    }
    let names: Vec<_> = broken.iter().take(5).map(ToString::to_string).collect();
    let more = if broken.len() > 5 { ", …" } else { "" };
    Err(Error::checkpoint(
        path,
        format!(
            "NaN or infinite values in {}{more}: the training that wrote it diverged; take an \
             earlier checkpoint",
            names.join(", ")
        ),
    ))
}
