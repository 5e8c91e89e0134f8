//! A run that was stopped, whenever and however, goes on to the bits it would have come to.

use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use wgrad::checkpoint::Checkpoint;

use crate::program::{Ran, Wgrad};
use crate::run::numbers;

impl Wgrad {
    /// Goes on with the run in the folder `name`.
    pub fn resume(&self, name: &str, options: &str) -> Ran {
        self.resume_as("finetune", name, options)
    }

    /// Goes on with a run of `command`.
    pub fn resume_as(&self, command: &str, name: &str, options: &str) -> Ran {
        let options: Vec<_> = options.split_whitespace().collect();
        self.run(&[&[command, "--resume", name], &options[..]].concat())
    }
}

/// Everything of a run that may not depend on whether it was stopped.
fn outcome(wgrad: &Wgrad, name: &str) -> (Vec<Vec<u8>>, Vec<Value>, Vec<Vec<String>>) {
    let weights = ["best", "last"]
        .map(|kind| fs::read(wgrad.path(&format!("{name}/weights/{kind}.safetensors"))).unwrap());
    let without_time = |mut step: Value| {
        step.as_object_mut().unwrap().remove("seconds");
        step
    };
    let steps = wgrad.lines(&format!("{name}/steps.jsonl")).into_iter().map(without_time);
    let results = fs::read_to_string(wgrad.path(&format!("{name}/results.csv"))).unwrap();
    let header: Vec<&str> = results.lines().next().unwrap().split(',').collect();
    let takes_time = |name: &str| ["time", "images_per_second"].contains(&name);
    let row = |line: &str| -> Vec<String> {
        let cells = header.iter().zip(line.split(','));
        cells.filter(|(name, _)| !takes_time(name)).map(|(_, cell)| cell.to_owned()).collect()
    };
    (weights.into(), steps.collect(), results.lines().map(row).collect())
}

pub fn assert_same(wgrad: &Wgrad, name: &str, expected: &str) {
    let (weights, steps, results) = outcome(wgrad, name);
    let (expected_weights, expected_steps, expected_results) = outcome(wgrad, expected);
    assert_eq!(steps, expected_steps, "{name}");
    assert_eq!(results, expected_results, "{name}");
    assert!(weights == expected_weights, "{name}: the same losses, but other weights");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let wgrad = Wgrad::with_images();
    for (kind, options) in [
        ("sgd", "--freeze-epochs 1 --epochs 2 --augment light --lr-mult 4 --l2-sp 0.1"),
        (
            "adam",
            "--freeze-epochs 1 --epochs 2 --opt adamw --clip-grad-norm 1 --lr-warmup-epochs 1 \
             --mixup-alpha 0.4 --cutmix-alpha 1 --dropout 0.2 --stochastic-depth 0.3 --balance sampler",
        ),
        (
            "mixed",
            "--precision mixed --freeze-epochs 1 --epochs 2 --opt adamw --l2-sp 0.1 \
             --model-ema-decay 0.5",
        ),
        ("average", "--epochs 5 --unfreeze-every 1 --model-ema-decay 0.5 --accumulate 2"),
    ] {
        let whole = format!("{kind}-whole");
        wgrad.finetune(&whole, options).answer();
        // In the classifier's phase, at an epoch's end, after the first step of the network, and
        // before the last.
        for steps in [1, 3, 4, 8] {
            let name = format!("{kind}-{steps}");
            wgrad.finetune(&name, &format!("{options} --max-steps {steps}")).answer();
            let ran = wgrad.resume(&name, "--max-steps 1000 --workers 3 --save-every 2");
            assert!(
                ran.answer().contains(&format!("going on after {steps} steps")),
                "{}",
                ran.stdout
            );
            assert_same(&wgrad, &name, &whole);
        }
    }
    let ran = wgrad.resume("sgd-1", "");
    assert!(ran.answer().contains("the run is complete"), "{}", ran.stdout);
    assert_same(&wgrad, "sgd-1", "sgd-whole");
}

#[test]
fn another_run_is_not_gone_on_with() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 2 --max-steps 4").answer();
    for (options, texts) in [
        ("--lr 0.5", &["another lr", "0.01", "0.5"][..]),
        ("--epochs 3", &["another epochs", "2", "3"]),
        ("--opt adamw --lr 0.01", &["another optimizer", "adamw"]),
        ("--arch resnet34-w8", &["another arch", "resnet18-w8", "resnet34-w8"]),
        ("--image-size 96", &["another image-size", "32", "96"]),
    ] {
        let ran = wgrad.resume("run", options);
        let error = ran.error(2);
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    }
    fs::rename(wgrad.path("run"), wgrad.path("a run")).unwrap();
    let ran = wgrad.run(&["pretrain", "--resume", "a run"]);
    assert!(ran.error(2).contains("`wgrad finetune --resume 'a run'` goes on"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "", "told before anything is looked at");
    let weights = "--weights 'a run/weights/last.safetensors'";
    assert!(wgrad.run(&["finetune", "--resume", "a run", "--lr", "1"]).error(2).contains(weights));
    fs::rename(wgrad.path("a run"), wgrad.path("run")).unwrap();
    wgrad.finetune("grows", "--image-size 32..64 --epochs 2 --max-steps 1").answer();
    let ran = wgrad.resume("grows", "--image-size 64");
    assert!(ran.error(2).contains("another first-image-size (32"), "{}", ran.stderr);

    // Elsewhere the same images are the same; one more, or one under another name, is not.
    fs::rename(wgrad.path("data"), wgrad.path("moved")).unwrap();
    let ran = wgrad.resume("run", "");
    assert!(ran.error(1).contains("begun elsewhere, --data says where"), "{}", ran.stderr);
    let ran = wgrad.resume("run", "--data moved --max-steps 5");
    assert!(ran.answer().contains("going on after 4 steps"), "{}", ran.stdout);
    let [old, new] = ["moved/train/b/0.png", "moved/train/b/00.png"].map(|name| wgrad.path(name));
    fs::copy(&old, &new).unwrap();
    let ran = wgrad.resume("run", "--data moved");
    assert!(ran.error(2).contains("the images of train/b are not those"), "{}", ran.stderr);
    assert!(ran.stderr.contains("6 images") && ran.stderr.contains("5 images"), "{}", ran.stderr);
    fs::remove_file(old).unwrap();
    assert!(wgrad.resume("run", "--data moved").error(2).contains("under other names"));
}

#[test]
fn a_run_at_its_limit_stays_there() {
    let wgrad = Wgrad::with_images();
    let options = "--epochs 2 --best-by loss --bn frozen --lr 0.002";
    let ran = wgrad.finetune("whole", options);
    assert!(ran.answer().contains("batch norm: frozen everywhere; frozen"), "{}", ran.stdout);
    let best = Checkpoint::read(wgrad.path("whole/weights/best.safetensors")).unwrap();
    // Or this would not show whether the last epoch counts.
    assert_eq!(best.meta.provenance.unwrap()["epoch"], 2);
    wgrad.finetune("last", &format!("{options} --max-steps 6")).answer();
    assert_same(&wgrad, "last", "whole");
    assert!(wgrad.resume("last", "").answer().contains("the run is complete"));

    for (limit, rows) in [(3, 1), (4, 2)] {
        let name = format!("limit{limit}");
        wgrad.finetune(&name, &format!("{options} --max-steps {limit}")).answer();
        wgrad.finetune("same", &format!("{options} --max-steps {limit}")).answer();
        wgrad.resume(&name, "").answer();
        assert_same(&wgrad, &name, "same");
        fs::remove_dir_all(wgrad.path("same")).unwrap();
        assert_eq!(wgrad.lines(&format!("{name}/steps.jsonl")).len(), limit);
        let results = fs::read_to_string(wgrad.path(&name).join("results.csv")).unwrap();
        assert_eq!(results.lines().count(), 1 + rows, "{results}");
        wgrad.resume(&name, "--max-steps 100").answer();
        assert_same(&wgrad, &name, "whole");
    }
}

#[test]
fn a_run_of_an_older_version_is_gone_on_with() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--freeze-epochs 1 --epochs 2 --max-steps 4").answer();
    // What was worked out from other options was null once, and checks were not noted.
    let mut args = wgrad.args("run");
    assert_eq!((&args["head_lr"], &args["lr_mult"]), (&0.05.into(), &1.0.into()));
    args["head_lr"] = Value::Null;
    args["lr_mult"] = Value::Null;
    args["workers"] = 0.into();
    args.as_object_mut().unwrap().remove("checked");
    fs::write(wgrad.path("run/args.json"), args.to_string()).unwrap();
    for (options, text) in
        [("--head-lr 0.3", "another head-lr"), ("--lr-mult 2", "another lr-mult")]
    {
        assert!(wgrad.resume("run", options).error(2).contains(text));
    }
    let ran = wgrad.resume("run", "--max-steps 5 --head-lr 0.05 --lr-mult 1");
    assert!(ran.answer().contains("going on after 4 steps"), "{}", ran.stdout);
    wgrad.resume("run", "--max-steps 6").answer();
    assert_eq!(wgrad.lines("run/steps.jsonl").len(), 6);
}

#[test]
fn a_damaged_state_is_told() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 1 --max-steps 2").answer();
    let state = wgrad.path("run/state/state.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() - 8]).unwrap();
    let ran = wgrad.resume("run", "");
    assert!(ran.error(1).contains("no state to go on from"), "{}", ran.stderr);
    fs::remove_file(&state).unwrap();
    let ran = wgrad.resume("run", "--max-steps 3");
    assert!(ran.answer().contains("begins again"), "{}", ran.stdout);
    assert_eq!(wgrad.lines("run/steps.jsonl").len(), 3, "what had been logged is cut off");
}

#[test]
fn patience_ends_a_run_that_gets_no_better() {
    let wgrad = Wgrad::with_images();
    // Nothing is learnt, so that no epoch is better than the first.
    let options = "--lr 0 --bn frozen --epochs 9 --freeze-epochs 2 --patience 3";
    let steps = wgrad.steps("run", options);
    assert_eq!(steps.len(), 3 * (2 + 3), "the classifier's epochs do not count");
    let ran = wgrad.resume("run", "");
    assert!(ran.answer().contains("the run is complete"), "{}", ran.stdout);
}

#[test]
fn the_best_epoch_is_that_of_the_measure_asked_for() {
    let wgrad = Wgrad::with_images();
    // Under a wrong label, so that the surer the network is, the larger the loss.
    for index in 2..5 {
        let [right, wrong] = ["train/b", "val/a"].map(|of| format!("data/{of}/{index}.png"));
        fs::copy(wgrad.path(&right), wgrad.path(&wrong)).unwrap();
    }
    let best = |name: &str, options: &str| {
        let ran =
            wgrad.finetune(name, &format!("--json --epochs 4 --bn frozen --lr 0.002 {options}"));
        ran.answer();
        let events = ran.objects();
        let epochs = events.iter().filter(|event| event["event"] == "epoch");
        let val = |key: &'static str| {
            epochs.clone().map(move |event| event["epoch"]["val"][key].as_f64().unwrap())
        };
        let (top1, loss) = (val("top1").collect::<Vec<_>>(), val("loss").collect::<Vec<_>>());
        (events.last().unwrap()["best_epoch"].as_u64().unwrap() as usize - 1, top1, loss)
    };
    let (by_loss, _, losses) = best("loss", "--best-by loss");
    assert!(losses.iter().all(|&loss| loss >= losses[by_loss]), "{by_loss}: {losses:?}");
    let (by_accuracy, top1, losses) = best("accuracy", "");
    let better =
        |epoch: usize| (top1[epoch], -losses[epoch]) > (top1[by_accuracy], -losses[by_accuracy]);
    assert!(!(0..4).any(better), "{by_accuracy}: {top1:?}, {losses:?}");
    // Both must not pick the same epoch, or this would show nothing.
    assert_ne!(by_loss, by_accuracy, "{top1:?}, {losses:?}");
}

/// Killed twenty times, mostly once a random number of further steps is done and then a random
/// moment later, so that every launch comes a little further; sometimes right at the start.
#[cfg(unix)]
#[test]
fn a_run_killed_at_twenty_random_moments_comes_to_the_same_bits() {
    let wgrad = Wgrad::with_images();
    let options = "--freeze-epochs 2 --epochs 14 --augment light --save-every 1";
    wgrad.finetune("whole", options).answer();

    let begin = |arguments: &str| -> Child {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let mut command = wgrad.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let first = format!(
        "finetune --output-dir run --data data --weights none --arch resnet18-w8 --image-size 32 \
         --batch-size 4 {options}"
    );
    // Numerical Recipes' generator; the moments differ from run to run all the same.
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223) % (1 << 32);
        (state >> 8) % below
    };
    let begun = || wgrad.path("run/args.json").is_file();
    let log = wgrad.path("run/steps.jsonl");
    let logged = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let (mut kills, mut launches) = (0, 0);
    while kills < 20 {
        launches += 1;
        assert!(launches < 200, "{kills} kills in so many launches");
        let before = logged();
        let mut child = match begun() {
            true => begin("finetune --resume run"),
            false => {
                let _ = fs::remove_dir_all(wgrad.path("run"));
                begin(&first)
            }
        };
        let further = if kills % 5 == 0 { 0 } else { 1 + random(4) as usize };
        let running = |child: &mut Child| child.try_wait().unwrap().is_none();
        while further > 0 && logged() < before + further && running(&mut child) {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(random(if further > 0 { 40 } else { 400 })));
        if running(&mut child) {
            child.kill().unwrap();
            kills += 1;
            child.wait().unwrap();
        } else {
            // It came to its end, where this process got no time to kill it: once more.
            assert_eq!(child.wait().unwrap().code(), Some(0));
            assert_same(&wgrad, "run", "whole");
            fs::remove_dir_all(wgrad.path("run")).unwrap();
        }
    }
    // A folder that holds no options yet has not been begun.
    if !begun() {
        let _ = fs::remove_dir_all(wgrad.path("run"));
        begin(&first).wait().unwrap();
    }
    wgrad.resume("run", "").answer();
    assert_same(&wgrad, "run", "whole");
    let [run, whole] =
        ["run", "whole"].map(|name| numbers(&wgrad.lines(&format!("{name}/steps.jsonl")), "loss"));
    assert_eq!(run, whole);
    for room in ["run", "run/weights", "run/state"] {
        let mut files = fs::read_dir(wgrad.path(room)).unwrap();
        let temporary = |name: &str| name.starts_with(".wgrad-");
        assert!(
            !files.any(|file| temporary(&file.unwrap().file_name().to_string_lossy())),
            "{room}"
        );
    }
}
