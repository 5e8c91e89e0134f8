//! Three steps of each optimiser, and a smoothed loss, against numbers that torch 2.15 printed: the
//! references of the operations are written after the same formulas as the kernels, torch is not.
//!
//! ```python
//! def run(make, clip=None):
//!     p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 4.0]))
//!     optimizer = make([p])
//!     for k in range(3):
//!         p.grad = torch.tensor([0.5, -1.0, 2.0, 0.25]) * (k + 1)
//!         if clip:
//!             torch.nn.utils.clip_grad_norm_([p], clip)
//!         optimizer.step()
//!     print(p.data.tolist())
//! ```

mod common;

use wgrad::gpu::{Gpu, GpuOptions, Slice};
use wgrad::ops::{
    self, Adam, AdamHyper, ClassWeights, CrossEntropy, Sgd, SgdHyper, Target, Targets,
};
use wgrad::{Shape, Tape, Tensor};

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-6 * expected.abs(), "{found}, not {expected}");
    }
}

fn upload<P: bytemuck::Pod>(gpu: &Gpu, hyper: &P) -> Slice {
    let slice = gpu.lease(size_of::<P>() as u64);
    gpu.upload(&slice, bytemuck::bytes_of(hyper)).unwrap();
    slice
}

/// Runs three steps on every adapter and compares the parameters.
fn check(
    clip: Option<f32>,
    expected: [f32; 4],
    step: impl Fn(&Gpu, u64, [&Slice; 4], &Slice) -> wgrad::Result<()>,
) {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let vector =
            |numbers: [f32; 4]| Tensor::from_host(&gpu, Shape::vector(4), &numbers).unwrap();
        let parameters = vector([1.0, -2.0, 0.5, 4.0]);
        let (first, second) = (vector([0.0; 4]), vector([0.0; 4]));
        for k in 0..3 {
            let gradients = vector([0.5, -1.0, 2.0, 0.25].map(|g| g * (k + 1) as f32));
            let norm = ops::grad_norm(&gpu, &[gradients.memory()], clip).unwrap();
            let arenas = [&parameters, &gradients, &first, &second].map(|tensor| tensor.memory());
            step(&gpu, k, arenas, norm.memory()).unwrap();
        }
        assert_close(&parameters.download(&gpu).unwrap(), &expected);
    }
}

fn check_sgd(nesterov: bool, clip: Option<f32>, expected: [f32; 4]) {
    check(clip, expected, |gpu, k, [parameters, gradients, velocity, _], scale| {
        let hyper = SgdHyper {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.1,
            first: if k == 0 { 1.0 } else { 0.0 },
            nesterov: if nesterov { 1.0 } else { 0.0 },
            unused: [0.0; 3],
        };
        let hyper = &upload(gpu, &hyper);
        let loss = scale;
        let step = Sgd { parameters, gradients, velocity, hyper, scale, loss, shadow: None };
        ops::sgd(gpu, step)
    });
}

// run(lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1))
#[test]
fn sgd_with_momentum() {
    check_sgd(false, None, [0.471_774, -0.943_548, -1.418_230_5, 3.541_213_5]);
}

// run(lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True), clip=3.0)
#[test]
fn sgd_with_nesterov_momentum_and_clipped_gradients() {
    check_sgd(true, Some(3.0), [0.456_393_18, -0.912_786_36, -1.397_555_8, 3.451_325_2]);
}

fn check_adam(decoupled: bool, expected: [f32; 4]) {
    check(None, expected, |gpu, k, arenas, scale| {
        let [parameters, gradients, first_moment, second_moment] = arenas;
        let hyper = AdamHyper::new(k + 1, 0.1, [0.9, 0.999], 1e-8, 0.1, decoupled);
        let hyper = &upload(gpu, &hyper);
        let step = Adam {
            parameters,
            gradients,
            first_moment,
            second_moment,
            hyper,
            scale,
            loss: scale,
            shadow: None,
        };
        ops::adam(gpu, step)
    });
}

// run(lambda p: Adam(p, lr=0.1, weight_decay=0.1))
#[test]
fn adam() {
    check_adam(false, [0.705_695_33, -1.705_786_7, 0.207_371_62, 3.700_9]);
}

// run(lambda p: AdamW(p, lr=0.1, weight_decay=0.1))
#[test]
fn adamw() {
    check_adam(true, [0.680_935_9, -1.651_234_9, 0.195_786_4, 3.591_832_9]);
}

// cross_entropy(tensor([[0.5, -1, 2, 0.25, 3], [1, 1, -2, 0, 0.5]]), tensor([2, 0]),
//               label_smoothing=0.2)
#[test]
fn smoothed_cross_entropy() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let tape = Tape::new(&gpu);
        let logits = [0.5, -1.0, 2.0, 0.25, 3.0, 1.0, 1.0, -2.0, 0.0, 0.5];
        let logits = Tensor::from_host(&gpu, Shape::matrix(2, 5), &logits).unwrap();
        let logits = tape.leaf(logits);
        let labels = ops::labels(&gpu, &[2, 0]).unwrap();
        let options = CrossEntropy { label_smoothing: 0.2, divisor: 2.0 };
        let output = ops::cross_entropy(&tape, &logits, &labels, options).unwrap();
        let seed = Tensor::from_host(&gpu, Shape::vector(1), &[1.0]).unwrap();
        let d_logits = tape.backward(&output.loss, seed).unwrap().take(&logits).unwrap();
        assert_close(&output.loss.value().download(&gpu).unwrap(), &[1.461_677_7]);
        let found = d_logits.download(&gpu).unwrap();
        let expected = [
            0.006_786_505,
            -0.014_023_121,
            -0.299_951_23,
            0.000_861_350_45,
            0.306_326_45,
            -0.254_666_84,
            0.145_333_17,
            -0.011_768_546,
            0.040_822_674,
            0.080_279_63,
        ];
        // Differences of numbers up to one.
        let far =
            found.iter().zip(expected).find(|(found, expected)| (**found - expected).abs() > 1e-7);
        assert!(far.is_none(), "{far:?}");
    }
}

/// The loss of `logits` (rows of four) and its gradient, on every adapter.
fn check_cross_entropy(
    logits: [f32; 12],
    targets: [Target; 3],
    weights: [f32; 4],
    options: CrossEntropy,
    loss: f64,
    gradient: [f64; 12],
) {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let tape = Tape::new(&gpu);
        let logits = tape.leaf(Tensor::from_host(&gpu, Shape::matrix(3, 4), &logits).unwrap());
        let weights = ClassWeights::new(&gpu, &weights).unwrap();
        let targets = Targets::new(&gpu, &targets).unwrap().weighted(Some(&weights));
        let output = ops::cross_entropy(&tape, &logits, &targets, options).unwrap();
        let seed = Tensor::from_host(&gpu, Shape::vector(1), &[1.0]).unwrap();
        let d_logits = tape.backward(&output.loss, seed).unwrap().take(&logits).unwrap();
        let found = f64::from(output.loss.value().download(&gpu).unwrap()[0]);
        assert!((found - loss).abs() < 4e-7 * loss, "{found}, not {loss}");
        let found = d_logits.download(&gpu).unwrap();
        // Differences of numbers up to one.
        let far = found.iter().zip(gradient).find(|(a, b)| (f64::from(**a) - b).abs() > 2e-7);
        assert!(far.is_none(), "{far:?}");
    }
}

const LOGITS: [f32; 12] = [0.5, -1.0, 2.0, 0.25, 3.0, 1.0, 1.0, -2.0, 0.0, 0.5, -0.75, 1.5];
const WEIGHTS: [f32; 4] = [0.5, 2.0, 1.0, 1.25];

// cross_entropy(LOGITS, tensor([2, 0, 3]), WEIGHTS, label_smoothing=0.1), in f64
#[test]
fn cross_entropy_of_weighted_labels_with_smoothing() {
    let targets = [2, 0, 3].map(|label| Target { weight: 3.0 / 2.75, ..label.into() });
    let options = CrossEntropy { label_smoothing: 0.1, divisor: 3.0 };
    let gradient = [
        0.052591537548,
        -0.005432831986,
        -0.080293403384,
        0.033134697821,
        -0.006277321980,
        0.003729572669,
        0.012820481760,
        -0.010272732449,
        0.054942379123,
        0.079897038535,
        0.019009153829,
        -0.153848571486,
    ];
    check_cross_entropy(LOGITS, targets, WEIGHTS, options, 0.664537539293, gradient);
}

// cross_entropy(LOGITS, tensor([[0, .3, .7, 0], [1, 0, 0, 0], [.375, 0, 0, .625]]), WEIGHTS,
//               label_smoothing=0.1), in f64
#[test]
fn cross_entropy_of_weighted_soft_targets_with_smoothing() {
    let targets = [
        Target { label: 2, other: 1, share: 0.7, weight: 1.0 },
        0.into(),
        Target { label: 3, other: 0, share: 0.625, weight: 1.0 },
    ];
    let options = CrossEntropy { label_smoothing: 0.1, divisor: 3.0 };
    let gradient = [
        0.062090043695,
        -0.181882796273,
        0.078608641331,
        0.041184111247,
        -0.005754211815,
        0.003418774947,
        0.011752108280,
        -0.009416671412,
        -0.016984071189,
        0.054941577339,
        0.012182772069,
        -0.050140278219,
    ];
    check_cross_entropy(LOGITS, targets, WEIGHTS, options, 1.222176189143, gradient);
}
