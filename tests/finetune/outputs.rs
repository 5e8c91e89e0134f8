//! The files and streams that `interface.md` promises, and that the same seed gives the same bits.

use std::fs;

use serde_json::Value;
use wgrad::checkpoint::{Checkpoint, HostData};

use crate::program::Wgrad;
use crate::run::numbers;

#[test]
fn a_run_writes_what_scripts_read() {
    let wgrad = Wgrad::with_images();
    let ran = wgrad.finetune("run", "--json --freeze-epochs 1 --epochs 2 --lr-mult 4 --seed 3");
    ran.answer();

    let args = fs::read_to_string(wgrad.path("run/args.json")).unwrap();
    let mut keys: Vec<_> = args.lines().filter_map(|line| line.strip_prefix("  \"")).collect();
    keys.sort_unstable();
    let unique = keys.iter().map(|line| line.split('"').next()).collect::<Vec<_>>();
    assert!(unique.windows(2).all(|pair| pair[0] != pair[1]), "twice the same key: {args}");
    let args: Value = serde_json::from_str(&args).unwrap();
    for (key, value) in [
        ("command", "finetune".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("arch", "resnet18-w8".into()),
        ("image_size", 32.into()),
        ("classes", serde_json::json!(["a", "b"])),
        ("batch_size", 4.into()),
        ("freeze_epochs", 1.into()),
        ("head_lr", 0.05.into()),
        ("lr_mult", 4.0.into()),
        ("workers", std::thread::available_parallelism().unwrap().get().into()),
        ("checked", false.into()),
        ("seed", 3.into()),
        ("augment", "none".into()),
        ("output_dir", "run".into()),
    ] {
        assert_eq!(args[key], value, "{key}");
    }
    for key in ["commit", "host", "adapter", "data", "optimizer", "lr", "lr_scheduler"] {
        assert!(!args[key].is_null(), "{key}");
    }
    assert!(args["adapter"]["name"].is_string() && args["adapter"]["driver"].is_string());

    let steps = wgrad.lines("run/steps.jsonl");
    assert_eq!(numbers(&steps, "step"), [0., 1., 2., 3., 4., 5., 6., 7., 8.]);
    assert_eq!(numbers(&steps, "epoch"), [0., 0., 0., 1., 1., 1., 2., 2., 2.]);
    assert_eq!(numbers(&steps, "images"), [4., 4., 2., 4., 4., 2., 4., 4., 2.]);
    assert!(numbers(&steps, "seconds").iter().all(|&seconds| seconds > 0.0));
    let keys = ["step", "epoch", "loss", "lr", "images", "seconds"];
    assert!(steps.iter().all(|step| step.as_object().unwrap().keys().eq(keys)));

    let results = fs::read_to_string(wgrad.path("run/results.csv")).unwrap();
    let rows: Vec<Vec<&str>> = results.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        results.lines().next().unwrap(),
        "epoch,time,train/loss,train/accuracy_top1,val/loss,metrics/accuracy_top1,\
         metrics/accuracy_top5,lr/pg0,lr/pg1,lr/pg2,lr/pg3,lr/pg4,lr/pg5,images_per_second"
    );
    assert_eq!(rows.len(), 4);
    for (row, epoch) in rows[1..].iter().zip(1..) {
        assert_eq!(row.len(), rows[0].len());
        assert_eq!(row[0], epoch.to_string());
        let row: Vec<f64> = row.iter().map(|cell| cell.parse().unwrap()).collect();
        // The epoch's mean over images, from its steps; the rates of its last step.
        let of = &steps[3 * (epoch - 1)..3 * epoch];
        let (losses, images) = (numbers(of, "loss"), numbers(of, "images"));
        let mean = losses.iter().zip(&images).map(|(loss, n)| loss * n).sum::<f64>() / 10.0;
        assert!((row[2] - mean).abs() < 1e-9, "{} is no mean of {losses:?}", row[2]);
        assert_eq!(serde_json::json!(row[7..13]), of[2]["lr"]);
        assert!((0.0..=1.0).contains(&row[3]) && (0.0..=1.0).contains(&row[5]));
        assert_eq!(row[6], 1.0, "of two classes the right one is among the first five");
    }

    for name in ["best", "last"] {
        let path = wgrad.path(&format!("run/weights/{name}.safetensors"));
        let read = Checkpoint::read(&path).unwrap();
        assert_eq!(read.arch.to_string(), "resnet18-w8");
        assert_eq!((&read.missing, &read.unexpected), (&vec![], &vec![]));
        assert_eq!(read.meta.classes, Some(vec!["a".into(), "b".into()]));
        assert_eq!(read.meta.image_size, Some(32));
        assert_eq!(read.meta.provenance.as_ref().unwrap()["seed"], 3);
        let tracked = &read.tensors["bn1.num_batches_tracked"];
        let epochs = read.meta.provenance.unwrap()["epoch"].as_i64().unwrap();
        let expected = HostData::I64(vec![3 * (epochs - 1)]);
        assert_eq!(tracked.data, expected, "the first epoch is frozen");
        let header = fs::read(&path).unwrap();
        let header = String::from_utf8_lossy(&header[8..4096]).into_owned();
        for key in ["format", "wgrad.arch", "wgrad.classes", "wgrad.mean", "wgrad.std"] {
            assert!(header.contains(&format!("\"{key}\":")), "{name}: no {key}");
        }
        assert!(header.contains("\"format\":\"pt\""));
    }

    let events = ran.objects();
    let of_kind = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let start = &events[0];
    assert_eq!((&start["event"], &start["train_images"]), (&"start".into(), &10.into()));
    assert!(of_kind("step").map(|event| &event["step"]).eq(&steps));
    let epochs: Vec<_> = of_kind("epoch").collect();
    assert_eq!((epochs.len(), of_kind("memory").count()), (3, 3));
    let best = of_kind("best").next_back().unwrap();
    let end = events.last().unwrap();
    assert_eq!((&end["event"], &end["best_epoch"]), (&"end".into(), &best["epoch"]));
    assert_eq!(end["output_dir"], "run");
    // What was read back is as good as what was written.
    let best = end["best_epoch"].as_u64().unwrap() as usize;
    assert_eq!(end["top1"], epochs[best - 1]["epoch"]["val"]["top1"]);
    assert!(ran.stderr.contains("epoch 3/3"), "lines for people: {}", ran.stderr);
}

#[test]
fn people_are_told_what_runs_before_it_runs() {
    let wgrad = Wgrad::with_images();
    fs::write(wgrad.path("data/val/b/1.heic"), "").unwrap();
    let ran = wgrad.finetune("run", "--epochs 1");
    let before = ran.answer().split("epoch 1/1").next().unwrap();
    for text in [
        "2 classes in data",
        "train 10 (a 5, b 5)",
        "val 4 (a 2, b 2)",
        "left out 1 file that is no image by its name: 1 heic",
        "network: resnet18-w8 with 2 classes, 32 px",
        "batch norm: ",
        "frozen layers: none",
        "memory: ",
    ] {
        assert!(before.contains(text), "no {text:?} in {before}");
    }
    assert!(ran.stdout.contains("everything is in run"), "{}", ran.stdout);
    assert_eq!(wgrad.finetune("quiet", "--epochs 1 --quiet").answer(), "");
    crate::run::write_images(&wgrad.path("many"), &[1; 13], 32);
    let ran = wgrad.finetune("many-run", "--data many --max-steps 1");
    assert!(ran.answer().contains("f 1, g 1, h 1 and 5 more)"), "{}", ran.stdout);
}

#[test]
fn runs_are_numbered() {
    let wgrad = Wgrad::with_images();
    let arguments = "finetune --data data --weights none --arch resnet18-w8 --image-size 32 \
                     --max-steps 1";
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    for folder in ["runs/finetune", "runs/finetune-2"] {
        wgrad.run(&arguments).answer();
        assert!(wgrad.path(folder).join("weights/last.safetensors").is_file());
    }
    let ran = wgrad.finetune("runs/finetune", "");
    assert!(ran.error(2).contains("is not empty"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "", "it is told before anything is read");
}

#[test]
fn a_tiny_set_is_learnt_by_heart() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("run", "--epochs 40 --batch-size 5").answer();
    let results = fs::read_to_string(wgrad.path("run/results.csv")).unwrap();
    let last: Vec<&str> = results.lines().last().unwrap().split(',').collect();
    assert_eq!(last[3], "1", "training accuracy: {results}");
    assert_eq!(last[5], "1", "validation accuracy: {results}");
}

#[test]
fn the_same_seed_gives_the_same_bits_whoever_loads_the_images() {
    let wgrad = Wgrad::with_images();
    let options = "--freeze-epochs 1 --epochs 2 --augment strong";
    let losses =
        |name: &str, more: &str| numbers(&wgrad.steps(name, &format!("{options} {more}")), "loss");
    let first = losses("first", "--workers 1");
    assert_eq!(losses("again", "--workers 1"), first);
    assert_eq!(losses("crowd", "--workers 5"), first);
    let bytes = |name: &str| fs::read(wgrad.path(name).join("weights/last.safetensors")).unwrap();
    assert!(bytes("again") == bytes("first"), "a run again");
    assert!(bytes("crowd") == bytes("first"), "with other --workers");
    assert_ne!(losses("other", "--seed 1"), first);
    assert!(
        wgrad.last("other")["layer4.1.conv2.weight"]
            != wgrad.last("first")["layer4.1.conv2.weight"]
    );
}

/// Asks with `kill`, which comes with every Unix.
#[cfg(unix)]
#[test]
fn an_interrupted_run_finishes_its_step_and_saves() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let wgrad = Wgrad::with_images();
    let arguments = "finetune --json --data data --weights none --arch resnet18-w8 --image-size 32 \
                     --batch-size 4 --epochs 1000000 --output-dir run";
    let mut child = wgrad
        .command(&arguments.split_whitespace().collect::<Vec<_>>())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut event = String::new();
    while !event.contains(r#""event":"step""#) {
        event.clear();
        assert!(stdout.read_line(&mut event).unwrap() > 0, "it ended before the first step");
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    // The rest must be read, or the program waits for its reader.
    stdout.lines().for_each(drop);
    let ran = crate::program::Ran::from(child.wait_with_output().unwrap());

    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    for text in ["finishing the step", "the weights so far are in run", "error: interrupted"] {
        assert!(ran.stderr.contains(text), "no {text:?} in {}", ran.stderr);
    }
    let steps = wgrad.lines("run/steps.jsonl");
    let page = fs::read_to_string(wgrad.path("run/report.html")).unwrap();
    assert!(page.contains(&format!("Interrupted after {} steps; --resume", steps.len())), "{page}");
    assert!(!page.contains("http-equiv=\"refresh\""), "nothing changes any more");
    // Every step that was done is in both files.
    let tracked = &wgrad.last("run")["bn1.num_batches_tracked"].data;
    assert_eq!(tracked, &HostData::I64(vec![steps.len() as i64]));
}
