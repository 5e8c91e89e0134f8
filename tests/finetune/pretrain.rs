//! `wgrad pretrain`: its defaults, and each of its options from random weights.

use serde_json::Value;
use wgrad::checkpoint::{Checkpoint, HostTensor};

use crate::program::Wgrad;
use crate::resume::assert_same;
use crate::run::{numbers, rates};

impl Wgrad {
    fn pretrain(&self, name: &str, options: &str) -> Vec<Value> {
        self.train("pretrain", name, options).answer();
        self.lines(&format!("{name}/steps.jsonl"))
    }
}

#[test]
fn pretraining_has_defaults_of_its_own_and_says_so() {
    let wgrad = Wgrad::with_images();
    let help = wgrad.run(&["pretrain", "--help"]);
    for text in ["[default: 90]", "[default: 64]", "0.1 for each 256 images", "[default: none]"] {
        assert!(help.answer().contains(text), "{text}: {}", help.stdout);
    }
    let steps = wgrad.pretrain("plain", "--max-steps 3");
    let args = wgrad.args("plain");
    for (option, value) in [
        ("epochs", 90.0),
        ("freeze_epochs", 0.0),
        ("lr", 0.1 * 4.0 / 256.0),
        ("lr_warmup_epochs", 5.0),
        ("label_smoothing", 0.1),
        ("norm_weight_decay", 0.0),
        ("weight_decay", 1e-4),
    ] {
        assert_eq!(args[option].as_f64(), Some(value), "{option}: {args}");
    }
    assert_eq!(args["weights"], "none");
    assert_eq!(args["zero_init_residual"], false);
    // The rate rises from a hundredth of what it will be, over 5 epochs of 3 steps.
    for (step, rate) in rates(&steps).into_iter().flatten().enumerate() {
        let expected = 0.1 * 4.0 / 256.0 * (0.01 + 0.99 * step as f64 / 15.0);
        assert!((rate / expected - 1.0).abs() < 1e-9, "step {step}: {rate}, not {expected}");
    }
    for (options, option, value) in [
        ("--accumulate 2", "lr", 0.1 * 8.0 / 256.0),
        ("--opt adamw", "lr", 1e-3),
        ("--lr 0.3", "lr", 0.3),
        ("--epochs 1", "lr_warmup_epochs", 0.0),
        ("--epochs 30", "lr_warmup_epochs", 2.0),
        ("--lr-scheduler onecycle", "lr_warmup_epochs", 0.0),
        ("--lr-warmup-epochs 7", "lr_warmup_epochs", 7.0),
    ] {
        let name = options.trim_start_matches('-').replace(' ', "-");
        wgrad.pretrain(&name, &format!("{options} --max-steps 1"));
        assert_eq!(wgrad.args(&name)[option].as_f64(), Some(value), "{options}");
    }
}

#[test]
fn blocks_may_begin_as_their_shortcuts() {
    let wgrad = Wgrad::with_images();
    for (arch, last) in [("resnet18-w8", "bn2"), ("resnet50-w8", "bn3")] {
        let start = format!("--arch {arch} --lr 0 --max-steps 1");
        wgrad.pretrain(arch, &start);
        wgrad.pretrain("zeros", &format!("{start} --zero-init-residual"));
        let (plain, zeros) = (wgrad.last(arch), wgrad.last("zeros"));
        std::fs::remove_dir_all(wgrad.path("zeros")).unwrap();
        let is_last = |name: &str| name.ends_with(&format!(".{last}.weight"));
        let blocks = plain.keys().filter(|name| is_last(name)).count();
        assert_eq!(blocks, if last == "bn2" { 8 } else { 16 });
        let parameters = |name: &&String| !name.contains("running") && !name.contains("tracked");
        for name in plain.keys().filter(parameters) {
            let all = |tensors: &std::collections::BTreeMap<String, HostTensor>, value: f32| {
                tensors[name].as_f32().unwrap().iter().all(|&found| found == value)
            };
            if is_last(name) {
                assert!(all(&plain, 1.0) && all(&zeros, 0.0), "{arch}: {name}");
            } else {
                assert!(
                    plain[name].as_f32().unwrap() == zeros[name].as_f32().unwrap(),
                    "{arch}: {name}"
                );
            }
        }
    }
    let ran = wgrad.finetune("refused", "--weights bundled --zero-init-residual");
    assert!(ran.error(2).contains("--zero-init-residual is about random weights"));
}

#[test]
fn images_grow_over_the_epochs() {
    let wgrad = Wgrad::with_images();
    // 40, 48, 56 and 64 px; the classifier's epoch before them has the size that it is validated at.
    let options = "--epochs 4 --lr 0.05 --augment light";
    let ran = wgrad.train("pretrain", "grows", &format!("{options} --image-size 40..64"));
    let told =
        "images of 40 px from epoch 1, 48 px from epoch 2, 56 px from epoch 3, 64 px from epoch 4";
    assert!(ran.answer().contains(told), "{}", ran.stdout);
    assert!(ran.stdout.contains("images of 56 px from here on"), "{}", ran.stdout);
    let path = wgrad.path("grows/weights/last.safetensors");
    assert_eq!(Checkpoint::read(path).unwrap().meta.image_size, Some(64));
    let losses = numbers(&wgrad.lines("grows/steps.jsonl"), "loss");
    assert_eq!(losses.len(), 12);
    for size in [40, 64] {
        let fixed = format!("{options} --image-size {size} --max-steps 4");
        let fixed = numbers(&wgrad.pretrain(&format!("fixed-{size}"), &fixed), "loss");
        assert_eq!(losses[..3] == fixed[..3], size == 40, "{size}: {losses:?} {fixed:?}");
        assert_ne!(losses[3], fixed[3], "{size}");
    }
    // Stopped before, at, and after a change.
    for steps in [2, 3, 7] {
        let name = format!("grows-{steps}");
        wgrad.pretrain(&name, &format!("{options} --image-size 40..64 --max-steps {steps}"));
        wgrad.resume_as("pretrain", &name, "--max-steps 1000").answer();
        assert_same(&wgrad, &name, "grows");
    }
    for (sizes, text) in [
        ("64..40", "from a smaller size to a larger"),
        ("64..64", "from a smaller size to a larger"),
        ("44..64", "multiples of 8"),
        ("16..64", "32 to 8192"),
    ] {
        let ran = wgrad.train("pretrain", "refused", &format!("--image-size {sizes}"));
        assert!(ran.error(2).contains(text), "{sizes}: {}", ran.stderr);
    }
    let ran = wgrad.train("pretrain", "refused", "--image-size 48..");
    assert!(ran.error(2).contains("48.."), "{}", ran.stderr);
}

#[test]
fn what_regularises_pretraining_is_there() {
    let wgrad = Wgrad::with_images();
    let run = |name: &str, options: &str| {
        let own = "--epochs 2 --lr 0.1 --weight-decay 0.5";
        numbers(&wgrad.pretrain(name, &format!("{own} {options}")), "loss")
    };
    let plain = run("plain", "");
    let sharp = run("sharp", "--label-smoothing 0");
    assert_ne!(plain[0], sharp[0], "the targets of the first step are smooth already");

    let norms = run("norms", "--norm-weight-decay 0.5");
    assert_eq!(plain[0], norms[0]);
    assert_ne!(plain[2], norms[2], "decay reaches batch norm when asked to, and only then");

    let average = run("average", "--model-ema-decay 0.5");
    assert_eq!(plain, average, "an average follows and does not lead");
    let averaged = Checkpoint::read(wgrad.path("average/weights/ema.safetensors")).unwrap().tensors;
    assert!(
        averaged["conv1.weight"].as_f32().unwrap()
            != wgrad.last("average")["conv1.weight"].as_f32().unwrap()
    );

    // A warm-up of one epoch, then half a cosine over the other's three steps.
    let rates: Vec<f64> = rates(&wgrad.lines("plain/steps.jsonl")).into_iter().flatten().collect();
    assert!(rates[0] < rates[1] && rates[1] < rates[2] && rates[2] < rates[3], "{rates:?}");
    assert_eq!(rates[3], 0.1);
    assert!((rates[4] / 0.075 - 1.0).abs() < 1e-9, "(1 + cos(π/3)) / 2: {rates:?}");
    assert!((rates[5] / 0.025 - 1.0).abs() < 1e-9, "(1 + cos(2π/3)) / 2: {rates:?}");
}
