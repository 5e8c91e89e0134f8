//! The pictures of a run, what `explain` draws, and what `evaluate` adds to accuracy.

use std::fs;
use std::path::Path;

use serde_json::Value;
use wgrad::data::{RgbImage, decode, resize_center_crop};
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::nn::{Mode, Stage};
use wgrad::train::{Activations, Network, layer_for};
use wgrad::{Tape, Tensor};

use crate::program::Wgrad;
use crate::run::write_images;

const BEST: &str = "run/weights/best.safetensors";

fn size(path: &Path) -> (u32, u32) {
    decode(path).unwrap().dimensions()
}

#[test]
fn a_run_draws_its_pictures() {
    let wgrad = Wgrad::with_images();
    let ran = wgrad.finetune("run", "--freeze-epochs 1 --epochs 1 --tensorboard");
    ran.answer();
    let page = fs::read_to_string(wgrad.path("run/report.html")).unwrap();
    for text in ["Finished after 2 of 2 epochs.", "<h2>Top losses</h2>", "resnet18-w8", "Grad-CAM"]
    {
        assert!(page.contains(text), "no {text:?}");
    }
    assert!(page.matches("src=\"data:image/jpeg;base64,").count() >= 4, "images in the page");
    assert!(!page.contains("http-equiv=\"refresh\""), "nothing changes any more");
    // Three charts of 430 × 270, at 1.5 pixels to one.
    assert_eq!(size(&wgrad.path("run/results.png")), (1935, 405));
    assert!(size(&wgrad.path("run/confusion_matrix.png")).0 > 400);
    // Four tiles a row, one line of words under a training image and two under a validation image.
    assert_eq!(size(&wgrad.path("run/train_batch0.jpg")), (4 * 160 + 8, 180 + 8));
    assert_eq!(size(&wgrad.path("run/val_predictions.jpg")), (4 * 160 + 8, 200 + 8));
    let events: Vec<_> = fs::read_dir(wgrad.path("run/tensorboard")).unwrap().collect();
    let events = fs::read(events[0].as_ref().unwrap().path()).unwrap();
    let holds = |text: &str| events.windows(text.len()).any(|window| window == text.as_bytes());
    for tag in
        ["step/loss", "val/loss", "train_batch0.jpg", "weights/conv1.weight", "gradients/fc.bias"]
    {
        assert!(holds(tag), "no {tag} in the event file");
    }
}

#[test]
fn events_tell_of_each_step_once() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 1 --batch-size 2 --tensorboard --max-steps 2").answer();
    let told = || {
        let files = fs::read_dir(wgrad.path("run/tensorboard")).unwrap();
        let files = files.map(|file| fs::read(file.unwrap().path()).unwrap());
        files.map(|file| file.windows(9).filter(|it| it == b"step/loss").count()).sum::<usize>()
    };
    assert_eq!(told(), 2);
    wgrad.resume("run", "--max-steps 100").answer();
    assert_eq!(told(), 5);
}

#[test]
fn a_report_says_why_a_run_stopped() {
    let wgrad = Wgrad::with_images();
    let page = |name: &str| fs::read_to_string(wgrad.path(name).join("report.html")).unwrap();
    wgrad.finetune("cut", "--epochs 2 --max-steps 4").answer();
    let cut = page("cut");
    assert!(cut.contains("Stopped after 4 steps by --max-steps; --resume"), "{cut}");
    assert!(cut.contains("<h2>Top losses</h2>"));
    let diverging = "--epochs 2 --lr 1e30 --lr-scheduler constant";
    wgrad.finetune("diverged", diverging).error(1);
    let diverged = page("diverged");
    assert!(diverged.contains("Stopped by an error: the loss is "), "{diverged}");
    // A page that is there already is not drawn anew.
    let frozen = "--head-lr 1e-9 --freeze-epochs 1";
    wgrad.finetune("later", &format!("{diverging} {frozen}")).error(1);
    let later = page("later");
    assert!(
        later.contains("try a lower --lr or --clip-grad-norm 1. The page shows 1 of 3 epochs.")
    );
    assert!(later.contains("<h2>Top losses</h2>"));
    for page in [cut, diverged, later] {
        assert!(!page.contains("http-equiv=\"refresh\""), "nothing changes any more");
    }
}

#[test]
fn a_finished_run_is_told_of_as_before() {
    let wgrad = Wgrad::with_images();
    let figures = |stdout: &str| {
        let page = fs::read_to_string(wgrad.path("run/report.html")).unwrap();
        let memory =
            |text: &str| Some(text.split("device memory").nth(1)?.split("MB").next()?.to_owned());
        (memory(&page).unwrap(), memory(stdout).unwrap())
    };
    let finished = figures(wgrad.finetune("run", "--epochs 1").answer());
    assert!(!finished.1.ends_with(" 0 "), "{finished:?}");
    assert_eq!(figures(wgrad.resume("run", "").answer()), finished);
    let longer = wgrad.resume("run", "--epochs 4");
    let instead = "begin a new run from its weights, --weights run/weights/last.safetensors";
    assert!(longer.error(2).contains(instead), "{}", longer.stderr);
}

#[test]
fn a_run_without_validation_has_a_report() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("flat"), &[4, 4], 32);
    wgrad.finetune("run", "--data flat --val-fraction 0 --epochs 1").answer();
    let page = fs::read_to_string(wgrad.path("run/report.html")).unwrap();
    assert!(page.contains("Finished after 1 of 1 epochs."), "{page}");
    assert!(!page.contains("<h2>Confusion matrix</h2>"));
    assert!(!wgrad.path("run/tensorboard").exists(), "nobody asked for it");
}

#[test]
fn heat_comes_from_the_gradient_of_the_graph() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 1 --image-size 64").answer();
    let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default()).unwrap();
    let network = Network::load(&gpu, &wgrad.path(BEST), None).unwrap();
    let pixels: Vec<u8> = ["a/0", "b/1"]
        .iter()
        .flat_map(|name| {
            let image = decode(wgrad.path(&format!("data/val/{name}.png"))).unwrap();
            resize_center_crop(&image, 64).unwrap()
        })
        .collect();
    let classes = [1, 0];

    // After layer4 only pooling and the classifier follow: d logit / d A = weight / (H·W).
    let (h, w) = (2, 2);
    let activations = Activations::new(&gpu, &network, &pixels, 2, Stage::Layer4).unwrap();
    let gradients = activations.gradients(&classes).unwrap();
    let tensors = network.net.tensors(&gpu).unwrap();
    let weight = tensors["fc.weight"].as_f32().unwrap();
    let channels = weight.len() / 2;
    let input = |tape: &Tape| {
        let uploaded = network.upload(&gpu, &pixels).unwrap();
        network.input(tape, &uploaded, 2).unwrap()
    };
    let after = |layer: Stage| {
        let tape = Tape::no_grad(&gpu);
        let images = input(&tape);
        let output = network.net.forward_between(&tape, &images, Stage::Stem, layer, Mode::EVAL);
        output.unwrap().value().clone()
    };
    let values = after(Stage::Layer4).download(&gpu).unwrap();
    let maps = activations.heat(&classes).unwrap();
    for (image, &class) in classes.iter().enumerate() {
        let of_class = &weight[class * channels..(class + 1) * channels];
        for pixel in 0..h * w {
            let at = (image * h * w + pixel) * channels;
            for (found, weight) in gradients[at..at + channels].iter().zip(of_class) {
                assert!((found - weight / 4.0).abs() <= 1e-6 * weight.abs(), "{found} {weight}");
            }
            let terms = values[at..at + channels].iter().zip(of_class);
            let terms: Vec<f64> = terms.map(|(a, w)| f64::from(*a) * f64::from(*w) / 4.0).collect();
            let expected = terms.iter().sum::<f64>().max(0.0);
            let magnitude: f64 = terms.iter().map(|term| term.abs()).sum();
            let found = f64::from(maps[image].values[pixel]);
            assert!((found - expected).abs() <= 1e-5 * magnitude, "{found} {expected}");
        }
    }

    // Before layer4: the logit's slope along a direction is the gradient's product with it.
    assert_eq!(layer_for(64), Stage::Layer3);
    let activations = Activations::new(&gpu, &network, &pixels, 2, Stage::Layer3).unwrap();
    let gradients = activations.gradients(&classes).unwrap();
    let output = after(Stage::Layer3);
    let values = output.download(&gpu).unwrap();
    let half = values.len() / 2;
    let direction: Vec<f32> =
        (0..values.len()).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect();
    // Small, so that few ReLUs switch within it; large, so that rounding of the logits is not seen.
    let step = 1e-3;
    let logits = |sign: f32| {
        let moved = values.iter().zip(&direction).map(|(v, d)| v + sign * step * d);
        let moved: Vec<f32> = moved.collect();
        let tape = Tape::no_grad(&gpu);
        let leaf = tape.constant(Tensor::from_host(&gpu, output.shape(), &moved).unwrap());
        let net = &network.net;
        let logits =
            net.forward_between(&tape, &leaf, Stage::Layer4, Stage::Head, Mode::EVAL).unwrap();
        logits.value().download(&gpu).unwrap()
    };
    let (up, down) = (logits(1.0), logits(-1.0));
    for (image, &class) in classes.iter().enumerate() {
        let at = image * 2 + class;
        let slope = f64::from(up[at] - down[at]) / (2.0 * f64::from(step));
        let range = image * half..(image + 1) * half;
        let terms = gradients[range.clone()].iter().zip(&direction[range]);
        let terms: Vec<f64> = terms.map(|(g, d)| f64::from(*g) * f64::from(*d)).collect();
        let expected: f64 = terms.iter().sum();
        let scale = terms.iter().map(|term| term * term).sum::<f64>().sqrt();
        // Terms of random signs add up to about `scale`; ReLUs that switch within a step cost little.
        assert!((slope - expected).abs() <= 0.02 * scale, "{slope} {expected} ± {scale}");
    }
}

#[test]
fn explain_draws_a_picture_for_each_class() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 1").answer();
    let image = "data/val/a/0.png";
    let arguments = ["explain", image, "data/val/b/1.png", "--weights", BEST, "--json"];
    let answers = wgrad.run(&arguments);
    answers.answer();
    let answers = answers.objects();
    assert_eq!(answers.len(), 2);
    let predicted = wgrad.run(&["predict", image, "--weights", BEST, "--json"]);
    predicted.answer();
    let predicted = predicted.objects();
    let top = answers[0]["top"].as_array().unwrap();
    assert_eq!(top.len(), 2, "there are but two classes");
    for (explained, predicted) in top.iter().zip(predicted[0]["top"].as_array().unwrap()) {
        for key in ["class", "index", "prob"] {
            assert_eq!(explained[key], predicted[key], "{key}");
        }
        let picture = wgrad.path(explained["picture"].as_str().unwrap());
        assert_eq!(size(&picture), (224, 224), "32 pixels are too few for people");
        let heat: Vec<Vec<f64>> = serde_json::from_value(explained["heat"].clone()).unwrap();
        let hottest = heat.iter().flatten().copied().fold(0.0, f64::max);
        assert!(hottest == 1.0 || hottest == 0.0, "{heat:?}");
        assert_eq!((heat.len(), heat[0].len()), (4, 4), "layer2 of 32 pixels");
    }
    let again = wgrad.run(&[&arguments[..], &["--layer", "layer4"]].concat());
    again.answer();
    assert_eq!(fs::read_dir(wgrad.path("explained")).unwrap().count(), 8, "nothing overwritten");
    let folder = wgrad.run(&["explain", "data/val", "--weights", BEST, "--json"]);
    folder.answer();
    assert_eq!(folder.objects().len(), 4, "the images of a folder");
    let missing = wgrad.run(&["explain", "no.png", image, "--weights", BEST]);
    assert!(missing.error(1).contains("no.png"));
    assert!(missing.stdout.contains(image), "the others are still answered");
}

#[test]
fn evaluate_averages_mirror_images_and_fits_a_temperature() {
    let wgrad = Wgrad::with_images();
    write_images(&wgrad.path("data/test"), &[3, 3], 32);
    wgrad.finetune("run", "--epochs 1").answer();
    for class in ["a", "b"] {
        let folder = wgrad.path(&format!("mirrored/{class}"));
        fs::create_dir_all(&folder).unwrap();
        for file in fs::read_dir(wgrad.path(&format!("data/test/{class}"))).unwrap() {
            let path = file.unwrap().path();
            let image: RgbImage = decode(&path).unwrap();
            image::imageops::flip_horizontal(&image)
                .save(folder.join(path.file_name().unwrap()))
                .unwrap();
        }
    }
    let evaluate = |options: &str| -> Value {
        let options: Vec<_> = options.split_whitespace().collect();
        let ran = wgrad.run(&[&["evaluate", "--json", "--weights", BEST], &options[..]].concat());
        ran.answer();
        ran.objects().swap_remove(0)
    };
    let number = |answer: &Value, key: &str| answer.pointer(key).unwrap().as_f64().unwrap();
    let val = evaluate("--data data");
    let test = evaluate("--data data --split test");
    assert_eq!((number(&val, "/images"), number(&test, "/images")), (4.0, 6.0));
    let mirrored = evaluate("--data mirrored");
    assert!((number(&test, "/loss") - number(&mirrored, "/loss")).abs() > 1e-4, "images differ");
    let both = ["--data data --split test --tta", "--data mirrored --tta"].map(evaluate);
    assert!((number(&both[0], "/loss") - number(&both[1], "/loss")).abs() < 1e-6, "{both:?}");
    assert!(
        (number(&both[0], "/loss") - number(&test, "/loss")).abs() > 1e-5,
        "tta does something"
    );

    for key in ["/macro/f1", "/weighted/f1", "/calibration/ece"] {
        assert!((0.0..=1.0).contains(&number(&test, key)), "{key}");
    }
    assert_eq!(test["calibration"]["bins"].as_array().unwrap().len(), 15);
    assert!(test["scaled"].is_null() && test["top"].is_null());
    let fitted = evaluate("--data data --temperature fit --top 2");
    assert!(number(&fitted, "/scaled/loss") <= number(&fitted, "/loss") + 1e-9);
    assert_eq!(number(&fitted, "/top/accuracy"), 1.0, "two guesses at two classes");
    let of_test = evaluate("--data data --split test --temperature fit");
    assert_eq!(of_test["scaled"]["temperature"], fitted["scaled"]["temperature"]);
    assert!(of_test["scaled"]["fitted_on"].as_str().unwrap().ends_with("val"));
    let fixed = evaluate("--data data --temperature 2");
    assert_eq!(number(&fixed, "/scaled/temperature"), 2.0);
    assert_ne!(fixed["scaled"]["loss"], fixed["loss"]);
    wgrad.run(&["evaluate", "--weights", BEST, "--temperature", "0"]).error(2);
    let missing = ["evaluate", "--weights", BEST, "--data", "data", "--split", "no"];
    assert!(wgrad.run(&missing).error(1).contains("no such split"));
}
