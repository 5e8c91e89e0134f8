//! `--tune` takes only kernels that are right, keeps what it found, and later runs use it.

mod common;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/program.rs"]
mod program;

use program::Wgrad;
use wgrad::gpu::{Gpu, GpuOptions, Problem, Shader};
use wgrad::ops::OPS;
use wgrad::tune::{Tuned, tune};

/// The choices that a case of convolution with 3×3 windows makes.
fn problems(gpu: &Gpu) -> Vec<Problem> {
    let conv2d = OPS.iter().find(|op| op.name == "conv2d").unwrap();
    let cases = (conv2d.cases)();
    let case = cases.iter().find(|case| case.name.contains("1x8x8x64 3x3")).unwrap();
    case.plan(gpu).unwrap().problems
}

fn tuned(gpu: &Gpu) -> Vec<Tuned> {
    let mut all = Vec::new();
    tune(gpu, &problems(gpu), |tuned| all.push(tuned.clone())).unwrap();
    all
}

/// Without a cache folder nothing is kept, and other tests and runs are left alone.
fn without_cache() {
    // SAFETY: every test of this file that reads the variable in this process sets it so first.
    unsafe { std::env::set_var("WGRAD_CACHE", "") };
}

#[test]
fn every_kernel_is_measured_and_the_fastest_is_used() {
    without_cache();
    for gpu in common::every_gpu(GpuOptions::default()) {
        let all = tuned(&gpu);
        let passes: Vec<_> = all.iter().map(|tuned| tuned.problem.pass).collect();
        assert_eq!(passes, ["conv2d_forward", "conv2d_backward_weight", "conv2d_backward_data"]);
        for tuned in &all {
            let measured = tuned.kernels.iter().filter(|(_, outcome)| outcome.is_ok()).count();
            assert_eq!(measured, tuned.problem.kernels.len(), "{tuned}");
            let seconds: Vec<_> =
                tuned.kernels.iter().map(|(_, outcome)| *outcome.as_ref().unwrap()).collect();
            assert!(seconds.is_sorted() && seconds[0] > 0.0, "{tuned}");
        }
        problems(&gpu);
        for tuned in &all {
            assert_eq!(gpu.chosen_kernel(tuned.problem.pass), tuned.best());
        }
    }
}

#[test]
fn only_tiles_that_fit_into_workgroup_memory_are_offered() {
    let gpu = |floor_limits| {
        let options = GpuOptions { floor_limits, as_gpu: true, ..Default::default() };
        common::every_gpu(options).swap_remove(0)
    };
    let offered = |gpu: &Gpu| {
        let problem = problems(gpu).pop().unwrap();
        assert_eq!(problem.pass, "conv2d_backward_data");
        problem.kernels.contains(&"tiled 128x128")
    };
    let [floor, whole] = [true, false].map(gpu);
    assert_eq!(floor.workgroup_memory(), 16 << 10);
    assert!(!offered(&floor), "18 KiB of 16");
    assert!(offered(&whole) || whole.workgroup_memory() < 18 << 10);
}

#[test]
fn a_kernel_that_is_wrong_or_refused_cannot_win() {
    without_cache();
    let gpu = common::every_gpu(GpuOptions::default()).swap_remove(0);
    let shaders = OPS.iter().flat_map(|op| op.shaders);
    let mut shaders = shaders.filter(|shader| shader.name == "conv2d_winograd_output");
    let right = shaders.next().unwrap();
    for wrong in ["t_${r}_1 + t_${r}_2", "no kernel at all"] {
        let source = right.source.replace("t_${r}_1 - t_${r}_2", wrong);
        assert_ne!(source, right.source);
        gpu.replace_shader(Box::leak(Box::new(Shader { name: right.name, source: source.leak() })));
        for tuned in tuned(&gpu) {
            assert!(!tuned.best().unwrap().starts_with("winograd"), "{tuned}");
            for (name, outcome) in &tuned.kernels {
                assert_eq!(outcome.is_err(), name.starts_with("winograd"), "{name}: {tuned}");
            }
        }
    }
}

#[test]
fn what_was_found_is_kept_for_later_runs() {
    let wgrad = Wgrad::new();
    let bench = |arguments: &[&str]| {
        let mut command =
            wgrad.command(&[&["bench", "--quick", "--op", "linear"], arguments].concat());
        command.env("WGRAD_CACHE", wgrad.path("cache"));
        program::Ran::from(command.output().unwrap())
    };
    let files = || {
        let entries = std::fs::read_dir(wgrad.path("cache")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("tuned-")).count()
    };
    let finetune = |arguments: &str| {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let mut command = wgrad.command(&[&["finetune"], &arguments[..]].concat());
        program::Ran::from(command.env("WGRAD_CACHE", wgrad.path("cache")).output().unwrap())
    };
    let tuned = |run: &str| -> serde_json::Value {
        let args = std::fs::read(wgrad.path(run).join("args.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&args).unwrap()["tuned"].clone()
    };
    const SMALL: &str = "--weights none --arch resnet18-w4 --image-size 32 --max-steps 1";
    bench(&[]).answer();
    assert_eq!(files(), 0, "nothing is tuned that nobody asked for");
    let ran = finetune(&format!("{SMALL} --output-dir before"));
    ran.answer();
    assert!(!ran.stderr.contains("--tune") && tuned("before").is_null(), "{}", ran.stderr);
    assert!(bench(&["--tune"]).answer().contains("conv2d_forward 64x1x1x512 1x1 s1 -> 1000:"));
    assert_eq!(files(), 1);

    // What the kernels are is part of what a run's numbers follow from.
    let other = "begun with other kernels, as --tune chose them";
    let ran = finetune("--resume before --max-steps 2");
    ran.answer();
    assert!(ran.stderr.contains(other), "{}", ran.stderr);
    let ran = finetune(&format!("{SMALL} --output-dir after"));
    ran.answer();
    assert!(ran.stderr.contains("3 choices of kernels by an earlier --tune"), "{}", ran.stderr);
    assert_eq!(tuned("after").as_str().map(str::len), Some(16), "{}", tuned("after"));
    let ran = finetune("--resume after --max-steps 2");
    ran.answer();
    assert!(!ran.stderr.contains(other), "{}", ran.stderr);

    let ran = finetune(&format!("{SMALL} -v --tune --output-dir run"));
    ran.answer();
    assert!(ran.stderr.contains("3 choices of kernels by an earlier --tune"), "{}", ran.stderr);
    assert!(ran.stderr.contains("conv2d_backward_data 16x8x8x4 3x3 s1 -> 4:"), "{}", ran.stderr);
    assert_eq!(tuned("run"), tuned("after"), "what it began with");
    let ran = finetune("--resume after --max-steps 3");
    ran.answer();
    assert!(ran.stderr.contains(other), "{}", ran.stderr);
}
