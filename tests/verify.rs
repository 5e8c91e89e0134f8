//! `verify` catches kernels that are wrong, whichever adapter has them.

mod common;

use wgrad::gpu::{Gpu, GpuOptions, Shader};
use wgrad::ops::OPS;
use wgrad::verify::{self, Row};

/// The shader called `name` with `right` replaced by `wrong`.
fn broken(name: &str, right: &str, wrong: &str) -> &'static Shader {
    let mut shaders = OPS.iter().flat_map(|op| op.shaders);
    let shader = shaders.find(|shader| shader.name == name).expect(name);
    assert!(
        shader.source.contains(right),
        "{name}.wgsl no longer has `{right}`: break it elsewhere"
    );
    let source = shader.source.replace(right, wrong).leak();
    Box::leak(Box::new(Shader { name: shader.name, source }))
}

/// Rows of all cases of an operation.
fn rows(gpu: &Gpu, op: &str) -> Vec<Row> {
    let op = OPS.iter().find(|candidate| candidate.name == op).expect(op);
    let cases = (op.cases)();
    let cases = cases.iter().filter(|case| !case.benchmark);
    cases.flat_map(|case| verify::check(gpu, op, case)).collect()
}

fn caught(op: &str, shader: &str, right: &str, wrong: &str) {
    let wrong = broken(shader, right, wrong);
    for gpu in common::every_gpu(GpuOptions { guards: true, ..Default::default() }) {
        let failed = |rows: &[Row]| rows.iter().filter(|row| !row.passed()).count();
        assert_eq!(failed(&rows(&gpu, op)), 0, "{op} is right to begin with");
        gpu.replace_shader(wrong);
        let rows = rows(&gpu, op);
        let failed = failed(&rows);
        let report = gpu.report();
        println!("{shader} on {}: {failed} of {} rows fail", report.backend, rows.len());
        assert!(failed > 0, "{shader} is broken on {} and nobody noticed", report.backend);
        assert!(failed < rows.len(), "what does not use {shader} is blamed for it");
    }
}

#[test]
fn an_off_by_one_tap_is_caught() {
    caught("conv2d", "conv2d_forward_lanes", "i32(p.pad_h)", "i32(p.pad_h) + 1");
}

#[test]
fn an_unmasked_tail_is_caught() {
    // The window reaches past the right edge, into the next row of the image.
    caught(
        "max_pool2d",
        "max_pool2d_forward",
        "min(left + p.kernel_w, p.padding_w + p.w)",
        "left + p.kernel_w",
    );
}

#[test]
fn a_dropped_partial_sum_is_caught() {
    caught("conv2d", "conv2d_backward_weight_sum", "var split = 1u", "var split = 2u");
}

/// A kernel that does not compile is a failed row, not the end of the run.
#[test]
fn a_kernel_that_the_device_refuses_is_caught() {
    let gpu = common::every_gpu(GpuOptions::default()).swap_remove(0);
    gpu.replace_shader(broken("relu_forward", "y[i] = ", "y[i] = nonsense + "));
    let refused = rows(&gpu, "relu");
    assert!(!refused.is_empty() && refused.iter().all(|row| !row.passed()));
    assert!(refused[0].to_string().contains("nonsense"), "{}", refused[0]);
    assert!(rows(&gpu, "add").iter().all(Row::passed), "the device is still good for the others");
}
