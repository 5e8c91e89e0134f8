//! What stays as it was, to the bit, and what does not.

use wgrad::checkpoint::{Checkpoint, Dtype, HostTensor};
use wgrad::nn::Stage;

use crate::program::Wgrad;
use crate::run::numbers;

/// A folder with images and, in `start`, a network as random as at the start of a run.
fn with_start() -> Wgrad {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("start", "--lr 0 --bn frozen --max-steps 1").answer();
    wgrad
}

const START: &str = "--weights start/weights/last.safetensors --freeze-epochs 0";

/// Checks each tensor against its start: whether it changed must be what `changes` says of its name.
fn check(wgrad: &Wgrad, name: &str, options: &str, changes: impl Fn(&str) -> bool) {
    wgrad.finetune(name, &format!("{START} --epochs 1 {options}")).answer();
    let (start, end) = (wgrad.last("start"), wgrad.last(name));
    for (tensor, values) in &end {
        assert_eq!(values != &start[tensor], changes(tensor), "{options}: {tensor}");
    }
}

fn is_statistic(tensor: &str) -> bool {
    tensor.contains("running_") || tensor.ends_with("num_batches_tracked")
}

#[test]
fn frozen_layers_stay_as_they_are_with_their_statistics() {
    let wgrad = with_start();
    check(&wgrad, "none", "", |_| true);
    for (freeze, first) in [
        ("stem", Stage::Layer1),
        ("layer2", Stage::Layer3),
        ("layer4", Stage::Head),
        ("backbone", Stage::Head),
    ] {
        let options = format!("--freeze {freeze}");
        check(&wgrad, freeze, &options, |tensor| Stage::of(tensor) >= first);
    }
}

#[test]
fn frozen_batch_norm_keeps_its_statistics_and_learns_its_weights() {
    let wgrad = with_start();
    check(&wgrad, "bn", "--bn frozen", |tensor| !is_statistic(tensor));
}

#[test]
fn the_classifier_learns_alone_in_the_first_phase() {
    let wgrad = with_start();
    let ran = wgrad
        .finetune("head", "--weights start/weights/last.safetensors --epochs 0 --freeze-epochs 2");
    ran.answer();
    let (start, end) = (wgrad.last("start"), wgrad.last("head"));
    for (tensor, values) in &end {
        assert_eq!(values != &start[tensor], tensor.starts_with("fc."), "{tensor}");
    }
    let steps = wgrad.lines("head/steps.jsonl");
    assert_eq!(steps.len(), 6);
}

#[test]
fn the_classifier_is_kept_or_reset_as_asked() {
    let wgrad = with_start();
    let losses = |name: &str, options: &str| {
        numbers(&wgrad.steps(name, &format!("{START} --max-steps 1 --seed 9 {options}")), "loss")
    };
    let kept = losses("kept", "--head keep");
    assert_eq!(losses("auto", ""), kept, "the classes are the same");
    assert_ne!(losses("reset", "--head reset"), kept);
}

#[test]
fn a_classifier_is_kept_by_the_names_of_its_classes() {
    let wgrad = with_start();
    let alter = |name: &str, classes: [&str; 2], rows: [usize; 2]| {
        let mut checkpoint =
            Checkpoint::read(wgrad.path("start/weights/last.safetensors")).unwrap();
        checkpoint.meta.classes = Some(classes.map(str::to_owned).into());
        for tensor in ["fc.weight", "fc.bias"].map(str::to_owned) {
            let tensor = checkpoint.tensors.get_mut(&tensor).unwrap();
            let data = tensor.as_f32().unwrap();
            let halves: Vec<&[f32]> = data.chunks(data.len() / 2).collect();
            *tensor = HostTensor::f32(tensor.shape.clone(), rows.map(|row| halves[row]).concat());
        }
        checkpoint.write(wgrad.path(name), Dtype::F32).unwrap();
    };
    let run = |name: &str, options: &str| {
        let options = format!("--freeze-epochs 0 --max-steps 1 --seed 9 {options}");
        let ran = wgrad.finetune(name, &options);
        ran.answer();
        (numbers(&wgrad.lines(&format!("{name}/steps.jsonl")), "loss"), ran)
    };
    let (kept, _) = run("kept", "--weights start/weights/last.safetensors --head keep");
    alter("turned", ["b", "a"], [1, 0]);
    for head in ["keep", "auto"] {
        let (losses, ran) = run(head, &format!("--weights ./turned --head {head}"));
        assert_eq!(losses, kept, "{head}");
        assert!(!ran.stdout.contains("reset"), "{}", ran.stdout);
    }
    alter("renamed", ["x", "b"], [0, 1]);
    let (losses, ran) = run("renamed-run", "--weights ./renamed --head keep");
    assert_eq!(losses, kept);
    assert!(ran.stderr.contains("warning: --head keep: ./renamed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("x instead of a"), "{}", ran.stderr);
}

#[test]
fn l2_sp_pulls_back_to_the_start() {
    let wgrad = with_start();
    let distance = |name: &str, options: &str| {
        wgrad
            .finetune(name, &format!("{START} --epochs 3 --lr 0.02 --bn frozen {options}"))
            .answer();
        let (start, end) = (wgrad.last("start"), wgrad.last(name));
        let apart = |tensor: &str| {
            let [a, b] = [&start, &end].map(|tensors| tensors[tensor].as_f32().unwrap());
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        ["layer1.0.conv1.weight", "layer3.1.conv2.weight", "layer1.0.bn1.bias", "fc.weight"]
            .map(apart)
    };
    let (free, pulled) = (distance("free", ""), distance("pulled", "--l2-sp 10"));
    let close = [0, 1, 2, 3].map(|at| pulled[at] < 0.5 * free[at]);
    assert_eq!(close, [true, true, false, false], "{pulled:?}, free {free:?}");
}

#[test]
fn options_that_vary_images_are_warned_of_where_none_is_varied() {
    let wgrad = with_start();
    let start = "--weights start/weights/last.safetensors --epochs 1";
    let warned = |name: &str, options: &str| {
        let ran = wgrad.finetune(name, &format!("{start} {options}"));
        ran.answer();
        let of = |line: &&str| line.contains("of no effect: ");
        ran.stderr.lines().find(of).map(str::to_owned)
    };
    let varied = "--augment strong --auto-augment ra --mixup-alpha 0.2 --cutmix-alpha 1 --stochastic-depth 0.5";
    let told = warned("frozen", &format!("--freeze backbone {varied}")).unwrap();
    for option in [
        "--augment strong",
        "--auto-augment",
        "--mixup-alpha",
        "--cutmix-alpha",
        "--stochastic-depth",
    ] {
        assert!(told.contains(option), "{option}: {told}");
    }
    assert_eq!(warned("plain", "--freeze backbone --augment light"), None);
    assert_eq!(warned("trained", &format!("--freeze layer1 {varied}")), None);
}

/// An epoch that was cut short is not the best, however good, and that is said.
#[test]
fn an_epoch_cut_short_that_was_better_is_told_of() {
    let wgrad = Wgrad::with_images();
    let mut told_of = 0;
    for seed in 0..8 {
        let name = format!("cut{seed}");
        let options = format!("--seed {seed} --epochs 9 --best-by loss --max-steps 5 --json");
        let ran = wgrad.finetune(&name, &options);
        ran.answer();
        let events = ran.objects();
        let loss = |number: usize| {
            let mut epochs = events.iter().filter(|event| event["event"] == "epoch");
            epochs.nth(number).unwrap()["epoch"]["val"]["loss"].as_f64().unwrap()
        };
        let better = loss(1) < loss(0);
        let told =
            ran.stderr.contains("epoch 2 was better than epoch 1, but --max-steps cut it short");
        assert_eq!(told, better, "{}", ran.stderr);
        told_of += usize::from(told);
    }
    assert!(told_of > 0, "of eight, none was better");
}
