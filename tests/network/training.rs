//! Ten training steps of ResNet-18 in nine configurations against PyTorch's.

use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::verify::allowance::{Comparison, Number};
use wgrad::verify::network::{Config, Fixture};

use super::{common, fixture, name};

fn compare(gpu: &Gpu, fixture: &Fixture, config: &Config) -> Comparison {
    fixture.train(gpu, config).unwrap().comparison
}

fn assert_within(comparison: &Comparison, run: &str) {
    let numbers = comparison.numbers();
    let mut wrong: Vec<&Number> = numbers.iter().filter(|number| number.share() > 1.0).collect();
    wrong.sort_by(|a, b| b.share().total_cmp(&a.share()));
    let shown: Vec<_> = wrong.iter().take(40).map(|number| number.to_string()).collect();
    assert!(!numbers.is_empty(), "{run}: nothing was compared");
    assert!(
        wrong.is_empty(),
        "{run}: {} of {} numbers are too far from PyTorch's\n{}",
        wrong.len(),
        numbers.len(),
        shown.join("\n")
    );
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
        assert_within(&comparison, &format!("{configuration} on {}", name(&gpu)));
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

/// The batches of the fixtures are too small for Winograd's algorithm to be chosen by itself.
#[test]
fn sgd_by_winograd() {
    let fixture: Fixture = fixture("resnet18_sgd.json");
    let gpu = common::every_gpu(GpuOptions::default()).swap_remove(0);
    for pass in ["conv2d_forward", "conv2d_backward_data"] {
        gpu.force_kernel(pass, Some("winograd tiled 64x64"));
    }
    let comparison = compare(&gpu, &fixture, &fixture.config);
    let forced = gpu.offered_kernels("conv2d_forward");
    assert!(forced.contains(&"winograd tiled 64x64"), "{forced:?}");
    println!("by Winograd on {}: {}", name(&gpu), comparison.summary());
    assert_within(&comparison, "by Winograd");
}

type Mistake = fn(&mut Config);

/// A wrong program is seen: the same steps with one setting wrong are further off than they may be,
/// by a margin.
#[test]
fn a_wrong_setting_does_not_pass() {
    let gpu = common::every_gpu(GpuOptions::default()).swap_remove(0);
    let wrong: [(&str, Mistake); 2] = [
        ("adamw", |config| config.optimizer = "adam".into()),
        ("label_smoothing", |config| config.label_smoothing = 0.0),
    ];
    for (configuration, change) in wrong {
        let fixture: Fixture = fixture(&format!("resnet18_{configuration}.json"));
        let mut config = fixture.config.clone();
        change(&mut config);
        let worst = compare(&gpu, &fixture, &config).worst();
        println!("{configuration} done wrong: {worst:.0} times the allowance");
        assert!(worst > 4.0, "{configuration} done wrong is only {worst:.2} allowances off");
    }
}
