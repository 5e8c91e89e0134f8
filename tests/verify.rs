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

/// Padding is passed over, and then a line of pixels more.
#[test]
fn a_line_too_many_passed_over_is_caught() {
    for (pass, right, wrong) in [
        ("forward", "p.pad_h, p.h)", "p.pad_h, p.h - 1u)"),
        ("backward_data", "p.stride_h, p.oh)", "p.stride_h, p.oh - 1u)"),
        ("backward_weight", "p.pad_w, p.w)", "p.pad_w, p.w - 1u)"),
    ] {
        caught("conv2d", &format!("conv2d_{pass}_lanes"), right, wrong);
    }
}

#[test]
fn an_unmasked_tail_is_caught() {
    // The window reaches past the right edge, into the next row of the image.
    caught(
        "max_pool2d",
        "max_pool2d_forward",
        "clamp(left + ${t % KERNEL_W}u, p.padding_w, p.padding_w + p.w - 1u)",
        "max(left + ${t % KERNEL_W}u, p.padding_w)",
    );
}

#[test]
fn a_dropped_partial_sum_is_caught() {
    caught("conv2d", "conv2d_sum", "split = thread / QUADS;", "split = thread / QUADS + 1u;");
}

#[test]
fn a_wrong_transform_is_caught() {
    caught(
        "conv2d",
        "conv2d_winograd_input",
        "b_2_${s} = d_2_${s} - d_1_${s}",
        "b_2_${s} = d_2_${s} + d_1_${s}",
    );
}

/// What lies there is NaN, and NaN it stays whatever is added to it; but not the same NaN.
#[test]
fn adding_to_a_number_past_the_end_is_caught() {
    let wrong = broken("l2_sp", "i >= p.count", "i > p.count");
    for gpu in common::every_gpu(GpuOptions { guards: true, ..Default::default() }) {
        gpu.replace_shader(wrong);
        let rows = rows(&gpu, "l2_sp");
        let wrote = |row: &Row| row.what == "guards" && row.to_string().contains("wrote at byte");
        assert!(rows.iter().any(|row| !row.passed() && wrote(row)), "{rows:?}");
    }
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

fn command(arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wgrad"));
    command.arg("verify").args(arguments).output().expect("the program runs")
}

#[test]
fn every_adapter_answers_in_objects_and_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drift.json");
    let drift = path.to_str().unwrap();
    let arguments =
        ["--adapter", "all", "--op", "relu", "--case", "extremes", "--json", "--drift", drift];
    let output = command(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(!rows.is_empty());
    for row in &rows {
        let case = row["case"].as_str().unwrap();
        assert!(row["op"] == "relu" && case.contains("extremes"), "{row}");
        if row["verdict"] == "unsupported" {
            assert!(case.ends_with("f16"), "{row}");
        } else {
            assert_eq!(row["verdict"], "pass", "{row}");
            assert!(row["share"].as_f64().is_some_and(|share| share <= 1.0), "{row}");
        }
        assert!(row["backend"].is_string(), "{row}");
    }
    let drift: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let adapters = drift["adapters"].as_array().unwrap();
    assert_eq!(adapters.len(), common::every_gpu(GpuOptions::default()).len());
    let listed: usize =
        adapters.iter().map(|adapter| adapter["operations"].as_array().unwrap().len()).sum();
    assert_eq!(listed, rows.len());
}

#[test]
fn where_no_drift_can_be_written_nothing_is_checked() {
    let output = command(&["--op", "relu", "--drift", "none/drift.json"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let text = "checking where the drift goes: none/drift.json: cannot be written: ";
    assert!(stderr.contains(text), "{stderr}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn checking_nothing_is_wrong_usage() {
    let output = command(&["--op", "nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was checked"));
}
