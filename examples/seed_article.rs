//! Learning from scratch against transfer learning, as the article that wgrad grew from puts it:
//! the small convolutional network of its section 4.1, with and without the residual connection
//! that its text describes and its code leaves out, and the pretrained ResNet-18 with a new `fc` of
//! section 4.2. All by Adam at 1e-3 on cross-entropy, on the bundled clip art, for as many epochs.
//!
//!     cargo run --release --example seed_article [EPOCHS]
//!
//! The five epochs that it takes by default are about two minutes of processor time on a software
//! adapter. The numbers of channels and the average over pixels that turns the last convolution's
//! output into class scores are ours.

mod common;

use common::{Clipart, Images, Net, Recipe, Residual, accuracy, argument, bundled, mean, train};
use wgrad::data::Augment;
use wgrad::gpu::Gpu;
use wgrad::nn::Parameters;
use wgrad::nn::arch::{Entry, Kind};
use wgrad::ops::{
    BatchNorm, BatchNormState, Conv2d, MaxPool2d, add, batch_norm, conv2d, global_avg_pool,
    max_pool2d, relu,
};
use wgrad::optim::Algorithm;
use wgrad::optim::schedule::Schedule;
use wgrad::{Result, Shape, Tape, Tensor, Var};

/// Channels between the convolutions.
const CHANNELS: usize = 32;
/// Side of the images in pixels.
const SIZE: u32 = 64;
/// 3×3 windows that leave height and width as they are.
const SAME: Conv2d = Conv2d { stride: [1; 2], padding: [1; 2] };
const HALVE: MaxPool2d = MaxPool2d { kernel: [2; 2], stride: [2; 2], padding: [0; 2] };

/// conv → bn → relu → pool → conv → bn (→ + input) → relu → conv → average.
struct SmallNet {
    residual: bool,
    parameters: Parameters,
    /// Running means and variances of the two batch norms.
    running: [Tensor; 2],
}

impl SmallNet {
    fn new(gpu: &Gpu, classes: usize, residual: bool) -> Result<Self> {
        let conv = |name: &str, from: usize, to: usize| {
            Entry::new(format!("{name}.weight"), [to, from, 3, 3], Kind::Conv)
        };
        let mut parameters = Parameters::of(
            gpu,
            &[
                conv("conv1", 3, CHANNELS),
                Entry::new("bn1.weight", [CHANNELS], Kind::NormWeight),
                Entry::new("bn1.bias", [CHANNELS], Kind::NormBias),
                conv("conv2", CHANNELS, CHANNELS),
                Entry::new("bn2.weight", [CHANNELS], Kind::NormWeight),
                Entry::new("bn2.bias", [CHANNELS], Kind::NormBias),
                conv("conv3", CHANNELS, classes),
            ],
        );
        parameters.initialise(gpu, CHANNELS, 0)?;
        parameters.require_gradients(gpu);
        let running = || {
            let start = [[0.0; CHANNELS], [1.0; CHANNELS]].concat();
            Tensor::from_host(gpu, Shape::matrix(2, CHANNELS), &start)
        };
        Ok(Self { residual, parameters, running: [running()?, running()?] })
    }
}

impl Net for SmallNet {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn logits(&self, tape: &Tape, images: &Var, training: bool) -> Result<Var> {
        let parameter = |name: &str| self.parameters.var(tape, name);
        let conv = |x: &Var, name: &str| {
            conv2d(tape, x, &parameter(&format!("{name}.weight")), None, SAME)
        };
        let norm = |x: &Var, name: &str, running: &Tensor| {
            let gamma = &parameter(&format!("{name}.weight"));
            let beta = &parameter(&format!("{name}.bias"));
            let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu: false };
            batch_norm(tape, x, BatchNormState { gamma, beta, running }, None, None, options)
        };

        let x = conv(images, "conv1")?;
        let x = relu(tape, &norm(&x, "bn1", &self.running[0])?)?;
        let x = max_pool2d(tape, &x, HALVE)?;
        let y = norm(&conv(&x, "conv2")?, "bn2", &self.running[1])?;
        let y = if self.residual { add(tape, &y, &x)? } else { y };
        let y = conv(&relu(tape, &y)?, "conv3")?;
        global_avg_pool(tape, &y)
    }
}

fn main() {
    common::main(|gpu| compare(gpu, argument(5)?));
}

fn compare(gpu: &Gpu, epochs: usize) -> Result<()> {
    let weights = bundled()?;
    let Clipart { classes, train, val } = Clipart::scan(SIZE, &weights)?;
    println!("{} images to learn from, {} to judge by", train.items.len(), val.items.len());
    println!("{:36}  first epoch's loss  last epoch's  right in %", "");
    let tell = |name: &str, [first, last, right]: [f64; 3]| {
        println!("{name:36}  {first:18.3}  {last:12.3}  {right:10.1}");
    };
    for (name, residual) in [("as in the code", false), ("with the residual connection", true)] {
        let net = SmallNet::new(gpu, classes.len(), residual)?;
        tell(&format!("4.1 {name}"), judge(gpu, &net, &train, &val, epochs)?);
    }
    let net = Residual::pretrained(gpu, &weights, &classes, 0)?;
    tell("4.2 pretrained ResNet-18, new fc", judge(gpu, &net, &train, &val, epochs)?);
    Ok(())
}

/// Loss of the first epoch and of the last, and accuracy after it.
fn judge(
    gpu: &Gpu,
    net: &impl Net,
    images: &Images,
    val: &Images,
    epochs: usize,
) -> Result<[f64; 3]> {
    let batch_size = 16;
    let epoch = images.items.len() / batch_size;
    let recipe = Recipe {
        algorithm: Algorithm::Adam,
        lr: 1e-3,
        schedule: Schedule::Constant,
        batch_size,
        steps: epochs * epoch,
        augment: Augment::Light,
        seed: 0,
    };
    let losses = train(gpu, net, images, recipe)?;
    let last = losses.len().saturating_sub(epoch);
    Ok([mean(&losses[..epoch.min(losses.len())]), mean(&losses[last..]), accuracy(gpu, net, val)?])
}
