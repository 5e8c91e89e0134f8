//! Ten training steps of ResNet-18 in nine configurations against PyTorch's.

use std::collections::BTreeMap;

use serde::Deserialize;
use wgrad::checkpoint::HostTensor;
use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::nn::{BnPolicy, Mode, ResNet, Stage};
use wgrad::optim::{Algorithm, Optimizer, Settings};

use super::allowance::{Comparison, Digest, Rounded, Series};
use super::formulas::CLASSES;
use super::run::{Batch, evaluate, gradients, start};
use super::{common, fixture, name};

const SIZE: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    config: Config,
    /// Batch number and images of each step.
    batches: Vec<(u32, usize)>,
    logits: Logits,
    losses: Series,
    grad_norms: Series,
    gradients: BTreeMap<String, Digest>,
    updates: BTreeMap<String, Digest>,
    #[serde(rename = "final")]
    last: BTreeMap<String, Digest>,
    batches_tracked: i64,
}

#[derive(Deserialize)]
struct Logits {
    train: Matrix,
    eval: Matrix,
}

#[derive(Deserialize)]
struct Matrix {
    values: Vec<[f64; CLASSES]>,
    f32: f64,
}

impl Matrix {
    fn series(&self) -> Series {
        Series { values: self.values.concat(), f32: self.f32 }
    }
}

/// A setting that this test does not know must not pass unnoticed, hence the unknown are denied
/// and PyTorch's defaults, which wgrad does not let one change, are checked.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    optimizer: String,
    lr: f64,
    momentum: f64,
    nesterov: bool,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    norm_weight_decay: f64,
    label_smoothing: f32,
    batch_norm: String,
    trainable: String,
    clip_grad_norm: Option<f64>,
    l2_sp: f64,
    #[serde(rename = "last_batch")]
    _last_batch: usize,
}

impl Config {
    fn settings(&self) -> Settings {
        assert_eq!((self.beta1, self.beta2, self.eps), (0.9, 0.999, 1e-8));
        let algorithm = match self.optimizer.as_str() {
            "sgd" => Algorithm::Sgd { momentum: self.momentum, nesterov: self.nesterov },
            "adam" => Algorithm::Adam,
            "adamw" => Algorithm::AdamW,
            other => panic!("unknown optimizer {other}"),
        };
        Settings {
            algorithm,
            weight_decay: self.weight_decay,
            norm_weight_decay: self.norm_weight_decay,
            clip_grad_norm: self.clip_grad_norm,
            l2_sp: self.l2_sp,
        }
    }

    fn mode(&self) -> Mode {
        let bn = match self.batch_norm.as_str() {
            "train" => BnPolicy::Train,
            "frozen" => BnPolicy::Frozen,
            other => panic!("unknown policy {other}"),
        };
        let from = match self.trainable.as_str() {
            "all" => Stage::Stem,
            "head" => Stage::Head,
            other => panic!("unknown part {other}"),
        };
        Mode::train_from(from, bn)
    }
}

/// Trains as `config` says on the fixture's batches and compares everything that is stored.
fn compare(gpu: &Gpu, fixture: &Fixture, config: &Config) -> Comparison {
    let mut comparison = Comparison::default();
    let mut net = start(gpu);
    let before = net.tensors(gpu).unwrap();
    let mode = config.mode();
    let from = mode.train_from.expect("something is trained");
    net.parameters_mut().require_gradients(gpu);
    let mut optimizer =
        Optimizer::new(gpu, net.parameters(), config.settings(), from, |_| 1.0).unwrap();

    let mut losses = Vec::new();
    let mut norms = Vec::new();
    for (step, &(number, images)) in fixture.batches.iter().enumerate() {
        let batch = Batch::new(gpu, number, images, SIZE);
        optimizer.begin_step(gpu, config.lr).unwrap();
        let passed = gradients(gpu, &net, &batch, mode, config.label_smoothing, images);
        net.count_batch(mode);
        if step == 0 {
            let train = passed.logits.download(gpu).unwrap();
            comparison.absolute("logits (train)", &train, &fixture.logits.train.series());
            let eval = evaluate(gpu, &net, &batch);
            comparison.absolute("logits (eval)", &eval, &fixture.logits.eval.series());
        }
        optimizer.step(gpu).unwrap();
        gpu.submit().unwrap();

        losses.push(f64::from(passed.loss.wait_f32().unwrap()[0]));
        let arena = net.parameters().gradients().expect("there is memory for gradients");
        let all = gpu.download(arena).wait_f32().unwrap();
        norms.push(all.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt());
        if step == 0 {
            compare_gradients(gpu, &net, fixture, &mut comparison);
        }
    }
    comparison.relative("losses", &losses, &fixture.losses);
    comparison.relative("grad_norms", &norms, &fixture.grad_norms);
    compare_tensors(&before, &net.tensors(gpu).unwrap(), fixture, &mut comparison);
    comparison
}

/// The first step's. Neither clipping nor the penalty has touched them: clipping scales on the way
/// to the update, and the penalty is zero at the start.
fn compare_gradients(gpu: &Gpu, net: &ResNet, fixture: &Fixture, comparison: &mut Comparison) {
    let arena = net.parameters().gradients().expect("there is memory for gradients");
    let all = net.parameters().download(gpu, arena).unwrap();
    let mut compared = 0;
    for (parameter, values) in net.parameters().list().iter().zip(all) {
        if let Some(expected) = fixture.gradients.get(&parameter.name) {
            let what = format!("gradients {}", parameter.name);
            comparison.tensor(&what, values.into_iter().map(f64::from), expected, None);
            compared += 1;
        } else {
            assert!(values.iter().all(|&g| g == 0.0), "{} has a gradient", parameter.name);
        }
    }
    assert_eq!(compared, fixture.gradients.len());
}

fn compare_tensors(
    before: &BTreeMap<String, HostTensor>,
    after: &BTreeMap<String, HostTensor>,
    fixture: &Fixture,
    comparison: &mut Comparison,
) {
    let mut compared = 0;
    for (name, after) in after {
        let before = &before[name];
        let (Some(old), Some(new)) = (before.as_f32(), after.as_f32()) else {
            let tracked = count(after) - count(before);
            assert_eq!(tracked, fixture.batches_tracked, "{name}");
            continue;
        };
        let Some(update) = fixture.updates.get(name) else {
            assert_eq!(old, new, "{name} must not have changed");
            continue;
        };
        let last = &fixture.last[name];
        let steps = fixture.batches.len();
        let rounded = Some(Rounded { steps, max: last.max, norm: last.norm });
        let moved = new.iter().zip(old).map(|(&new, &old)| f64::from(new) - f64::from(old));
        comparison.tensor(&format!("updates {name}"), moved, update, rounded);
        let values = new.iter().map(|&value| f64::from(value));
        comparison.tensor(&format!("final {name}"), values, last, rounded);
        compared += 1;
    }
    assert_eq!(compared, fixture.updates.len());
}

fn count(tensor: &HostTensor) -> i64 {
    match &tensor.data {
        wgrad::checkpoint::HostData::I64(count) => count[0],
        other => panic!("{other:?} where a count is expected"),
    }
}

/// What every adapter runs. The first runs all configurations; they differ in the optimizer, which
/// is the same kernels on any adapter and checked by itself, more than in the network.
const EVERYWHERE: [&str; 2] = ["sgd", "adamw"];

fn trains_as_pytorch(configuration: &str) {
    let fixture: Fixture = fixture(&format!("resnet18_{configuration}.json"));
    let mut gpus = common::every_gpu(GpuOptions::default());
    if !EVERYWHERE.contains(&configuration) {
        gpus.truncate(1);
    }
    for gpu in gpus {
        let comparison = compare(&gpu, &fixture, &fixture.config);
        println!("{configuration} on {}: {}", name(&gpu), comparison.summary());
        comparison.assert_within(&format!("{configuration} on {}", name(&gpu)));
    }
}

macro_rules! configurations {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            trains_as_pytorch(stringify!($name));
        }
    )* };
}

configurations! { sgd nesterov adam adamw label_smoothing frozen_bn head_only clip l2_sp }

/// A wrong program is seen: the same steps with one setting wrong are further off than they may be,
/// by a margin.
#[test]
fn a_wrong_setting_does_not_pass() {
    let gpu = common::every_gpu(GpuOptions::default()).swap_remove(0);
    let read = |name: &str| fixture::<Fixture>(&format!("resnet18_{name}.json"));
    let (adamw, smoothed) = (read("adamw"), read("label_smoothing"));
    let adam = Config { optimizer: "adam".into(), ..adamw.config.clone() };
    let plain = Config { label_smoothing: 0.0, ..smoothed.config.clone() };
    for (configuration, fixture, config) in
        [("adamw", &adamw, adam), ("label_smoothing", &smoothed, plain)]
    {
        let worst = compare(&gpu, fixture, &config).worst();
        println!("{configuration} done wrong: {worst:.0} times the allowance");
        assert!(worst > 4.0, "{configuration} done wrong is only {worst:.2} allowances off");
    }
}
