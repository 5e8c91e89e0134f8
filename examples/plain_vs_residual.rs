//! Why residual networks: the degradation experiment of He et al. (2015) in small. Two networks of
//! 56 layers with the same initial weights see the same images in the same order. They differ in one
//! thing: whether a block adds its input to its output. The plain one trains to a higher loss, which
//! no over-fitting explains.
//!
//!     cargo run --release --example plain_vs_residual [STEPS]
//!
//! Draws `plain_vs_residual.png`. The networks are the paper's for CIFAR-10 (section 4.2: three stages
//! of 3×3 convolutions, depth 6n + 2) at half its width and resolution; where a stage begins, and
//! shapes change, neither has a shortcut, so that both have the same parameters.

mod common;

use std::path::Path;

use common::{Clipart, Net, Recipe, argument, bundled, mean, train};
use wgrad::data::Augment;
use wgrad::gpu::Gpu;
use wgrad::nn::Parameters;
use wgrad::nn::arch::{ConvNorm, Entry, Kind};
use wgrad::ops::{BatchNorm, BatchNormState, Conv2d, conv2d_batch_norm, global_avg_pool, linear};
use wgrad::optim::Algorithm;
use wgrad::optim::schedule::Schedule;
use wgrad::report::{Curve, Ink, curves, write_charts};
use wgrad::{Result, Shape, Tape, Tensor, Var};

/// Blocks a stage: 6·9 + 2 layers in all.
const BLOCKS: usize = 9;
/// Channels of the three stages; the paper has 16, 32, 64.
const CHANNELS: [usize; 3] = [8, 16, 32];
/// Side of the images in pixels.
const SIZE: u32 = 32;
/// Steps that the curves and the last numbers are averaged over.
const WINDOW: usize = 20;

/// A convolution and the batch norm after it.
struct Layer {
    spec: ConvNorm,
    /// Running mean and variance.
    running: Tensor,
}

/// A stack of blocks of two layers each.
struct Deep {
    shortcuts: bool,
    parameters: Parameters,
    stem: Layer,
    blocks: Vec<[Layer; 2]>,
}

impl Deep {
    fn new(gpu: &Gpu, classes: usize, shortcuts: bool) -> Result<Self> {
        let mut entries = Vec::new();
        let mut layer = |name: String, [in_channels, out_channels]: [usize; 2], stride: usize| {
            let norm = format!("{name}.norm");
            let spec = ConvNorm {
                conv: name,
                norm,
                in_channels,
                out_channels,
                kernel: 3,
                stride,
                padding: 1,
            };
            entries.extend(spec.entries());
            let start = [vec![0.0; out_channels], vec![1.0; out_channels]].concat();
            let running = Tensor::from_host(gpu, Shape::matrix(2, out_channels), &start)?;
            Ok(Layer { spec, running })
        };
        let stem = layer("stem".into(), [3, CHANNELS[0]], 2)?;
        let mut blocks = Vec::new();
        let mut from = CHANNELS[0];
        for (stage, to) in CHANNELS.into_iter().enumerate() {
            for block in 0..BLOCKS {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                blocks.push([
                    layer(format!("{stage}.{block}.a"), [from, to], stride)?,
                    layer(format!("{stage}.{block}.b"), [to, to], 1)?,
                ]);
                from = to;
            }
        }
        entries.push(Entry::new("fc.weight", [classes, from], Kind::LinearWeight));
        entries.push(Entry::new("fc.bias", [classes], Kind::LinearBias));
        let mut parameters = Parameters::of(gpu, &entries);
        parameters.initialise(gpu, from, 0)?;
        parameters.require_gradients(gpu);
        Ok(Self { shortcuts, parameters, stem, blocks })
    }
}

impl Net for Deep {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn logits(&self, tape: &Tape, images: &Var, training: bool) -> Result<Var> {
        let parameter = |name: &str| self.parameters.var(tape, name);
        // relu(norm(conv(x)) + shortcut)
        let layer = |x: &Var, Layer { spec, running }: &Layer, shortcut: Option<&Var>| {
            let weight = parameter(&format!("{}.weight", spec.conv));
            let gamma = &parameter(&format!("{}.weight", spec.norm));
            let beta = &parameter(&format!("{}.bias", spec.norm));
            let conv = Conv2d { stride: [spec.stride; 2], padding: [spec.padding; 2] };
            let state = BatchNormState { gamma, beta, running };
            let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu: true };
            conv2d_batch_norm(tape, x, &weight, conv, state, shortcut, options)
        };
        let mut x = layer(images, &self.stem, None)?;
        for [first, second] in &self.blocks {
            let same = first.spec.in_channels == second.spec.out_channels;
            let shortcut = Some(&x).filter(|_| self.shortcuts && same);
            x = layer(&layer(&x, first, None)?, second, shortcut)?;
        }
        let features = global_avg_pool(tape, &x)?;
        linear(tape, &features, &parameter("fc.weight"), Some(&parameter("fc.bias")))
    }
}

fn main() {
    common::main(|gpu| compare(gpu, argument(300)?));
}

fn compare(gpu: &Gpu, steps: usize) -> Result<()> {
    let Clipart { classes, train: images, .. } = Clipart::scan(SIZE, &bundled()?)?;
    let recipe = Recipe {
        algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
        lr: 0.02,
        schedule: Schedule::Cosine,
        batch_size: 32,
        steps,
        augment: Augment::None,
        seed: 0,
    };
    let mut all = Vec::new();
    for (name, shortcuts) in [("plain", false), ("residual", true)] {
        let net = Deep::new(gpu, classes.len(), shortcuts)?;
        let losses = train(gpu, &net, &images, recipe)?;
        let last = &losses[steps.saturating_sub(WINDOW)..];
        println!(
            "{name:8}  first loss {:.3}, mean of the last {} {:.3}",
            losses[0],
            last.len(),
            mean(last)
        );
        all.extend(drawn(name, Ink::Series(1 - usize::from(shortcuts)), &losses));
    }
    let title = format!("Training loss, {} layers", 6 * BLOCKS + 2);
    let path = Path::new("plain_vs_residual.png");
    write_charts(path, &[curves(&title, "step", true, &all)])?;
    println!("drawn in {}", path.display());
    Ok(())
}

/// Every step's loss, faintly, and the mean of those around it.
fn drawn(name: &str, ink: Ink, losses: &[f64]) -> [Curve; 2] {
    let each = losses.iter().enumerate().map(|(step, &loss)| (step as f64, loss)).collect();
    let means = losses.windows(WINDOW).enumerate();
    let smooth = means.map(|(step, window)| ((step + WINDOW / 2) as f64, mean(window))).collect();
    [
        Curve { name: String::new(), points: each, ink, faint: true },
        Curve { name: name.into(), points: smooth, ink, faint: false },
    ]
}
