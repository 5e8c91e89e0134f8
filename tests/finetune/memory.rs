//! Device memory: as much as was planned, and no more with time.

use serde_json::Value;

use crate::program::{Ran, Wgrad};
use crate::run::write_images;

/// Bytes planned and bytes allocated, at the end of every epoch.
fn memory(ran: &Ran) -> Vec<[f64; 2]> {
    let is_memory = |event: &Value| event["event"] == "memory";
    let number = |value: &Value| value.as_f64().unwrap();
    let events = ran.objects().into_iter().filter(is_memory);
    events.map(|event| ["planned", "allocated"].map(|key| number(&event[key]))).collect()
}

#[test]
fn memory_is_what_was_planned_and_stays_flat() {
    let wgrad = Wgrad::new();
    // Odd last batches of 3 to train with and of 5 to validate with.
    write_images(&wgrad.path("data/train"), &[10, 9], 64);
    write_images(&wgrad.path("data/val"), &[7, 6], 64);
    for (name, options) in [
        ("whole", "--arch resnet18-w16"),
        ("bottleneck", "--arch resnet50-w8 --opt adamw --clip-grad-norm 1"),
        ("phases", "--arch resnet18-w16 --freeze-epochs 2 --l2-sp 0.1"),
        ("part", "--arch resnet18-w16 --freeze layer2 --lr-mult 4"),
    ] {
        let options = format!("{options} --image-size 64 --batch-size 8 --epochs 3 --json");
        let ran = wgrad.finetune(name, &options);
        ran.answer();
        let epochs = memory(&ran);
        for [planned, allocated] in &epochs {
            let share = allocated / planned;
            println!("{name}: {allocated} bytes, {share:.3} of what was planned");
            assert!((0.9..=1.1).contains(&share), "{name}: {share} of what was planned");
        }
        let whole = &epochs[epochs.len() - 3..];
        assert!(whole.iter().all(|epoch| epoch[1] == whole[0][1]), "{name}: {whole:?}");
    }
}

#[test]
fn computing_again_takes_less_and_changes_nothing() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data/train"), &[8, 8], 64);
    write_images(&wgrad.path("data/val"), &[4, 4], 64);
    let run = |name: &str, option: &str| {
        let options = "--arch resnet50-w8 --image-size 64 --batch-size 8 --epochs 1 --json";
        let ran = wgrad.finetune(name, &format!("{options} {option}"));
        ran.answer();
        let losses: Vec<Value> = wgrad
            .lines(&format!("{name}/steps.jsonl"))
            .into_iter()
            .map(|s| s["loss"].clone())
            .collect();
        (memory(&ran)[0][0], losses)
    };
    let ((kept, losses), (recomputed, again)) = (run("kept", ""), run("again", "--recompute"));
    assert_eq!(losses, again);
    assert!(recomputed < kept, "{recomputed} bytes, {kept} kept");
}

#[test]
fn what_cannot_be_bound_at_once_is_done_in_parts() {
    let wgrad = Wgrad::new();
    let ran = wgrad.run(&["devices", "--json"]);
    let chosen = ran.objects().into_iter().find(|adapter| adapter["chosen"] == true).unwrap();
    // The input is the largest tensor: four numbers a pixel.
    let limit = chosen["max_binding_bytes"].as_u64().unwrap();
    let images = (limit / (1024 * 1024 * 16) + 2) as usize;
    if images > 12 {
        println!("skipped: the adapter binds {limit} bytes, and that takes too long to exceed");
        return;
    }
    write_images(&wgrad.path("data/train"), &[images / 2, images.div_ceil(2)], 1024);
    write_images(&wgrad.path("data/val"), &[images / 2, images.div_ceil(2)], 1024);
    let options =
        format!("--image-size 1024 --batch-size {images} --max-steps 1 --arch resnet18-w4");
    let ran = wgrad.finetune("run", &options);
    ran.answer();
    assert!(ran.stderr.contains(&format!("a batch of {images} does not fit")), "{}", ran.stderr);
}
