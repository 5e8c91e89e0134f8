//! Evaluation logits of ResNet-18, 34 and 50 against torchvision's, timm's and transformers', from
//! checkpoints in their layouts and every dtype.

use std::path::Path;

use half::{bf16, f16};
use serde::Deserialize;
use wgrad::checkpoint::Checkpoint;
use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::nn::arch::Kind;
use wgrad::nn::{Arch, ResNet};
use wgrad::verify::network::{Batch, evaluate};

use super::formulas::{CLASSES, made_up};
use super::{common, fixture, name};

/// How far a logit may be off, as a part of the largest.
const BOUND: f64 = 2e-4;

#[derive(Deserialize)]
struct Fixture {
    classes: usize,
    images: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    arch: String,
    dtype: Dtype,
    size: usize,
    logits: Vec<[f64; CLASSES]>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    fn encode(self, values: &[f32]) -> (safetensors::Dtype, Vec<u8>) {
        let (dtype, bytes): (_, fn(f32) -> Vec<u8>) = match self {
            Self::F32 => (safetensors::Dtype::F32, |v| v.to_le_bytes().into()),
            Self::F16 => (safetensors::Dtype::F16, |v| f16::from_f32(v).to_le_bytes().into()),
            Self::Bf16 => (safetensors::Dtype::BF16, |v| bf16::from_f32(v).to_le_bytes().into()),
        };
        (dtype, values.iter().flat_map(|&v| bytes(v)).collect())
    }
}

/// Who might have written a file.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// The plain state dict, which timm writes too.
    Torchvision,
    /// The state dict of a module that wraps the network, as training scripts save it.
    Wrapped,
    Transformers,
}

impl Layout {
    const ALL: [Self; 3] = [Self::Torchvision, Self::Wrapped, Self::Transformers];

    fn rename(self, name: &str) -> String {
        match self {
            Self::Torchvision => name.into(),
            Self::Wrapped => format!("model.{name}"),
            Self::Transformers => transformers_name(name),
        }
    }
}

/// What transformers' `ResNetForImageClassification` calls torchvision's `name`.
fn transformers_name(name: &str) -> String {
    let path: Vec<&str> = name.split('.').collect();
    let number = |text: &str| text[text.len() - 1..].parse::<usize>().expect("a digit") - 1;
    match path[..] {
        ["fc", leaf] => format!("classifier.1.{leaf}"),
        ["conv1", leaf] => format!("resnet.embedder.embedder.convolution.{leaf}"),
        ["bn1", leaf] => format!("resnet.embedder.embedder.normalization.{leaf}"),
        [layer, block, ref inside @ ..] => {
            let part = match *inside {
                ["downsample", "0", leaf] => format!("shortcut.convolution.{leaf}"),
                ["downsample", "1", leaf] => format!("shortcut.normalization.{leaf}"),
                [part, leaf] if part.starts_with("conv") => {
                    format!("layer.{}.convolution.{leaf}", number(part))
                }
                [part, leaf] => format!("layer.{}.normalization.{leaf}", number(part)),
                _ => panic!("{name}"),
            };
            format!("resnet.encoder.stages.{}.layers.{block}.{part}", number(layer))
        }
        _ => panic!("{name}"),
    }
}

/// Writes the made-up network of this description, with nothing of wgrad's writer in it.
fn write(path: &Path, arch: Arch, dtype: Dtype, layout: Layout) {
    let tensors: Vec<_> = arch
        .entries(CLASSES)
        .iter()
        .map(|entry| {
            let (stored, bytes) = match entry.kind {
                Kind::NumBatches => (safetensors::Dtype::I64, 0i64.to_le_bytes().to_vec()),
                _ => dtype.encode(&made_up(entry)),
            };
            (layout.rename(&entry.name), stored, entry.shape.clone(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn load(gpu: &Gpu, path: &Path) -> ResNet {
    let checkpoint = Checkpoint::read(path).unwrap();
    assert_eq!((&checkpoint.missing, &checkpoint.unexpected), (&vec![], &vec![]));
    let net = ResNet::new(gpu, checkpoint.arch, checkpoint.num_classes().unwrap(), 0).unwrap();
    let tensors = checkpoint.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    net.load(gpu, &tensors.collect()).unwrap();
    net
}

/// The largest error as a part of the largest logit.
fn error(found: &[f32], expected: &[[f64; CLASSES]]) -> f64 {
    let expected = expected.concat();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |m: f64, value| m.max(value.abs()));
    let errors = found.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs());
    errors.fold(0.0, |m: f64, e| if e.is_nan() { f64::INFINITY } else { m.max(e) }) / largest
}

/// The first adapter takes every network in every dtype, each in one of the layouts so that every
/// dtype and every network meets every layout; the others, whose kernels see the same numbers
/// however they were stored, each network once.
#[test]
fn logits_are_those_of_three_libraries() {
    let fixture: Fixture = fixture("logits.json");
    assert_eq!(fixture.classes, CLASSES);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made_up.safetensors");
    let gpus = common::every_gpu(GpuOptions::default());
    let archs = ["resnet18", "resnet34", "resnet50"];
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let mut compared = 0;
    for (a, arch) in archs.into_iter().enumerate() {
        for (d, &dtype) in dtypes.iter().enumerate() {
            let layout = Layout::ALL[(a + d) % 3];
            write(&path, Arch::from_name(arch).unwrap(), dtype, layout);
            for gpu in gpus.iter().enumerate().filter(|(g, _)| *g == 0 || a == d).map(|(_, g)| g) {
                let net = load(gpu, &path);
                assert_eq!(net.arch().name, arch);
                let is_this = |case: &&Case| case.arch == arch && case.dtype == dtype;
                for case in fixture.cases.iter().filter(is_this) {
                    let batch =
                        Batch::new(gpu, case.size as u32, fixture.images, case.size).unwrap();
                    let error = error(&evaluate(gpu, &net, &batch).unwrap(), &case.logits);
                    let what = format!(
                        "{arch} in {dtype:?} ({layout:?}) at {} px on {}",
                        case.size,
                        name(gpu)
                    );
                    println!("{what}: off by {error:.1e} of the largest");
                    assert!(error <= BOUND, "{what}: logits are off by {error:.1e} of the largest");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, fixture.cases.len() + (gpus.len() - 1) * fixture.cases.len() / 3);
}

/// Logits of other weights, or of one image in the other's place, are not within the bound.
#[test]
fn other_logits_are_not_within_the_bound() {
    let fixture: Fixture = fixture("logits.json");
    let [first, second, ..] = &fixture.cases[..] else { panic!("there are cases") };
    let as_f32 = |case: &Case| case.logits.concat().iter().map(|&x| x as f32).collect::<Vec<_>>();
    assert!(error(&as_f32(first), &first.logits) < 1e-7);
    assert!(error(&as_f32(second), &first.logits) > BOUND);
    let mut swapped = as_f32(first);
    swapped.rotate_left(CLASSES);
    assert!(error(&swapped, &first.logits) > BOUND);
    assert_eq!(error(&[f32::NAN; 2 * CLASSES], &first.logits), f64::INFINITY);
}
