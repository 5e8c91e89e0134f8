//! What must hold of training steps whatever their numbers: parts of a batch add up, frozen stages
//! rest, reruns repeat, memory stays flat and is what was planned. On narrow networks.

use std::collections::BTreeMap;

use serde_json::json;
use wgrad::Tape;
use wgrad::checkpoint::{self, Checkpoint, HostData, HostTensor, Meta};
use wgrad::gpu::{Download, Gpu, GpuOptions};
use wgrad::nn::{Arch, BnPolicy, Mode, ResNet, Stage};
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::train::{self, Network, Stepper};
use wgrad::verify::network::{Batch, evaluate, gradients};

use super::formulas::{CLASSES, made_up};
use super::{common, name, package};

const ARCHS: [&str; 2] = ["resnet18-w8", "resnet50-w8"];
const SIZE: usize = 64;
const SMOOTHING: f32 = 0.1;

const SGD: Settings = Settings {
    algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: true },
    weight_decay: 1e-2,
    norm_weight_decay: 1e-3,
    clip_grad_norm: Some(1.0),
    l2_sp: 0.01,
};
const ADAMW: Settings = Settings { algorithm: Algorithm::AdamW, ..SGD };

/// A narrow network with made-up weights and memory for gradients.
fn network(gpu: &Gpu, arch: &str) -> ResNet {
    let arch = Arch::from_name(arch).unwrap();
    let mut net = ResNet::new(gpu, arch, CLASSES, 0).unwrap();
    let tensors: BTreeMap<_, _> = arch
        .entries(CLASSES)
        .iter()
        .filter(|entry| !entry.shape.is_empty())
        .map(|entry| (entry.name.clone(), HostTensor::f32(entry.shape.clone(), made_up(entry))))
        .collect();
    net.load(gpu, &tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()).unwrap();
    net.parameters_mut().require_gradients(gpu);
    net
}

/// [`network`] for images of a size.
fn whole(gpu: &Gpu, arch: &str, size: u32) -> Network {
    let net = network(gpu, arch);
    let checkpoint = Checkpoint {
        arch: net.arch(),
        tensors: net.tensors(gpu).unwrap(),
        meta: Meta::default(),
        dtype: checkpoint::Dtype::F32,
        missing: Vec::new(),
        unexpected: Vec::new(),
    };
    Network::from_checkpoint(gpu, &checkpoint, Some(size)).unwrap()
}

#[test]
fn tensors_that_are_given_take_the_place_of_random_ones() {
    const SEED: u64 = 7;
    let arch = Arch::from_name("resnet18-w8").unwrap();
    for gpu in common::every_gpu(GpuOptions { mixed: true, ..Default::default() }) {
        let mut given = network(&gpu, "resnet18-w8").tensors(&gpu).unwrap();
        given.retain(|name, _| !name.starts_with("fc.") && name != "layer2.0.conv1.weight");
        let given = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let loaded = ResNet::new(&gpu, arch, CLASSES, SEED).unwrap();
        loaded.load(&gpu, &given).unwrap();
        let made = ResNet::with_tensors(&gpu, arch, CLASSES, SEED, &given).unwrap();
        assert!(made.tensors(&gpu).unwrap() == loaded.tensors(&gpu).unwrap(), "{}", name(&gpu));
        let batch = Batch::new(&gpu, 0, 2, SIZE).unwrap();
        let logits = |net| evaluate(&gpu, net, &batch).unwrap();
        assert_eq!(logits(&made), logits(&loaded), "{}", name(&gpu));
    }
}

#[test]
fn as_many_images_are_evaluated_at_a_time_as_can_be_bound() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        // Where the image's side is odd, what layer1 makes of it is larger than what the stem does.
        for (arch, size) in [("resnet50-w16", 97), ("resnet50-w16", 64), ("resnet18-w4", 33)] {
            let network = whole(&gpu, arch, size);
            let largest = |images: usize| {
                let plan = gpu.plan(|| {
                    let tape = Tape::no_grad(&gpu);
                    let pixels = gpu.lease((images * (size * size * 3) as usize) as u64);
                    let input = network.input(&tape, &pixels, images)?;
                    network.net.forward(&tape, &input, Mode::EVAL).map(|_| ())
                });
                plan.unwrap().largest_bytes
            };
            let images = network.images_at_a_time(&gpu, usize::MAX);
            let (fits, more) = (largest(images), largest(images + 1));
            let limit = gpu.binding_limit();
            assert!(fits <= limit, "{}, {arch}, {size} px: {fits} of {limit}", name(&gpu));
            assert!(more > limit, "{}, {arch}, {size} px: {more} of {limit}", name(&gpu));
        }
    }
}

struct Training<'a> {
    gpu: &'a Gpu,
    net: ResNet,
    optimizer: Optimizer,
    mode: Mode,
}

impl<'a> Training<'a> {
    fn new(gpu: &'a Gpu, arch: &str, mode: Mode, settings: Settings) -> Self {
        let net = network(gpu, arch);
        let from = mode.train_from.expect("something is trained");
        let optimizer = Optimizer::new(gpu, net.parameters(), settings, from, |stage| {
            if stage == Stage::Head { 1.0 } else { 0.5 }
        });
        Self { gpu, net, optimizer: optimizer.unwrap(), mode }
    }

    /// Records and submits a step; one that is only planned counts no batch.
    fn begin(&mut self, number: u32, images: usize) -> Download {
        let Self { gpu, net, optimizer, mode } = self;
        optimizer.begin_step(gpu, 1e-2).unwrap();
        let batch = Batch::new(gpu, number, images, SIZE).unwrap();
        let passed = gradients(gpu, net, &batch, *mode, SMOOTHING, images).unwrap();
        optimizer.step(gpu).unwrap();
        gpu.submit().unwrap();
        passed.loss
    }

    /// The loss of a step, which is then done.
    fn step(&mut self, number: u32, images: usize) -> f32 {
        let loss = self.begin(number, images).wait_f32().unwrap()[0];
        self.net.count_batch(self.mode);
        loss
    }

    fn bits(&self) -> BTreeMap<String, Vec<u32>> {
        let bits = |tensor: HostTensor| match tensor.data {
            HostData::F32(values) => values.into_iter().map(f32::to_bits).collect(),
            HostData::I64(counts) => counts.into_iter().map(|count| count as u32).collect(),
        };
        let tensors = self.net.tensors(self.gpu).unwrap();
        tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
    }
}

fn on_every_network(check: impl Fn(&Gpu, &str)) {
    for gpu in common::every_gpu(GpuOptions::default()) {
        for arch in ARCHS {
            println!("{arch} on {}", name(&gpu));
            check(&gpu, arch);
        }
    }
}

fn all_gradients(gpu: &Gpu, net: &ResNet) -> Vec<Vec<f32>> {
    let arena = net.parameters().gradients().expect("there is memory for gradients");
    net.parameters().download(gpu, arena).unwrap()
}

/// The largest difference between two sets of gradients, each tensor's as a part of its largest.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let of_tensor = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let largest = a.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        assert!(largest > 0.0, "a gradient is zero throughout");
        let errors = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        errors.fold(0.0, |m: f32, e| if e.is_nan() { f32::INFINITY } else { m.max(e) }) / largest
    };
    a.iter().zip(b).map(of_tensor).fold(0.0, f32::max)
}

#[test]
fn gradients_of_parts_add_up_to_the_batchs() {
    on_every_network(|gpu, arch| {
        let net = network(gpu, arch);
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Frozen);
        let pass = |from, images, mode, divisor| {
            let batch = Batch::part(gpu, 3, from, images, SIZE).unwrap();
            let passed = gradients(gpu, &net, &batch, mode, SMOOTHING, divisor).unwrap();
            passed.loss.wait_f32().unwrap()[0]
        };
        let loss = pass(0, 5, mode, 5);
        let whole = all_gradients(gpu, &net);

        let first = pass(0, 3, mode, 5);
        let part = all_gradients(gpu, &net);
        let second = pass(3, 2, Mode { accumulate: true, ..mode }, 5);
        let sum = all_gradients(gpu, &net);

        assert!((first + second - loss).abs() <= 4.0 * f32::EPSILON * loss);
        // As far as two orders of summation in f32 may differ: what the fixtures allow PyTorch's.
        let off = difference(&whole, &sum);
        assert!(off <= 2e-5, "{arch}: gradients of two parts are {off:.1e} off the batch's");
        assert!(difference(&whole, &part) > 1e-2, "{arch}: one part is no batch");
    });
}

#[test]
fn frozen_stages_rest_to_the_bit() {
    on_every_network(|gpu, arch| {
        let first = Stage::Layer3;
        let mut training = Training::new(gpu, arch, Mode::train_from(first, BnPolicy::Train), SGD);
        let before = training.bits();
        for number in 0..3 {
            training.step(number, 4);
        }
        for (name, after) in training.bits() {
            let moved = after != before[&name];
            assert_eq!(moved, Stage::of(&name) >= first, "{arch}: whether {name} moved");
        }
        let all = all_gradients(gpu, &training.net);
        for (parameter, gradient) in training.net.parameters().list().iter().zip(all) {
            let zero = gradient.iter().all(|g| g.to_bits() == 0);
            assert_eq!(zero, parameter.stage < first, "{arch}: gradient of {}", parameter.name);
        }
    });
}

#[test]
fn ten_steps_again_give_the_same_bits() {
    on_every_network(|gpu, arch| {
        let run = || {
            let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
            let mut training = Training::new(gpu, arch, mode, ADAMW);
            let losses: Vec<u32> =
                (0..10).map(|number| training.step(number, 4).to_bits()).collect();
            (losses, training.bits())
        };
        let (losses, tensors) = run();
        assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "{arch}: nothing is trained");
        let (losses_again, tensors_again) = run();
        assert_eq!(losses, losses_again, "{arch}: losses");
        for (name, bits) in tensors {
            assert!(bits == tensors_again[&name], "{arch}: {name} has other bits");
        }
    });
}

#[test]
fn computing_again_gives_the_same_bits_in_less_memory() {
    on_every_network(|gpu, arch| {
        for (from, bn) in [(Stage::Stem, BnPolicy::Train), (Stage::Layer2, BnPolicy::Frozen)] {
            let run = |recompute: bool| {
                let mode = Mode { recompute, ..Mode::train_from(from, bn) };
                let mut training = Training::new(gpu, arch, mode, SGD);
                let plan = gpu.plan(|| {
                    drop(training.begin(0, 8));
                    Ok(())
                });
                let peak = plan.unwrap().peak_bytes;
                let losses: Vec<u32> =
                    (0..3).map(|number| training.step(number, 8).to_bits()).collect();
                (losses, training.bits(), peak)
            };
            let (losses, tensors, kept) = run(false);
            let (losses_again, tensors_again, recomputed) = run(true);
            assert_eq!(losses, losses_again, "{arch}: losses from {from:?}");
            assert!(tensors == tensors_again, "{arch}: weights from {from:?}");
            println!("{arch} from {from:?}: {kept} bytes, {recomputed} when computed again");
            assert!(recomputed < kept, "{arch}: {recomputed} bytes, {kept} kept");
        }
    });
}

#[test]
fn memory_is_flat_from_the_second_step_on() {
    on_every_network(|gpu, arch| {
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
        let mut training = Training::new(gpu, arch, mode, ADAMW);
        let mut bytes = |images| {
            training.step(0, images);
            gpu.allocated_bytes()
        };
        bytes(4);
        let second = bytes(4);
        assert_eq!([bytes(4), bytes(4), bytes(4)], [second; 3], "{arch}");
        // An odd last batch may take memory of its own, once.
        let with_odd = bytes(3);
        assert_eq!([bytes(4), bytes(3), bytes(4), bytes(3)], [with_odd; 4], "{arch}");
    });
}

#[test]
fn steps_take_exactly_the_memory_that_was_planned() {
    on_every_network(|gpu, arch| {
        for bn in [BnPolicy::Train, BnPolicy::Frozen] {
            let mode = Mode::train_from(Stage::Layer1, bn);
            let mut training = Training::new(gpu, arch, mode, SGD);
            let plan = gpu
                .plan(|| {
                    drop(training.begin(0, 4));
                    Ok(())
                })
                .unwrap();
            assert!(plan.fits() && plan.dispatches > 100);
            for number in 0..3 {
                training.step(number, 4);
                assert_eq!(gpu.allocated_bytes(), plan.peak_bytes, "{arch}, {bn:?}");
            }
        }
    });
}

#[test]
fn a_batch_of_256_at_224_px_is_done_in_parts_where_a_binding_holds_128_mib() {
    for gpu in common::every_gpu(GpuOptions { floor_limits: true, ..Default::default() }) {
        let path = package("weights/resnet18-tiny-imagenet.safetensors");
        let mut network = Network::load(&gpu, &path, Some(224)).unwrap();
        network.net.parameters_mut().require_gradients(&gpu);
        let settings = Settings {
            algorithm: Algorithm::Adam,
            weight_decay: 0.0,
            norm_weight_decay: 0.0,
            clip_grad_norm: None,
            l2_sp: 0.0,
        };
        let parameters = network.net.parameters();
        let optimizer = Optimizer::new(&gpu, parameters, settings, Stage::Stem, |_| 1.0).unwrap();
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
        let mut stepper = Stepper::new(&gpu, &network, mode, 0.0, None);
        let batch = train::Batch {
            pixels: vec![0; 256 * 224 * 224 * 3],
            features: Vec::new(),
            targets: Vec::new(),
            labels: vec![0; 256],
            share: None,
            noise_key: [0; 2],
            failed: Vec::new(),
        };
        // Nothing runs: planning is recording.
        let plan = stepper.plan(&optimizer, &batch).unwrap();
        assert!(plan.fits() && plan.binding_limit <= 128 << 20, "{}: {plan:?}", name(&gpu));
        // 41 images' first activations fill a binding (112·112·64 numbers each).
        assert_eq!(stepper.micro_batch(), 32, "{}", name(&gpu));
    }
}

#[test]
fn what_broke_is_found_in_batches_that_go_through_in_parts() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let network = whole(&gpu, ARCHS[0], SIZE as u32);
        let parameters = network.net.parameters();
        // Finite, but the sums over what it makes of an image are not.
        let index = parameters.list().iter().position(|it| it.name == "layer2.0.conv1.weight");
        let index = index.unwrap();
        let huge = vec![1e38; parameters.list()[index].torch_shape.iter().product()];
        parameters.set(&gpu, index, &huge).unwrap();
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
        let batch = train::Batch {
            pixels: (0..8 * SIZE * SIZE * 3).map(|i| (i * i % 251) as u8).collect(),
            features: Vec::new(),
            targets: Vec::new(),
            labels: vec![1; 8],
            share: None,
            noise_key: [0; 2],
            failed: Vec::new(),
        };
        for limit in [8, 3] {
            let mut stepper = Stepper::new(&gpu, &network, mode, 0.1, None);
            stepper.limit(limit);
            let found = stepper.first_non_finite(&batch).unwrap().unwrap();
            assert!(found.contains("layer2.0"), "{}: parts of {limit}: {found}", name(&gpu));
        }
    }
}

#[test]
fn a_loss_that_is_no_number_in_any_part_changes_nothing() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let classes: Vec<_> = (0..CLASSES).map(|class| class.to_string()).collect();
        let reading = json!({
            "arch": ARCHS[0], "classes": classes, "image_size": SIZE,
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
        });
        let mut network = Network::blank(&gpu, &serde_json::from_value(reading).unwrap()).unwrap();
        network.net.parameters_mut().require_gradients(&gpu);
        let settings = Settings { clip_grad_norm: None, l2_sp: 0.0, ..SGD };
        let parameters = network.net.parameters();
        parameters.initialise(&gpu, network.net.arch().features(), 0).unwrap();
        let mut optimizer =
            Optimizer::new(&gpu, parameters, settings, Stage::Stem, |_| 1.0).unwrap();
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
        let values = || parameters.download(&gpu, parameters.values()).unwrap();
        for (wrong, limit) in [(0, 8), (0, 4), (4, 4), (0, 3)] {
            let mut stepper = Stepper::new(&gpu, &network, mode, 0.1, None);
            stepper.limit(limit);
            let mut labels = vec![1; 8];
            labels[wrong] = u32::MAX;
            let batch = train::Batch {
                pixels: (0..8 * SIZE * SIZE * 3).map(|i| (i * i % 251) as u8).collect(),
                features: Vec::new(),
                targets: Vec::new(),
                labels,
                share: None,
                noise_key: [0; 2],
                failed: Vec::new(),
            };
            let before = values();
            stepper.step(&mut optimizer, 0.1, &batch).unwrap();
            gpu.finish().unwrap();
            assert!(before == values(), "{}: image {wrong}, parts of {limit}", name(&gpu));
        }
    }
}
