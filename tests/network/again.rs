//! Work that is submitted again instead of being recorded again.

use wgrad::autograd::Tape;
use wgrad::gpu::{Gpu, GpuOptions, Slice};
use wgrad::nn::{BnPolicy, Mode, Noise, Stage};
use wgrad::ops::relu;
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::tensor::{Shape, Tensor};
use wgrad::train::{Batch, Network, Stepper};

use super::{common, name, package};

/// Every adapter, and again as if each were a GPU, for which what comes again is encoded ahead.
fn every_gpu() -> Vec<Gpu> {
    let all = |as_gpu| common::every_gpu(GpuOptions { as_gpu, ..Default::default() });
    [false, true].into_iter().flat_map(all).collect()
}

/// Records the relu of `x`, with memory in between.
fn work(gpu: &Gpu, x: &Tensor) -> wgrad::Result<Vec<Slice>> {
    let tape = Tape::no_grad(gpu);
    let copy = Tensor::empty(gpu, x.shape());
    gpu.copy(x.memory(), copy.memory());
    let y = relu(&tape, &tape.constant(copy))?;
    Ok(vec![y.value().memory().clone()])
}

#[test]
fn kept_work_is_done_again_on_what_is_there_then() {
    for gpu in every_gpu() {
        let x = Tensor::from_host(&gpu, Shape::vector(4), &[-1.0, 2.0, -3.0, 4.0]).unwrap();
        // The first time allocates what the second finds free.
        gpu.keep(&[x.memory().place()], || work(&gpu, &x)).unwrap();
        let (mut downloads, recording) =
            gpu.keep(&[x.memory().place()], || work(&gpu, &x)).unwrap();
        let first = downloads.remove(0).wait_f32().unwrap();
        assert_eq!(first, [0.0, 2.0, 0.0, 4.0], "{}", name(&gpu));
        for _ in 0..2 {
            x.upload(&gpu, &[5.0, -6.0, 7.0, -8.0]).unwrap();
            let mut downloads = gpu.again(&recording, &[x.memory().place()]).expect("it is kept");
            assert_eq!(downloads.remove(0).wait_f32().unwrap(), [5.0, 0.0, 7.0, 0.0]);
        }
    }
}

#[test]
fn kept_work_is_not_done_again_where_it_would_come_out_differently() {
    for gpu in every_gpu() {
        let x = Tensor::from_host(&gpu, Shape::vector(4), &[1.0; 4]).unwrap();
        let keep = || {
            let (mut downloads, recording) =
                gpu.keep(&[x.memory().place()], || work(&gpu, &x)).unwrap();
            downloads.remove(0).wait().unwrap();
            recording
        };
        let on = |recording, x: &Tensor| {
            let found = gpu.again(recording, &[x.memory().place()]);
            found.map(|mut found| found.remove(0).wait().unwrap())
        };
        let again = |recording| on(recording, &x);

        let y = Tensor::from_host(&gpu, Shape::vector(4), &[2.0; 4]).unwrap();
        keep();
        let recording = keep();
        // It would be of another input.
        assert!(on(&recording, &y).is_none() && again(&recording).is_some());
        // Its memory is somebody else's, and free once more.
        let other = gpu.lease(16);
        assert!(again(&recording).is_none(), "{}", name(&gpu));
        drop(other);
        assert!(again(&recording).is_some());
        // A kernel may have to be chosen differently.
        gpu.force_kernel("conv2d_forward", None);
        assert!(again(&recording).is_none());
        // The memory is gone.
        let recording = keep();
        gpu.trim();
        assert!(again(&recording).is_none());
        // Other work was kept since.
        let (recording, newer) = (keep(), keep());
        assert!(again(&recording).is_none() && again(&newer).is_some());
        // An upload would be missing.
        let (downloads, recording) = gpu
            .keep(&[x.memory().place()], || {
                x.upload(&gpu, &[2.0; 4])?;
                work(&gpu, &x)
            })
            .unwrap();
        drop(downloads);
        gpu.finish().unwrap();
        assert!(again(&recording).is_none());
    }
}

const SIZE: u32 = 32;

fn batch(number: u32, images: usize) -> Batch {
    let count = images * (SIZE * SIZE * 3) as usize;
    let pixel = |at: usize| ((at * 31 + number as usize * 7) % 251) as u8;
    Batch {
        pixels: (0..count).map(pixel).collect(),
        features: Vec::new(),
        targets: Vec::new(),
        labels: (0..images as u32).map(|image| (image + number) % 10).collect(),
        share: None,
        noise_key: [number, 0],
        failed: Vec::new(),
    }
}

/// Losses and parameters after some steps, with an evaluation in between, and how many of the steps chose
/// their kernels, as recording does. With `anew`, no step knows of the one before.
fn train(gpu: &Gpu, anew: bool) -> (Vec<u32>, Vec<Vec<f32>>, usize) {
    let path = package("weights/resnet18-tiny-imagenet.safetensors");
    let mut network = Network::load(gpu, &path, Some(SIZE)).unwrap();
    network.net.parameters_mut().require_gradients(gpu);
    network.net.regularise(gpu, Noise { dropout: 0.2, stochastic_depth: 0.2 });
    let parameters = network.net.parameters();
    let settings = Settings {
        algorithm: Algorithm::AdamW,
        weight_decay: 1e-2,
        norm_weight_decay: 0.0,
        clip_grad_norm: Some(1.0),
        l2_sp: 0.01,
    };
    let mut optimizer = Optimizer::new(gpu, parameters, settings, Stage::Stem, |_| 1.0).unwrap();
    let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
    let stepper = || Stepper::new(gpu, &network, mode, 0.1, None);
    let mut latest = stepper();
    latest.plan(&optimizer, &batch(0, 4)).unwrap();
    let (mut losses, mut recorded) = (Vec::new(), 0);
    for (number, images) in [4, 4, 4, 3, 4, 4].into_iter().enumerate() {
        let batch = batch(number as u32, images);
        if anew {
            latest = stepper();
        }
        gpu.forget_kernels();
        let rate = 1e-3 / (number + 1) as f64;
        let downloads = latest.step(&mut optimizer, rate, &batch).unwrap();
        recorded += usize::from(gpu.chosen_kernel("conv2d_forward").is_some());
        for download in downloads {
            losses.extend(download.wait_f32().unwrap().into_iter().map(f32::to_bits));
        }
        if number == 1 {
            network.evaluate(gpu, &batch.pixels, images).unwrap().wait().unwrap();
        }
    }
    (losses, parameters.download(gpu, parameters.values()).unwrap(), recorded)
}

#[test]
fn steps_done_again_come_to_the_same_bits() {
    for gpu in every_gpu() {
        let (losses, parameters, recorded) = train(&gpu, false);
        let (losses_anew, parameters_anew, recorded_anew) = train(&gpu, true);
        println!("{}: {recorded} of 6 steps recorded", name(&gpu));
        assert_eq!(losses, losses_anew, "{}", name(&gpu));
        assert!(parameters == parameters_anew, "{}", name(&gpu));
        assert!(recorded < 6 && recorded_anew == 6, "{recorded} and {recorded_anew}");
    }
}

#[test]
fn evaluations_done_again_are_of_the_images_given() {
    for gpu in every_gpu() {
        let path = package("weights/resnet18-tiny-imagenet.safetensors");
        let load = || Network::load(&gpu, &path, Some(SIZE)).unwrap();
        let network = load();
        let logits = |network: &Network, number: u32, images: usize| {
            network.evaluate(&gpu, &batch(number, images).pixels, images).unwrap()
        };
        for _ in 0..2 {
            logits(&network, 0, 3).wait().unwrap();
        }
        gpu.forget_kernels();
        // Several on their way, as in a run.
        let answers: Vec<_> = (0..4).map(|number| logits(&network, number, 3)).collect();
        assert_eq!(gpu.chosen_kernel("conv2d_forward"), None, "{}: recorded", name(&gpu));
        let other = load();
        for (number, answer) in (0..4).zip(answers) {
            let anew = logits(&other, number, 3).wait().unwrap();
            assert!(answer.wait().unwrap() == anew, "{}: batch {number}", name(&gpu));
        }
        assert_eq!(logits(&network, 0, 2).wait().unwrap().len(), 2 * 200);
    }
}
