//! What practitioners add to plain training: averages, unfreezing stage by stage, accumulation, the
//! range test, recipes, cached features.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use wgrad::checkpoint::{Checkpoint, HostTensor};
use wgrad::data::decode;

use crate::program::Wgrad;
use crate::run::{numbers, rates, write_images};

fn tensors(wgrad: &Wgrad, path: &str) -> BTreeMap<String, HostTensor> {
    Checkpoint::read(wgrad.path(path)).unwrap().tensors
}

/// The largest difference between two lists, relative to the numbers.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max)
}

#[test]
fn the_average_follows_weights_and_statistics_and_is_what_counts() {
    let wgrad = Wgrad::with_images();
    let options = "--epochs 1 --lr-scheduler constant --lr 0.001";
    let average = format!("{options} --model-ema-decay 0.75 --json");
    let ran = wgrad.finetune("average", &average);
    ran.answer();
    let after = |steps: u64| {
        let name = format!("after{steps}");
        wgrad.finetune(&name, &format!("{options} --max-steps {steps}")).answer();
        wgrad.last(&name)
    };
    let weights = [after(1), after(2), after(3)];
    assert!(wgrad.last("average") == weights[2], "the network itself is as without an average");
    let found = tensors(&wgrad, "average/weights/ema.safetensors");
    for (name, found) in &found {
        let Some(found) = found.as_f32() else { continue };
        let [first, second, third] = [0, 1, 2].map(|at| weights[at][name].as_f32().unwrap());
        for (at, found) in found.iter().enumerate() {
            // The first update copies.
            let expected = 0.75 * (0.75 * first[at] + 0.25 * second[at]) + 0.25 * third[at];
            let allowed = 1e-6 * (first[at].abs() + second[at].abs() + third[at].abs());
            assert!((found - expected).abs() <= allowed, "{name}: {found}, not {expected}");
        }
    }
    assert!(tensors(&wgrad, "average/weights/best.safetensors") == found, "the best is an average");
    let events = ran.objects();
    let epoch = events.iter().find(|event| event["event"] == "epoch").unwrap();
    assert_ne!(epoch["epoch"]["val_ema"]["loss"], epoch["epoch"]["val"]["loss"]);
    let results = fs::read_to_string(wgrad.path("average/results.csv")).unwrap();
    let rows: Vec<Vec<&str>> = results.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows[0].ends_with(&["ema/loss", "ema/accuracy_top1", "ema/accuracy_top5"]));
    let loss: f64 = rows[1][rows[1].len() - 3].parse().unwrap();
    assert_eq!(loss, epoch["epoch"]["val_ema"]["loss"].as_f64().unwrap());
    // Read back from the file, and computed by another plan of the same sums.
    let end = events.last().unwrap()["loss"].as_f64().unwrap();
    assert!((end / loss - 1.0).abs() < 1e-4, "{end}, {loss}");
}

#[test]
fn stages_unfreeze_one_after_the_other_under_one_schedule() {
    let wgrad = Wgrad::with_images();
    let all = rates(&wgrad.steps("all", "--epochs 6 --lr-mult 2"));
    let ran = wgrad.finetune("gradual", "--epochs 6 --lr-mult 2 --unfreeze-every 1");
    let begun: Vec<_> =
        ran.answer().lines().filter_map(|line| line.strip_prefix("training ")).collect();
    let ends = [" for 1 of 6 epochs, 3 steps each", " for 2 of 6 epochs, 3 steps each"];
    let stages = ["layer4", "layer3", "layer2", "layer1"];
    let mut phases = stages.map(|stage| format!("{stage} and what follows it{}", ends[0])).to_vec();
    phases.push(format!("the whole network{}", ends[1]));
    assert_eq!(begun, phases);
    let gradual = rates(&wgrad.lines("gradual/steps.jsonl"));
    for (step, (all, gradual)) in all.iter().zip(&gradual).enumerate() {
        let frozen = 4usize.saturating_sub(step / 3);
        assert_eq!(gradual[..frozen], vec![0.0; frozen], "step {step}");
        assert_eq!(gradual[frozen..], all[frozen..], "step {step}");
    }
    // What is still frozen is as it was.
    wgrad.finetune("start", "--lr 0 --bn frozen --max-steps 1").answer();
    wgrad.finetune("early", "--epochs 5 --unfreeze-every 1 --max-steps 5").answer();
    let (start, early) = (wgrad.last("start"), wgrad.last("early"));
    for (tensor, changes) in [("layer2.0.conv1.weight", false), ("layer3.0.conv1.weight", true)] {
        assert_eq!(start[tensor] != early[tensor], changes, "{tensor}");
    }
}

#[test]
fn gradients_of_several_batches_add_up_to_a_step() {
    let wgrad = Wgrad::with_images();
    let losses = |name: &str, options: &str| {
        let steps = wgrad.steps(name, &format!("--epochs 2 --lr 0.001 {options}"));
        assert_eq!(numbers(&steps, "images"), [4., 4., 2., 4., 4., 2.]);
        numbers(&steps, "loss")
    };
    let whole = losses("whole", "--bn frozen");
    let parts = losses("parts", "--bn frozen --batch-size 2 --accumulate 2");
    assert!(apart(&whole, &parts) < 1e-3, "{whole:?}, {parts:?}");
    // Batch norm sees the parts.
    let (whole, parts) = (losses("bn", ""), losses("bn-parts", "--batch-size 2 --accumulate 2"));
    assert!(apart(&whole, &parts) > 1e-3, "{whole:?}, {parts:?}");
    let ran = wgrad.finetune("told", "--batch-size 2 --accumulate 2 --max-steps 1");
    assert!(ran.answer().contains("batch norm sees each part by itself"), "{}", ran.stdout);
}

#[test]
fn parts_of_a_step_are_even_and_none_is_a_single_image() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data/train"), &[7, 6], 32);
    write_images(&wgrad.path("data/val"), &[2, 2], 32);
    let images = |name: &str, options: &str| {
        numbers(&wgrad.steps(name, &format!("--epochs 1 {options}")), "images")
    };
    assert_eq!(images("even", "--accumulate 4"), [13.0]);
    // Of the last five images, two at a time, one would be alone: batch norm has no use for them.
    assert_eq!(images("left-out", "--batch-size 2 --accumulate 4"), [8.0]);
    assert_eq!(images("frozen", "--batch-size 2 --accumulate 4 --bn frozen"), [8.0, 5.0]);
}

#[test]
fn the_range_test_leaves_the_weights_as_they_are() {
    let wgrad = Wgrad::with_images();
    let options = "--freeze-epochs 1 --epochs 1 --seed 2";
    let ran = wgrad.finetune("find", &format!("{options} --lr-find --json"));
    ran.answer();
    let found = ran.objects().into_iter().find(|event| event["event"] == "lr_find").unwrap();
    let csv = fs::read_to_string(wgrad.path("find/lr_find.csv")).unwrap();
    assert_eq!(csv.lines().next(), Some("lr,loss,smoothed_loss"));
    assert_eq!(csv.lines().count() as u64, 1 + found["steps"].as_u64().unwrap());
    decode(wgrad.path("find/lr_find.png")).expect("a picture of the curve");
    assert!(!wgrad.path("find/weights/last.safetensors").exists(), "nothing was trained");

    wgrad.finetune("auto", &format!("{options} --lr auto --model-ema-decay 0.5")).answer();
    wgrad
        .finetune("given", &format!("{options} --lr {} --model-ema-decay 0.5", found["lr"]))
        .answer();
    for file in ["last", "best", "ema"] {
        let bytes =
            |name| fs::read(wgrad.path(&format!("{name}/weights/{file}.safetensors"))).unwrap();
        assert!(bytes("auto") == bytes("given"), "{file}");
    }
    let args = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(wgrad.path(name).join("args.json")).unwrap()).unwrap()
    };
    assert_eq!(args("auto")["lr"], found["lr"]);

    wgrad.finetune("stopped", &format!("{options} --lr auto --max-steps 4")).answer();
    wgrad.run(&["finetune", "--resume", "stopped", "--max-steps", "9"]).answer();
    wgrad.finetune("whole", &format!("{options} --lr auto")).answer();
    assert!(wgrad.last("stopped") == wgrad.last("whole"));
}

#[test]
fn a_recipe_is_what_is_not_said() {
    let wgrad = Wgrad::with_images();
    let args = |name: &str, options: &str| -> (Value, Vec<f64>) {
        let steps = wgrad.steps(name, &format!("--freeze-epochs 1 --epochs 2 {options}"));
        let args = fs::read(wgrad.path(name).join("args.json")).unwrap();
        let of_head = rates(&steps).into_iter().map(|rates| *rates.last().unwrap()).collect();
        (serde_json::from_slice(&args).unwrap(), of_head)
    };
    let (fastai, found) = args("fastai", "--recipe fastai");
    let cycle = |pct_start, div_factor, final_div_factor| {
        json!({ "name": "onecycle", "pct_start": pct_start, "div_factor": div_factor,
            "final_div_factor": final_div_factor })
    };
    for (key, value) in [
        ("optimizer", json!({ "name": "adamw" })),
        ("lr", json!(0.001)),
        ("lr_mult", json!(100.0)),
        ("weight_decay", json!(0.01)),
        ("lr_scheduler", cycle(0.3, 5.0, 2e4)),
        ("head_lr_scheduler", cycle(0.99, 25.0, 4e3)),
    ] {
        assert_eq!(fastai[key], value, "{key}");
    }
    // The classifier begins at 0.002/25; the network begins at 0.001/5 and is highest near step 0.8.
    assert!((found[0] - 8e-5).abs() < 1e-12 && (found[3] - 2e-4).abs() < 1e-12, "{found:?}");
    assert!(found[0] < found[1] && found[4] > 9e-4 && found[8] < 1e-7, "{found:?}");

    let given = "--recipe fastai --opt sgd --lr 0.02 --lr-mult 3 --wd 0 --lr-scheduler constant";
    let (given, found) = args("given", given);
    assert_eq!(given["optimizer"]["name"], "sgd");
    assert_eq!((&given["lr_mult"], &given["weight_decay"]), (&json!(3.0), &json!(0.0)));
    assert_eq!(found, [0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02]);

    let shape = "--lr-scheduler onecycle --pct-start 0.5 --div-factor 2 --final-div-factor 10";
    let (_, found) = args("shape", &format!("--lr 0.01 --epochs 2 {shape}"));
    assert!((found[3] - 0.005).abs() < 1e-12 && (found[8] - 0.0005).abs() < 1e-12, "{found:?}");
    assert!((found[5] - 0.01).abs() < 1e-12, "highest after half of six steps: {found:?}");
}

#[test]
fn what_frozen_layers_make_of_the_same_pixels_is_computed_once() {
    let wgrad = Wgrad::with_images();
    let told = |name: &str, options: &str| {
        let ran = wgrad.finetune(name, &format!("--epochs 2 --lr 0.001 {options}"));
        let cached = ran.answer().contains("computed once");
        assert_eq!(cached, ran.stdout.contains("times as fast"), "{}", ran.stdout);
        (cached, numbers(&wgrad.lines(&format!("{name}/steps.jsonl")), "loss"))
    };
    for freeze in ["stem", "layer1", "layer3"] {
        let options = format!("--freeze {freeze}");
        let (cached, once) = told(&format!("{freeze}-once"), &options);
        let options = format!("{options} --cache-features never");
        let (again, each_time) = told(&format!("{freeze}-never"), &options);
        assert!(cached && !again, "{freeze}");
        assert!(apart(&once, &each_time) < 1e-3, "{freeze}: {once:?}, {each_time:?}");
    }
    assert!(!told("none", "").0, "nothing is frozen");
    assert!(!told("light", "--freeze layer1 --augment light").0, "other pixels each time");
    assert!(told("asked", "--freeze layer1 --augment light --cache-features always").0);
    assert!(told("head", "--freeze backbone --augment light").0);
    let seen = told("head-augmented", "--freeze backbone --augment light --cache-features never");
    assert!(!seen.0);
}

#[test]
fn what_varies_mixes_or_grows_is_never_computed_once() {
    let wgrad = Wgrad::with_images();
    let varied =
        ["--auto-augment ra", "--mixup-alpha 1", "--cutmix-alpha 1", "--image-size 32..64"];
    for (index, option) in varied.into_iter().enumerate() {
        let options = format!("--freeze layer3 --epochs 2 --max-steps 1 {option}");
        let ran = wgrad.finetune(&format!("run{index}"), &options);
        assert!(!ran.answer().contains("computed once"), "{option}: {}", ran.stdout);
        let always = format!("{options} --cache-features always");
        let ran = wgrad.finetune("refused", &always);
        let name = option.split(' ').next().unwrap();
        assert!(ran.error(2).contains("--cache-features always"), "{}", ran.stderr);
        assert!(ran.stderr.contains(name), "{}", ran.stderr);
    }
    // The classifier alone sees images as validation does, and none of them mixed.
    let losses = |name: &str, options: &str| {
        let options = format!("--freeze-epochs 1 --epochs 1 --max-steps 4 {options}");
        numbers(&wgrad.steps(name, &options), "loss")
    };
    let cached = losses("cached", "--cache-features always --mixup-alpha 1");
    let never = losses("never", "--cache-features never --mixup-alpha 1 --cutmix-alpha 1");
    let plain = losses("plain", "--cache-features never");
    assert_eq!(never[..3], plain[..3], "not mixed");
    assert_ne!(never[3], plain[3], "mixed");
    assert!(apart(&cached[..3], &plain[..3]) < 1e-3, "{cached:?}, {plain:?}");
}

#[test]
fn phases_that_freeze_the_same_share_what_was_computed_once() {
    let wgrad = Wgrad::with_images();
    let options = "--freeze backbone --freeze-epochs 1 --epochs 1";
    let whole = wgrad.finetune("whole", options);
    assert_eq!(whole.answer().matches("computed once").count(), 1, "{}", whole.stdout);
    assert_eq!(whole.stdout.matches("times as fast").count(), 1, "{}", whole.stdout);
    // A run that begins with the second phase computes them anew, to the same bits.
    wgrad.finetune("stopped", &format!("{options} --max-steps 3")).answer();
    let resumed = wgrad.run(&["finetune", "--resume", "stopped", "--max-steps", "6"]);
    assert_eq!(resumed.answer().matches("computed once").count(), 1, "{}", resumed.stdout);
    assert!(wgrad.last("stopped") == wgrad.last("whole"));
}
