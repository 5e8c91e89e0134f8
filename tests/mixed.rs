//! Mixed precision: a network's gradients and losses against single precision's, steps that overflow,
//! and what it saves. Operations by themselves are checked with all others.

mod common;

use half::f16;
use serde_json::json;
use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::nn::{BnPolicy, Mode, Stage};
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::train::{Batch, Network, Stepper};
use wgrad::verify::formulas;

const SIZE: u32 = 64;
const SGD: Settings = Settings {
    algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
    weight_decay: 1e-4,
    norm_weight_decay: 0.0,
    clip_grad_norm: None,
    l2_sp: 0.0,
};
const ADAMW: Settings =
    Settings { algorithm: Algorithm::AdamW, clip_grad_norm: Some(1.0), l2_sp: 0.01, ..SGD };

/// The adapters with f16, opened in single and in mixed precision.
fn pairs() -> Vec<[Gpu; 2]> {
    let open = |mixed| common::every_gpu(GpuOptions { mixed, ..Default::default() });
    let pairs = open(false).into_iter().zip(open(true));
    let pairs: Vec<_> = pairs.filter(|(_, mixed)| mixed.mixed()).map(<[Gpu; 2]>::from).collect();
    if pairs.is_empty() {
        println!("skipped: no adapter has f16 in shaders");
    }
    pairs
}

/// By the parameters' names.
type Gradients = Vec<(String, Vec<f64>)>;

struct Training<'a> {
    gpu: &'a Gpu,
    network: Network,
    optimizer: Optimizer,
    bn: BnPolicy,
}

impl<'a> Training<'a> {
    fn new(gpu: &'a Gpu, arch: &str, settings: Settings) -> Self {
        let classes: Vec<_> = (0..formulas::CLASSES).map(|class| class.to_string()).collect();
        let reading = json!({
            "arch": arch, "classes": classes, "image_size": SIZE,
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
        });
        let mut network = Network::blank(gpu, &serde_json::from_value(reading).unwrap()).unwrap();
        network.net.parameters_mut().require_gradients(gpu);
        let parameters = network.net.parameters();
        parameters.initialise(gpu, network.net.arch().features(), 0).unwrap();
        let optimizer = Optimizer::new(gpu, parameters, settings, Stage::Stem, |_| 1.0).unwrap();
        Self { gpu, network, optimizer, bn: BnPolicy::Train }
    }

    fn stepper(&self) -> Stepper<'_> {
        Stepper::new(self.gpu, &self.network, self.mode(), 0.1, None)
    }

    fn mode(&self) -> Mode {
        Mode::train_from(Stage::Stem, self.bn)
    }

    /// The loss of a step.
    fn step(&mut self, number: u32, images: usize) -> f64 {
        let mode = self.mode();
        let Self { gpu, network, optimizer, .. } = self;
        let stepper = Stepper::new(gpu, network, mode, 0.1, None);
        let losses = stepper.step(optimizer, 1e-2, &batch(number, images, SIZE)).unwrap();
        losses.into_iter().map(|loss| f64::from(loss.wait_f32().unwrap()[0])).sum()
    }

    /// The gradients by the loss itself, and their names.
    fn gradients(&self) -> Gradients {
        let parameters = self.network.net.parameters();
        let scaling = self.optimizer.scaling(self.gpu).unwrap();
        let scale = scaling.map_or(1.0, |scaling| scaling.of_gradients);
        let arena = parameters.gradients().unwrap();
        let all = parameters.download(self.gpu, arena).unwrap().into_iter();
        let unscaled = |values: Vec<f32>| values.iter().map(|&g| f64::from(g) / scale).collect();
        parameters.list().iter().map(|it| it.name.clone()).zip(all.map(unscaled)).collect()
    }

    /// Everything that a step changes, as it lies on the device, but for the loss scale.
    fn memory(&self) -> Vec<Vec<u8>> {
        let parameters = self.network.net.parameters();
        let state = self.optimizer.state().into_iter();
        let state = state.filter(|(name, _)| name != "loss_scale").map(|(_, slice)| slice);
        let parameters = [parameters.values(), parameters.shadow().unwrap()];
        let slices = parameters.into_iter().cloned().chain(state);
        slices.map(|slice| self.gpu.download(&slice).wait().unwrap()).collect()
    }

    /// Sets the loss scale and the steps since it changed, and leaves the rest.
    fn set_scale(&self, scale: f32, steps: f32) {
        let state = self.optimizer.state();
        let (_, slice) = state.iter().find(|(name, _)| name == "loss_scale").unwrap();
        self.gpu.upload(slice, bytemuck::cast_slice(&[scale, steps])).unwrap();
    }
}

fn batch(number: u32, images: usize, size: u32) -> Batch {
    Batch {
        pixels: formulas::pixels(number, images, size as usize),
        features: Vec::new(),
        targets: Vec::new(),
        labels: formulas::labels(number, images),
        share: None,
        noise_key: [0; 2],
        failed: Vec::new(),
    }
}

/// The norm of the difference of gradients as a part of the first's.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>();
    let off = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (off / squares(&mut a.iter().copied())).sqrt()
}

fn all(gradients: &[(String, Vec<f64>)]) -> Vec<f64> {
    gradients.iter().flat_map(|(_, values)| values.clone()).collect()
}

/// Two activations a layer are rounded by up to 2⁻¹¹, and so are their gradients. Such errors add up by
/// their squares, and what is between enlarges them several times: `smooth`. Before a ReLU they change
/// the sign of about as large a share of numbers, each of which then gets a gradient that has nothing to
/// do with its own, and a tensor's gradients may be off by the root of their share: `rectified`.
#[test]
fn gradients_are_those_of_single_precision() {
    for pair in pairs() {
        for (arch, layers) in [("resnet18-w8", 18.0), ("resnet50-w8", 50.0)] {
            let [smooth, rectified] = allowed(layers);
            let [single, mixed] = both(&pair, arch, BnPolicy::Frozen);
            let off = (mixed.0 - single.0).abs() / single.0;
            println!("{arch}: the loss is off by {off:.1e} of {smooth:.1e}");
            assert!(off < smooth && off > 0.0, "{} and {}", mixed.0, single.0);
            let share = difference(&all(&single.1), &all(&mixed.1));
            println!("{arch}: all gradients are off by {share:.1e} of {smooth:.1e}");
            assert!(share < smooth, "{arch}: off by {share:.1e}");
            for ((name, single), (_, mixed)) in single.1.iter().zip(&mixed.1) {
                let share = difference(single, mixed);
                let allowed = if name.starts_with("fc.") { smooth } else { rectified };
                println!("{arch} {name}: off by {share:.1e} of {allowed:.1e}");
                assert!(share < allowed, "{arch} {name}: off by {share:.1e}");
            }
        }
    }
}

/// Gradients before a batch norm that sees the batch are small differences of large sums, so that only
/// all of them together have a bound.
#[test]
fn so_are_they_by_statistics_of_batches() {
    for pair in pairs() {
        let [_, allowed] = allowed(18.0);
        let [single, mixed] = both(&pair, "resnet18-w8", BnPolicy::Train);
        let share = difference(&all(&single.1), &all(&mixed.1));
        println!("all gradients are off by {share:.1e} of {allowed:.1e}");
        assert!(share < allowed, "{share}");
    }
}

/// What numbers that go through so many layers may be off by: `smooth` and `rectified`.
fn allowed(layers: f64) -> [f64; 2] {
    let noise = f64::sqrt(4.0 * layers) * 2f64.powi(-11);
    [8.0 * noise, f64::sqrt(layers * noise)]
}

/// Loss and gradients of a step in single and in mixed precision.
fn both(pair: &[Gpu; 2], arch: &str, bn: BnPolicy) -> [(f64, Gradients); 2] {
    [0, 1].map(|which| {
        let mut training = Training::new(&pair[which], arch, SGD);
        training.bn = bn;
        (training.step(0, 8), training.gradients())
    })
}

#[test]
fn losses_fall_as_in_single_precision() {
    for [single, mixed] in pairs() {
        for settings in [SGD, ADAMW] {
            let [single, mixed] = [&single, &mixed].map(|gpu| {
                let mut training = Training::new(gpu, "resnet18-w8", settings);
                (0..12).map(|_| training.step(0, 8)).collect::<Vec<_>>()
            });
            println!("{single:.4?}\n{mixed:.4?}");
            let fallen = single[0] - single[11];
            assert!(fallen > 0.3 * single[0], "{single:?}");
            // Differences grow from step to step, but both come to the same.
            assert!((single[11] - mixed[11]).abs() < 0.1 * fallen, "{mixed:?} and {single:?}");
        }
    }
}

#[test]
fn a_step_that_overflows_is_skipped_and_the_scale_halved() {
    for [_, mixed] in pairs() {
        for settings in [SGD, ADAMW] {
            let mut training = Training::new(&mixed, "resnet18-w8", settings);
            training.step(0, 4);
            let before = training.memory();
            let done = training.optimizer.scaling(&mixed).unwrap().unwrap();
            assert_eq!((done.scale, done.skipped), (65_536.0, 0));

            training.set_scale(2f32.powi(60), 7.0);
            let loss = training.step(1, 4);
            assert!(loss.is_finite(), "{loss}");
            let skipped = training.optimizer.scaling(&mixed).unwrap().unwrap();
            assert_eq!((skipped.scale, skipped.skipped), (2f64.powi(59), 1));
            assert!(training.memory() == before, "a skipped step changed something");

            training.set_scale(1024.0, 1999.0);
            training.step(2, 4);
            let done = training.optimizer.scaling(&mixed).unwrap().unwrap();
            assert_eq!((done.scale, done.of_gradients, done.skipped), (2048.0, 1024.0, 1));
            let after = training.memory();
            assert!(after.iter().zip(&before).all(|(after, before)| after != before));

            let [values, shadow] = [&after[0], &after[1]];
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(values);
            let rounded: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            assert!(bytemuck::cast_slice::<f16, u8>(&rounded) == &shadow[..]);
        }
    }
}

#[test]
fn a_step_skipped_first_leaves_no_trace() {
    for [_, mixed] in pairs() {
        for settings in [SGD, ADAMW] {
            let after = [false, true].map(|skip| {
                let mut training = Training::new(&mixed, "resnet18-w8", settings);
                if skip {
                    training.set_scale(2f32.powi(60), 0.0);
                    training.step(1, 4);
                    training.set_scale(65_536.0, 0.0);
                }
                training.step(0, 4);
                training.memory()
            });
            assert!(after[0] == after[1], "{settings:?}");
        }
    }
}

#[test]
fn activations_take_half_the_memory() {
    for [single, mixed] in pairs() {
        let [single, mixed] = [&single, &mixed].map(|gpu| {
            // Nothing runs: planning is recording.
            let mut training = Training::new(gpu, "resnet18", SGD);
            training.network.image_size = 224;
            let planned = |images: usize| {
                let pixels = vec![0; images * 224 * 224 * 3];
                let batch = Batch { pixels, ..batch(0, images, 4) };
                let plan = training.stepper().plan(&training.optimizer, &batch);
                plan.unwrap().peak_bytes as f64
            };
            let (small, large) = (planned(8), planned(24));
            large - small
        });
        let share = mixed / single;
        println!("16 more images take {mixed} bytes, {share:.3} of single precision's");
        // Less than half on GPUs, where f32 takes workspaces that matrix units do without.
        assert!((0.4..0.6).contains(&share), "{share}");
    }
}

#[test]
fn what_is_stored_in_other_types_does_not_meet() {
    use wgrad::ops::{Conv2d, add, conv2d};
    use wgrad::{Dtype, Error, Shape, Tape, Tensor};
    for [_, gpu] in pairs() {
        let tape = Tape::no_grad(&gpu);
        let shape = Shape::new(1, 4, 4, 4);
        let tensor = |shape, dtype| tape.constant(Tensor::empty_as(&gpu, shape, dtype));
        let (single, half) = (tensor(shape, Dtype::F32), tensor(shape, Dtype::F16));
        assert!(matches!(add(&tape, &single, &half), Err(Error::Shape { .. })));
        let weight = tensor(Shape::new(1, 1, 4, 4), Dtype::F32);
        let conv = Conv2d { stride: [1; 2], padding: [0; 2] };
        assert!(matches!(conv2d(&tape, &half, &weight, None, conv), Err(Error::Shape { .. })));
        assert!(conv2d(&tape, &single, &weight, None, conv).is_ok());
    }
}
