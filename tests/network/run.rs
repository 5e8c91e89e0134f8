//! A network and its optimizer, driven as the trainer drives them.

use half::f16;
use wgrad::checkpoint::{Checkpoint, HeadPolicy, HostData, HostTensor};
use wgrad::gpu::{Download, Gpu, Slice};
use wgrad::nn::{Mode, ResNet};
use wgrad::ops::{CrossEntropy, cross_entropy, labels, normalize};
use wgrad::{Shape, Tape, Tensor, Var};

use super::formulas::{self, CLASSES};

/// Images and their labels on the device.
pub struct Batch {
    pub images: usize,
    pub size: usize,
    pixels: Slice,
    labels: Slice,
}

impl Batch {
    /// The images `from..from + images` of a batch by formula.
    pub fn part(gpu: &Gpu, batch: u32, from: usize, images: usize, size: usize) -> Self {
        let mut bytes = formulas::pixels(batch, from + images, size);
        bytes.drain(..from * size * size * 3);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let pixels = gpu.lease(bytes.len() as u64);
        gpu.upload(&pixels, &bytes).unwrap();
        let labels = labels(gpu, &formulas::labels(batch, from + images)[from..]).unwrap();
        Self { images, size, pixels, labels }
    }

    pub fn new(gpu: &Gpu, batch: u32, images: usize, size: usize) -> Self {
        Self::part(gpu, batch, 0, images, size)
    }

    /// The network's input.
    pub fn input(&self, tape: &Tape) -> Var {
        let shape = Shape::new(self.images, self.size, self.size, 3);
        let (mean, std) = (wgrad::checkpoint::IMAGENET_MEAN, wgrad::checkpoint::IMAGENET_STD);
        tape.constant(normalize(tape.gpu(), &self.pixels, shape, mean, std).unwrap())
    }
}

/// The ResNet-18 that the training fixtures start from: the bundled one, all of it rounded to f16,
/// with another head.
pub fn start(gpu: &Gpu) -> ResNet {
    let path = super::package("weights/resnet18-tiny-imagenet.safetensors");
    let mut checkpoint = Checkpoint::read(path).unwrap();
    for tensor in checkpoint.tensors.values_mut() {
        if let HostData::F32(values) = &mut tensor.data {
            values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
    let classes: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
    let (mut tensors, _) = checkpoint.fit(&checkpoint.arch, &classes, HeadPolicy::Reset).unwrap();
    let head = checkpoint.arch.head_entries(CLASSES);
    let head = head.map(|entry| {
        let values = formulas::head(&entry);
        (entry.name, HostTensor::f32(entry.shape, values))
    });
    tensors.extend(head.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    let net = ResNet::new(gpu, checkpoint.arch, CLASSES, 0).unwrap();
    net.load(gpu, &tensors).unwrap();
    net
}

/// Logits in evaluation mode, image by image.
pub fn evaluate(gpu: &Gpu, net: &ResNet, batch: &Batch) -> Vec<f32> {
    let tape = Tape::no_grad(gpu);
    let logits = net.forward(&tape, &batch.input(&tape), Mode::EVAL).unwrap();
    logits.value().download(gpu).unwrap()
}

/// What a forward pass on the way to gradients gives.
pub struct Passed {
    pub logits: Tensor,
    pub loss: Download,
}

/// Records forward and backward; `divisor` images share the mean loss.
pub fn gradients(
    gpu: &Gpu,
    net: &ResNet,
    batch: &Batch,
    mode: Mode,
    label_smoothing: f32,
    divisor: usize,
) -> Passed {
    let seed = Tensor::from_host(gpu, Shape::vector(1), &[1.0]).unwrap();
    let tape = Tape::new(gpu);
    let logits = net.forward(&tape, &batch.input(&tape), mode).unwrap();
    let options = CrossEntropy { label_smoothing, divisor: divisor as f32 };
    let output = cross_entropy(&tape, &logits, &batch.labels, options).unwrap();
    let loss = gpu.download(output.stats.memory());
    tape.backward(&output.loss, seed).unwrap();
    Passed { logits: logits.value().clone(), loss }
}
