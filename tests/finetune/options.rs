//! Every option does what it says, as far as `steps.jsonl` shows.

use std::f64::consts::PI;

use crate::program::Wgrad;
use crate::run::{numbers, rates, write_images};

/// An option that does nothing would leave the losses as they are; one that did it too early or too
/// late would change another step's first.
#[test]
fn options_change_the_loss_from_the_step_on_that_they_should() {
    let wgrad = Wgrad::with_images();
    let plain = numbers(&wgrad.steps("plain", "--epochs 1"), "loss");
    for (index, (options, first)) in [
        // What the network sees or is.
        ("--seed 1", 0),
        ("--no-shuffle", 0),
        ("--image-size 40", 0),
        ("--augment light", 0),
        ("--augment strong", 0),
        ("--auto-augment ra", 0),
        ("--auto-augment ta", 0),
        ("--batch-size 3", 0),
        ("--accumulate 2", 0),
        ("--arch resnet18-w4", 0),
        ("--arch resnet34-w8", 0),
        ("--bn frozen", 0),
        ("--freeze stem", 0),
        ("--label-smoothing 0.1", 0),
        ("--mixup-alpha 0.4", 0),
        ("--cutmix-alpha 1", 0),
        ("--balance sampler", 0),
        ("--dropout 0.5", 0),
        ("--stochastic-depth 0.5", 0),
        // The first update.
        ("--lr 0.02", 1),
        ("--lr-mult 5", 1),
        ("--opt adam", 1),
        ("--opt adamw", 1),
        ("--recipe fastai", 1),
        ("--nesterov", 1),
        ("--wd 0.1", 1),
        ("--norm-weight-decay 0.1", 1),
        ("--clip-grad-norm 0.01", 1),
        ("--lr-scheduler onecycle", 1),
        // The second: before it there is no momentum, no distance from the start, and no schedule.
        ("--momentum 0", 2),
        ("--l2-sp 1", 2),
        ("--lr-scheduler constant", 2),
    ]
    .into_iter()
    .enumerate()
    {
        let losses = wgrad.steps(&format!("run{index}"), &format!("--epochs 1 {options}"));
        let losses = numbers(&losses, "loss");
        let differs = plain.iter().zip(&losses).position(|(a, b)| a != b);
        assert_eq!(differs, Some(first), "{options}: {losses:?}, without it {plain:?}");
    }
}

/// No loss tells whether shaders have bounds checks, but the device does, and `args.json` by it.
#[test]
fn bounds_checks_are_kept_if_asked_for_and_change_nothing() {
    let wgrad = Wgrad::with_images();
    let plain = numbers(&wgrad.steps("plain", "--epochs 1"), "loss");
    let checked = numbers(&wgrad.steps("checked", "--epochs 1 --checked"), "loss");
    let apart = |(a, b): (&f64, &f64)| (a - b).abs() / a;
    assert!(plain.iter().zip(&checked).map(apart).all(|part| part < 1e-4), "{checked:?}");
    assert_eq!(wgrad.args("plain")["checked"], false);
    assert_eq!(wgrad.args("checked")["checked"], true);
}

#[test]
fn the_adapter_asked_for_is_the_one_that_trains() {
    let wgrad = Wgrad::with_images();
    let devices = wgrad.run(&["devices", "--json"]);
    let usable = |adapter: &serde_json::Value| adapter["unusable"].is_null();
    for adapter in devices.objects().into_iter().filter(usable) {
        let (index, backend) = (adapter["index"].to_string(), adapter["backend"].as_str().unwrap());
        let options = format!("--adapter {index} --backend {backend} --epochs 1 --max-steps 1");
        let ran = wgrad.finetune(&index, &options);
        ran.answer();
        assert!(ran.stderr.contains("adapter: "), "asked for, so no warning: {}", ran.stderr);
        assert_eq!(wgrad.args(&index)["adapter"]["index"], adapter["index"]);
        assert_eq!(wgrad.args(&index)["adapter"]["backend"], adapter["backend"]);
    }
}

#[test]
fn a_profile_is_a_table_and_a_trace() {
    let wgrad = Wgrad::with_images();
    let ran = wgrad.finetune("run", "--epochs 1 --max-steps 2 --profile trace.json");
    let told = ran.answer();
    if wgrad.args("run")["adapter"]["timestamps"] == false {
        assert!(ran.stderr.contains("cannot time its dispatches"), "{}", ran.stderr);
        return;
    }
    assert!(told.contains("profile of 2 steps: ") && told.contains("trace of the first 2 steps"));
    let trace = std::fs::read(wgrad.path("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of_step = |step: u64| {
        let of_step = events.iter().filter(move |event| event["args"]["step"] == step);
        of_step.map(|event| event["name"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of_step(0), of_step(1), "every step is the same");
    assert!(of_step(0).iter().any(|name| name.starts_with("conv2d")), "{:?}", of_step(0));
    assert!(events.iter().all(|event| event["dur"].as_f64().unwrap() >= 0.0));

    // Nothing of what the frozen layers make of all images, nor of an evaluation between epochs.
    let options = "--freeze backbone --epochs 2 --profile frozen.json";
    wgrad.finetune("frozen", options).answer();
    let trace = std::fs::read_to_string(wgrad.path("frozen.json")).unwrap();
    assert!(trace.contains("cross_entropy_backward"), "{trace}");
    assert!(!trace.contains("max_pool2d") && !trace.contains("batch_norm"), "{trace}");
}

#[test]
fn a_profile_that_cannot_be_written_is_told_before_training() {
    let wgrad = Wgrad::with_images();
    let ran = wgrad.finetune("run", "--epochs 1 --profile none/trace.json");
    let text = "checking where the profile goes: none/trace.json: cannot be written: ";
    assert!(ran.error(1).contains(text), "{}", ran.stderr);
    assert!(!wgrad.path("run").exists(), "nothing was started");

    // In the run's own folder, only the end shows it.
    let ran = wgrad.finetune("run", "--epochs 1 --max-steps 2 --profile run/none/trace.json");
    assert!(ran.answer().contains("from the written file"), "{}", ran.stdout);
    if wgrad.args("run")["adapter"]["timestamps"] == true {
        let text = "warning: no profile was written: run/none/trace.json: ";
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
    }
    wgrad.finetune("own", "--epochs 1 --max-steps 2 --profile own/trace.json").answer();
    // So it is where the run picks the folder.
    let options = "--data data --weights none --arch resnet18-w8 --image-size 32 --max-steps 2";
    let profile = ["finetune", "--profile", "runs/finetune/trace.json"];
    wgrad.run(&[&profile, &options.split(' ').collect::<Vec<_>>()[..]].concat()).answer();
}

#[test]
fn augmentation_has_three_strengths() {
    let wgrad = Wgrad::with_images();
    let losses = |name: &str, options: &str| {
        let options = format!("{options} --max-steps 1");
        numbers(&wgrad.steps(name, &options), "loss")
    };
    let none = losses("none", "--augment none");
    let (light, strong) =
        (losses("light", "--augment light"), losses("strong", "--augment strong"));
    assert!(none != light && light != strong && strong != none);
    let arguments = "finetune --data data --weights none --arch resnet18-w8 --image-size 32 \
                     --batch-size 4 --max-steps 1 --no-augment --output-dir off";
    wgrad.run(&arguments.split_whitespace().collect::<Vec<_>>()).answer();
    assert_eq!(numbers(&wgrad.lines("off/steps.jsonl"), "loss"), none);
}

#[test]
fn the_learning_rate_follows_its_schedule() {
    let wgrad = Wgrad::with_images();
    let cosine = |at: f64| (1.0 + (PI * at).cos()) / 2.0;
    let check = |name: &str, options: &str, expected: &[f64]| {
        let steps = wgrad.steps(name, &format!("--lr 0.1 {options}"));
        let found: Vec<f64> = rates(&steps).into_iter().flatten().collect();
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(close),
            "{options}: {found:?}, not {expected:?}"
        );
    };
    check("constant", "--epochs 1 --lr-scheduler constant", &[0.1; 3]);
    check("cosine", "--epochs 2", &[0., 1., 2., 3., 4., 5.].map(|step| 0.1 * cosine(step / 6.0)));
    check(
        "step",
        "--epochs 3 --lr-scheduler step --lr-step-size 2 --lr-gamma 0.5",
        &[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05],
    );
    // OneCycleLR(max_lr=0.1, total_steps=6): a quarter turn up to step 0.8, then down to step 5.
    check(
        "onecycle",
        "--epochs 2 --lr-scheduler onecycle",
        &[0., 1., 2., 3., 4., 5.].map(|step| match step < 0.8 {
            true => 0.004,
            false => 4e-7 + (0.1 - 4e-7) * cosine((step - 0.8) / 4.2),
        }),
    );
    check(
        "warm-up",
        "--epochs 2 --lr-warmup-epochs 1",
        &[0.001, 0.034, 0.067, 0.1, 0.1 * cosine(1.0 / 3.0), 0.1 * cosine(2.0 / 3.0)],
    );
    // Each phase has a schedule of its own, and sgd's classifier five times the rate.
    check(
        "phases",
        "--epochs 1 --freeze-epochs 1",
        &[
            0.5,
            0.5 * cosine(1.0 / 3.0),
            0.5 * cosine(2.0 / 3.0),
            0.1,
            0.1 * cosine(1.0 / 3.0),
            0.1 * cosine(2.0 / 3.0),
        ],
    );
    check("head", "--epochs 0 --freeze-epochs 1 --head-lr 0.3 --lr-scheduler constant", &[0.3; 3]);
}

#[test]
fn earlier_layers_learn_at_lower_rates() {
    let wgrad = Wgrad::with_images();
    let options = "--epochs 1 --freeze-epochs 1 --lr 0.1 --lr-mult 32 --lr-scheduler constant";
    let check = |name: &str, options: &str, expected: [&[f64]; 2]| {
        let found = rates(&wgrad.steps(name, options));
        for (step, found) in found.iter().enumerate() {
            let expected = expected[step / 3];
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(close),
                "step {step}: {found:?}, not {expected:?}"
            );
        }
    };
    let stages = [1., 2., 4., 8., 16., 32.].map(|factor| 0.1 / 32.0 * factor);
    check("all", options, [&[0., 0., 0., 0., 0., 0.5], &stages]);
    let options = format!("{options} --freeze layer3 --norm-weight-decay 0.01");
    check("some", &options, [&[0., 0.5], &[0.1 / 32.0, 0.1]]);
}

#[test]
fn images_come_in_order_or_shuffled_and_the_last_may_be_dropped() {
    let wgrad = Wgrad::with_images();
    // Nothing is learnt: a loss tells the batch.
    let losses = |name: &str, options: &str| {
        numbers(&wgrad.steps(name, &format!("--lr 0 --bn frozen --epochs 2 {options}")), "loss")
    };
    let ordered = losses("ordered", "--no-shuffle");
    assert_eq!(ordered[..3], ordered[3..], "every epoch is the same");
    let shuffled = losses("shuffled", "");
    assert_ne!(shuffled[..3], shuffled[3..], "every epoch is shuffled afresh");
    assert!(!ordered.contains(&shuffled[0]));

    let steps = wgrad.steps("dropped", "--no-shuffle --lr 0 --bn frozen --epochs 2 --drop-last");
    assert_eq!(numbers(&steps, "images"), [4.0; 4]);
    assert_eq!(numbers(&steps, "loss"), [&ordered[..2], &ordered[..2]].concat());
    // Batch norm needs two values a channel, and at 32 px the last has one an image.
    let ran = wgrad.finetune("single", "--batch-size 3 --epochs 1");
    assert!(ran.answer().contains("a last batch of a single image is left out"), "{}", ran.stdout);
    assert_eq!(numbers(&wgrad.lines("single/steps.jsonl"), "images"), [3.0; 3]);
    for (name, options) in [("kept", "--bn frozen"), ("asked", "--drop-last")] {
        let ran = wgrad.finetune(name, &format!("--batch-size 3 --epochs 1 {options}"));
        assert!(!ran.answer().contains("is left out"), "{options}: {}", ran.stdout);
    }
    // Two an image are few, but for a batch norm that is frozen, or images with more places in the last layers.
    for (name, options, warned) in [
        ("two", "--batch-size 4", true),
        ("five", "--batch-size 5", false),
        ("still", "--batch-size 4 --bn frozen", false),
        ("larger", "--batch-size 4 --image-size 64", false),
    ] {
        let ran = wgrad.finetune(name, &format!("--epochs 1 --max-steps 1 {options}"));
        ran.answer();
        let told = ran
            .stderr
            .contains("warning: the last batch has 2 images, of each of which batch norm");
        assert_eq!(told, warned, "{options}: {}", ran.stderr);
    }
    let ran = wgrad.finetune("none", "--batch-size 11 --drop-last");
    assert!(ran.error(2).contains("10 images make no batch of 11"), "{}", ran.stderr);
}

#[test]
fn a_run_stops_after_so_many_steps_over_both_phases() {
    let wgrad = Wgrad::with_images();
    let steps = wgrad.steps("run", "--freeze-epochs 1 --epochs 5 --max-steps 5");
    assert_eq!(numbers(&steps, "step"), [0., 1., 2., 3., 4.]);
    assert_eq!(numbers(&steps, "epoch"), [0., 0., 0., 1., 1.]);
    let full = wgrad.steps("full", "--freeze-epochs 1 --epochs 5");
    assert_eq!(numbers(&full, "loss")[..5], numbers(&steps, "loss"), "the schedule is the same");
    assert!(wgrad.path("run/weights/best.safetensors").is_file());
}

#[test]
fn a_flat_folder_is_split_as_asked() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data"), &[10, 10], 32);
    for (options, train, val) in
        [("", 16, 4), ("--val-fraction 0.5", 10, 10), ("--val-fraction 0", 20, 0)]
    {
        let ran = wgrad.finetune(&format!("run{train}"), &format!("{options} --max-steps 1"));
        let told = ran.answer();
        assert!(told.contains(&format!("train {train} ")), "{options}: {told}");
        assert!(told.contains(&format!("val {val} ")), "{options}: {told}");
    }
}

/// Nothing is learnt at a rate of 0, so that a loss tells what the network saw and was to answer.
#[test]
fn skewed_classes_are_balanced_by_drawing_or_by_weighing() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data/train"), &[12, 4], 32);
    write_images(&wgrad.path("data/val"), &[2, 2], 32);
    let losses = |name: &str, options: &str| {
        let options = format!("--lr 0 --bn frozen --epochs 1 --batch-size 1 {options}");
        numbers(&wgrad.steps(name, &options), "loss")
    };
    let count = |losses: &[f64], of: &[f64]| of.iter().filter(|of| losses.contains(of)).count();
    let plain = losses("plain", "--no-shuffle");
    let rare = &plain[12..];
    let drawn = losses("sampler", "--balance sampler");
    assert_eq!(count(rare, &drawn), 8, "half of the draws: {drawn:?} of {plain:?}");
    assert_eq!(count(&plain[..12], &drawn), 8, "and half: {drawn:?} of {plain:?}");
    // PyTorch divides by the sum of the weights: alone in a batch an image's does not show, but four
    // of one class with twelve of the other do: 16 / (2·12) and 16 / (2·4).
    let alone = losses("alone", "--balance loss --no-shuffle");
    let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6 * b;
    assert!(alone.iter().zip(&plain).all(close), "{alone:?}, not {plain:?}");
    let whole = losses("loss", "--balance loss --batch-size 16")[0];
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let expected = (mean(&plain[..12]) + mean(rare)) / 2.0;
    assert!((whole - expected).abs() < 1e-6 * expected, "{whole}, not {expected}");
    let plain = losses("together", "--batch-size 16")[0];
    assert!((plain - expected).abs() > 1e-3 * expected);
}

#[test]
fn what_is_dropped_and_mixed_follows_from_the_seed_alone() {
    let wgrad = Wgrad::with_images();
    let options = "--epochs 1 --freeze-epochs 1 --dropout 0.3 --stochastic-depth 0.4 \
                   --mixup-alpha 0.4 --cutmix-alpha 1 --balance loss";
    let run = |name: &str, more: &str| wgrad.steps(name, &format!("{options} {more}"));
    let losses = |steps: &[serde_json::Value]| numbers(steps, "loss");
    let first = losses(&run("first", ""));
    assert_eq!(first, losses(&run("again", "--workers 1")));
    assert_ne!(first, losses(&run("other", "--seed 1")));
    let options = "--epochs 1 --freeze-epochs 1 --max-steps 1";
    let plain = losses(&wgrad.steps("plain", options));
    let dropped = losses(&wgrad.steps("head", &format!("{options} --dropout 0.5")));
    assert_ne!(plain, dropped, "cached features are dropped too");
    for wrong in ["--dropout 1", "--stochastic-depth -0.1", "--mixup-alpha -1"] {
        assert!(wgrad.finetune("wrong", wrong).error(2).contains(&wrong[..7]));
    }
    wgrad.finetune("wrong", "--balance sampler --no-shuffle").error(2);
}
