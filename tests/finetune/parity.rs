//! The losses of the program are PyTorch's: `tests/fixtures/trainer/make.py` says what was run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde::Deserialize;
use wgrad::checkpoint::{Checkpoint, Dtype, HostData, HostTensor};

use crate::program::Wgrad;
use crate::run::{numbers, rates};

const SIDE: u32 = 64;
const TRAIN: [u32; 3] = [7, 6, 6];
const VAL: [u32; 3] = [2, 1, 1];
/// Losses may be so many times as far from f64 as PyTorch's own in f32, which is one way of summing
/// among many.
const SLACK: f64 = 4.0;
/// And so far in any case: a few roundings of f32.
const FLOOR: f64 = 1e-6;

#[derive(Deserialize)]
struct Expected {
    arguments: Vec<String>,
    rates: Vec<f64>,
    losses: Vec<f64>,
    losses_f32: f64,
    val_losses: Vec<f64>,
    val_losses_f32: f64,
}

#[test]
fn losses_are_those_of_pytorch() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(package.join("tests/fixtures/trainer/losses.json")).unwrap();
    let runs: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    let wgrad = Wgrad::new();
    write_split(&wgrad.path("data/train"), TRAIN, 0);
    write_split(&wgrad.path("data/val"), VAL, 100);
    write_start(&package.join("weights/resnet18-tiny-imagenet.safetensors"), wgrad.path("start"));
    for (name, expected) in runs {
        let mut options =
            "--weights start --arch resnet18 --head keep --image-size 64 --no-shuffle --epochs 3 \
                           --max-steps 12"
                .to_owned();
        if !expected.arguments.iter().any(|argument| argument == "--freeze-epochs") {
            options += " --freeze-epochs 0";
        }
        let steps = wgrad.steps(&name, &format!("{options} {}", expected.arguments.join(" ")));

        let allowed = FLOOR.max(SLACK * expected.losses_f32);
        close(&format!("{name}: loss"), &numbers(&steps, "loss"), &expected.losses, allowed);
        let last = |rates: Vec<f64>| *rates.last().unwrap();
        let rates: Vec<f64> = rates(&steps).into_iter().map(last).collect();
        close(&format!("{name}: rate"), &rates, &expected.rates, 1e-12);
        let results = fs::read_to_string(wgrad.path(&name).join("results.csv")).unwrap();
        let column = |row: &str| row.split(',').nth(4).unwrap().parse().unwrap();
        let validation: Vec<f64> = results.lines().skip(1).map(column).collect();
        let allowed = FLOOR.max(SLACK * expected.val_losses_f32);
        close(&format!("{name}: validation"), &validation, &expected.val_losses, allowed);
    }
}

fn close(what: &str, found: &[f64], expected: &[f64], allowed: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = |(found, expected): (&f64, &f64)| (found - expected).abs() / expected.abs();
    let worst = found.iter().zip(expected).map(off).fold(0.0, f64::max);
    println!("{what}: off by {worst:.1e}, {:.2} of what is allowed", worst / allowed);
    assert!(worst <= allowed, "{what} is off by {worst:.1e}: {found:?}, not {expected:?}");
}

fn write_split(folder: &Path, counts: [u32; 3], mut index: u32) {
    for (label, count) in (0..).zip(counts) {
        let folder = folder.join(format!("class {label}"));
        fs::create_dir_all(&folder).unwrap();
        for _ in 0..count {
            pixels(index, label).save(folder.join(format!("{index:03}.png"))).unwrap();
            index += 1;
        }
    }
}

fn pixels(index: u32, label: u32) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        Rgb([0, 1, 2].map(|c| {
            let stripes = (x * (3 + label) + y * (5 + 2 * c) + 31 * index) % 256;
            let checks = (x / (4 + label) + y / (3 + c) + index) % 2 * 90;
            ((stripes + checks) / 2) as u8
        }))
    })
}

/// The bundled weights with a classifier by formula.
fn write_start(weights: &Path, path: PathBuf) {
    let mut start = Checkpoint::read(weights).unwrap();
    let classes = TRAIN.len();
    let number = |i: usize| ((i * 7919 % 1000) as f64 - 500.0) / 1e4;
    let weight = (0..classes * 512).map(|i| number(i) as f32).collect();
    let tensor = |shape: Vec<usize>, data| HostTensor { shape, data: HostData::F32(data) };
    start.tensors.insert("fc.weight".into(), tensor(vec![classes, 512], weight));
    start.tensors.insert("fc.bias".into(), tensor(vec![classes], vec![0.0; classes]));
    start.meta.classes = Some((0..classes).map(|label| format!("class {label}")).collect());
    start.write(path, Dtype::F32).unwrap();
}
