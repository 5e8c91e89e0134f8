//! The statistics that a convolution gathers for batch norm on its way, by every kernel it may use,
//! against those that batch norm gathers by itself, which the operations' cases check.

use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::ops::case::{Array, EPSILON, Expected, Fill, compare, filled};
use wgrad::ops::{BatchNorm, BatchNormState, Conv2d, OPS, batch_norm, conv2d, conv2d_batch_norm};
use wgrad::{Shape, Tape, Tensor, Var};

use super::{common, name};

/// The running statistics after one step become the batch's.
const OPTIONS: BatchNorm = BatchNorm { training: true, momentum: 1.0, epsilon: 1e-5, relu: false };

struct Layer {
    x: Array,
    weight: Array,
    conv: Conv2d,
}

impl Layer {
    fn new(x: Shape, window: usize, c_out: usize, stride: usize) -> Self {
        let weight = Shape::new(window, window, x.c.next_multiple_of(4), c_out);
        Self {
            x: filled(x, Fill::Uniform(-1.0, 3.0), 1),
            weight: filled(weight, Fill::Channels(x.c), 2),
            conv: Conv2d { stride: [stride; 2], padding: [window / 2; 2] },
        }
    }

    /// The normalised output, and the batch's mean and unbiased variance.
    fn run(&self, gpu: &Gpu, fused: bool) -> [Array; 2] {
        let tape = Tape::new(gpu);
        let c = self.weight.shape.c;
        let constant = |shape, data: &[f32]| -> Var {
            tape.constant(Tensor::from_host(gpu, shape, data).unwrap())
        };
        let x = constant(self.x.shape, &self.x.to_f32());
        let weight = constant(self.weight.shape, &self.weight.to_f32());
        let gamma = constant(Shape::vector(c), &vec![1.0; c]);
        let beta = constant(Shape::vector(c), &vec![0.0; c]);
        let running = constant(Shape::matrix(2, c), &vec![0.0; 2 * c]);
        let state = BatchNormState { gamma: &gamma, beta: &beta, running: running.value() };
        let y = if fused {
            conv2d_batch_norm(&tape, &x, &weight, self.conv, state, None, OPTIONS)
        } else {
            conv2d(&tape, &x, &weight, None, self.conv)
                .and_then(|y| batch_norm(&tape, &y, state, None, None, OPTIONS))
        };
        [y.unwrap(), running].map(|var| {
            let numbers = var.value().download(gpu).unwrap();
            Array::new(var.shape(), numbers.into_iter().map(f64::from).collect())
        })
    }
}

/// Both are within the rounding errors of a sum over the pixels; sizes are about one.
fn expected(values: Array, pixels: usize) -> Expected {
    let magnitudes: Vec<f64> = values.data.iter().map(|value| 4.0 + value.abs()).collect();
    Expected::sums(values, &magnitudes, pixels)
}

#[test]
fn every_convolution_gathers_the_statistics_of_its_output() {
    let passes = OPS.iter().find(|op| op.name == "conv2d").map(|op| (op.cases)()[0].passes);
    let forward = passes.expect("conv2d chooses its kernels")[0];
    let layers = [
        // Rows and columns that fill no tile, and several tiles of each.
        Layer::new(Shape::new(3, 9, 7, 16), 3, 24, 1),
        Layer::new(Shape::new(2, 19, 17, 3), 7, 9, 2),
        Layer::new(Shape::new(2, 13, 11, 20), 1, 140, 1),
        Layer::new(Shape::new(1, 2, 1, 8), 3, 8, 1),
    ];
    for gpu in common::every_gpu(GpuOptions { guards: true, ..Default::default() }) {
        for layer in &layers {
            let [y, running] = layer.run(&gpu, false);
            let pixels = y.shape.pixels();
            let expected = [expected(y, pixels), expected(running, pixels)];
            let kernels = gpu.offered_kernels(forward);
            assert!(kernels.len() >= 4, "{kernels:?}");
            for kernel in kernels {
                gpu.force_kernel(forward, Some(kernel));
                let found = layer.run(&gpu, true);
                gpu.force_kernel(forward, None);
                gpu.check_guards().unwrap();
                for (found, expected) in found.iter().zip(&expected) {
                    let worst = compare(&found.to_f32(), expected);
                    let shape = layer.x.shape;
                    assert!(worst.share <= 1.0, "{kernel} of {shape} on {}: {worst}", name(&gpu));
                }
            }
        }
    }
}

/// A wrong divisor of the variance, by one pixel in hundreds, is seen.
#[test]
fn wrong_statistics_are_seen() {
    let right = filled(Shape::matrix(2, 24), Fill::Uniform(0.5, 2.0), 3);
    let expected = expected(right.clone(), 400);
    assert!(compare(&right.map(|v| v * (1.0 + EPSILON)).to_f32(), &expected).share <= 1.0);
    assert!(compare(&right.map(|v| v * 401.0 / 400.0).to_f32(), &expected).share > 1.0);
}
