//! The first 300 steps of pretraining beside PyTorch's, on the same batches from the same weights; or
//! more of them, and how good the networks are then.
//!
//!     cargo run --release --example first_steps -- prepare DATA DIR [SIZE [BATCH [STEPS]]]
//!     wgrad pretrain --data DIR/data.tar --image-size SIZE --batch-size BATCH --epochs 2 \
//!         --no-augment --output-dir DIR/wgrad
//!     python benches/compare/torch_pretrain.py DIR BATCH float32
//!     python benches/compare/torch_pretrain.py DIR BATCH float64
//!     cargo run --release --example first_steps -- draw DIR
//!     wgrad evaluate --data DATA --weights DIR/torch-float32.safetensors   # or DIR/wgrad/weights/last.…
//!
//! DATA is Tiny ImageNet, as a folder or archives. `prepare` writes to DIR what both begin from: an
//! archive of so many images a class that an epoch has STEPS steps of BATCH (150 of 32 if not told
//! otherwise, at 64 px), or a little more, the initial weights, and the pixels of every batch in wgrad's
//! order, so that decoding and shuffling are out of the comparison. `draw` tells how far the losses are
//! apart, and draws `first_steps.png`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use wgrad::checkpoint::{Checkpoint, Dtype as Stored, Meta};
use wgrad::data::{Augment, Dataset, Item, Loader, Order, ScanOptions, Transform};
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::nn::{Arch, ResNet};
use wgrad::report::{Curve, Ink, curves, write_charts};
use wgrad::{Error, Result};

const USAGE: &str = "first_steps prepare DATA DIR [SIZE [BATCH [STEPS]]], or first_steps draw DIR";
/// What the command above says.
const EPOCHS: u64 = 2;
/// Steps that the curves are averaged over.
const WINDOW: usize = 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["prepare", data, folder, ref sizes @ ..] if sizes.len() <= 3 => {
            let number = |at: usize, default: usize| {
                sizes.get(at).map_or(Some(default), |text| text.parse().ok())
            };
            let [Some(size), Some(batch), Some(steps)] =
                [(0, 64), (1, 32), (2, 150)].map(|(at, default)| number(at, default))
            else {
                return Err(Error::Usage(USAGE.into()));
            };
            prepare(Path::new(data), Path::new(folder), size as u32, steps * batch)
        }
        ["draw", folder] => draw(Path::new(folder)),
        _ => Err(Error::Usage(USAGE.into())),
    }
}

fn prepare(data: &Path, folder: &Path, size: u32, images: usize) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let dataset = Dataset::scan(data, &ScanOptions::default())?;
    let archive = folder.join("data.tar");
    let images = images.div_ceil(dataset.classes.len());
    let write = || -> std::io::Result<()> {
        let mut builder = tar::Builder::new(File::create(&archive)?);
        for (split, items, count) in [("train", &dataset.train, images), ("val", &dataset.val, 1)] {
            let mut taken = vec![0; dataset.classes.len()];
            for item in items {
                let (class, taken) =
                    (&dataset.classes[item.label as usize], &mut taken[item.label as usize]);
                if *taken < count {
                    *taken += 1;
                    let name = item.path.file_name().unwrap_or_default().to_string_lossy();
                    let bytes = item.read().map_err(std::io::Error::other)?;
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    builder.append_data(
                        &mut header,
                        format!("{split}/{class}/{name}"),
                        &bytes[..],
                    )?;
                }
            }
        }
        builder.finish()
    };
    write().map_err(Error::io(&archive))?;

    let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default())?;
    let arch = Arch::from_name("resnet18")?;
    let start = Checkpoint {
        arch,
        tensors: ResNet::new(&gpu, arch, dataset.classes.len(), 0)?.tensors(&gpu)?,
        meta: Meta {
            classes: Some(dataset.classes.clone()),
            image_size: Some(size),
            ..Meta::default()
        },
        dtype: Stored::F32,
        missing: Vec::new(),
        unexpected: Vec::new(),
    };
    start.write(folder.join("start.safetensors"), Stored::F32)?;

    let items = Dataset::scan(&archive, &ScanOptions::default())?.train;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for epoch in 0..EPOCHS {
        load(&items, epoch, size, &mut pixels, &mut labels)?;
    }
    let labels: Vec<u8> = labels.iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect();
    let (count, side) = (labels.len() / 8, size as usize);
    let view =
        |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).map_err(std::io::Error::other);
    let path = folder.join("batches.safetensors");
    let tensors = || -> std::io::Result<_> {
        Ok(BTreeMap::from([
            ("pixels", view(Dtype::U8, vec![count, side, side, 3], &pixels)?),
            ("labels", view(Dtype::I64, vec![count], &labels)?),
        ]))
    };
    let tensors = tensors().map_err(Error::io(&path))?;
    safetensors::serialize_to_file(tensors, None, &path)
        .map_err(|error| Error::checkpoint(&path, error.to_string()))
}

/// The images of an epoch's batches, one after the other.
fn load(
    items: &[Item],
    epoch: u64,
    size: u32,
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<()> {
    // Batches come one after the other, so that only the order of all images matters.
    let order = Order { seed: 0, epoch, shuffle: true, batch_size: 64, drop_last: false };
    let transform = Transform { size, augment: Augment::None, auto_augment: None };
    let batches = order.batches(items.len());
    for batch in Loader::new(items.to_vec(), batches, transform, 0, epoch, 0)? {
        let batch = batch?;
        pixels.extend(batch.pixels);
        labels.extend(batch.labels);
    }
    Ok(())
}

fn draw(folder: &Path) -> Result<()> {
    let wgrad = losses(&folder.join("wgrad/steps.jsonl"))?;
    let torch = losses(&folder.join("torch-float32.jsonl"))?;
    println!("{} steps of wgrad, {} of PyTorch", wgrad.len(), torch.len());
    let apart = |what: &str, a: &[f64], b: &[f64]| {
        let apart: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        for steps in [50, 100, 200, 300] {
            let Some(apart) = apart.get(..steps) else { continue };
            let most = apart.iter().copied().fold(0.0, f64::max);
            let mean = apart.iter().sum::<f64>() / steps as f64;
            println!(
                "{what}: losses of the first {steps} steps are {mean:.1e} apart, {most:.1e} at most"
            );
        }
    };
    let exact = losses(&folder.join("torch-float64.jsonl"))?;
    apart("wgrad and PyTorch, both f32", &wgrad, &torch);
    apart("wgrad f32 and PyTorch f64", &wgrad, &exact);
    apart("PyTorch f32 and PyTorch f64", &torch, &exact);
    let curve = |name: &str, points, ink| Curve {
        name: name.into(),
        points,
        ink: Ink::Series(ink),
        faint: false,
    };
    // In powers of ten, no less than rounding.
    let distance = |losses: &[f64]| -> Vec<(f64, f64)> {
        let apart: Vec<f64> = losses.iter().zip(&exact).map(|(a, b)| (a - b).abs()).collect();
        averaged(&apart).into_iter().map(|(step, mean)| (step, mean.max(1e-7).log10())).collect()
    };
    let charts = [
        curves(
            &format!("Loss of the first {} steps of pretraining", wgrad.len()),
            "step",
            false,
            &[
                curve("PyTorch in f64", averaged(&exact), 2),
                curve("PyTorch in f32", averaged(&torch), 1),
                curve("wgrad", averaged(&wgrad), 0),
            ],
        ),
        curves(
            "How far from PyTorch in f64, in powers of ten",
            "step",
            false,
            &[curve("PyTorch in f32", distance(&torch), 1), curve("wgrad", distance(&wgrad), 0)],
        ),
    ];
    write_charts(&folder.join("first_steps.png"), &charts)
}

/// The mean of the last [`WINDOW`] values at every step.
fn averaged(losses: &[f64]) -> Vec<(f64, f64)> {
    let mean = |at: usize| {
        let window = &losses[(at + 1).saturating_sub(WINDOW)..=at];
        (at as f64, window.iter().sum::<f64>() / window.len() as f64)
    };
    (0..losses.len()).map(mean).collect()
}

/// The loss of every step, from lines of JSON.
fn losses(path: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let loss = |line: &str| serde_json::from_str::<Value>(line).ok()?["loss"].as_f64();
    Ok(text.lines().map_while(loss).collect())
}
