//! Every operation on every case: the device against the reference, and the reference's gradients
//! against finite differences of itself.

mod common;

use wgrad::gpu::GpuOptions;
use wgrad::ops::OPS;
use wgrad::ops::case::{Array, Case, Expected, Fill, filled};
use wgrad::verify;

#[test]
fn devices_match_the_reference() {
    for gpu in common::every_gpu(GpuOptions { guards: true, ..Default::default() }) {
        let mut failures = Vec::new();
        let mut count = 0;
        for op in OPS {
            let cases = op.cases();
            assert!(!cases.is_empty(), "{} has no cases", op.name);
            for case in cases.iter().filter(|case| !case.benchmark) {
                let rows = verify::check(&gpu, op, case);
                assert!(!rows.is_empty(), "{} ({}) compared nothing", op.name, case.name);
                count += rows.len();
                failures.extend(rows.into_iter().filter(|row| !row.passed()));
            }
        }
        let report = gpu.report();
        println!("{} ({}): {count} comparisons", report.name, report.backend);
        assert!(
            failures.is_empty(),
            "{} ({}): {} of {count} comparisons failed\n{}",
            report.name,
            report.backend,
            failures.len(),
            failures.iter().map(|row| row.to_string()).collect::<Vec<_>>().join("\n")
        );
    }
}

/// What an operation chooses on GPUs besides a convolution's tiles, all of which are checked everywhere.
#[test]
fn choices_for_gpus_match_the_reference_too() {
    let options = GpuOptions { guards: true, as_gpu: true, ..Default::default() };
    for gpu in common::every_gpu(options) {
        for op in OPS.iter().filter(|op| op.name.starts_with("batch_norm")) {
            for case in op.cases().iter().filter(|case| !case.benchmark) {
                for row in verify::check(&gpu, op, case) {
                    assert!(row.passed(), "{}: {row}", gpu.report().name);
                }
            }
        }
        // Winograd's transforms, and convolutions that share their sums.
        let op = OPS.iter().find(|op| op.name == "conv2d").expect("there are convolutions");
        for case in op
            .cases()
            .iter()
            .filter(|case| !case.benchmark && case.name.contains("3x3 s1") && case.supported(&gpu))
        {
            for (pass, kernel) in [
                ("conv2d_forward", "winograd tiled 64x64"),
                ("conv2d_backward_data", "winograd tiled 64x64"),
                ("conv2d_backward_weight", "tiled 64x64"),
            ] {
                for row in verify::check_kernel(&gpu, op, case, pass, kernel) {
                    assert!(row.passed(), "{}: {row}", gpu.report().name);
                }
            }
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    for op in OPS {
        for case in (op.cases)().iter().filter(|case| !case.benchmark) {
            if let Some(gradient) = &case.gradient {
                check_by_differences(op.name, case, gradient.as_ref());
            }
        }
    }
}

type Gradient = dyn Fn(&[Array], &Array) -> Vec<Option<Expected>>;

fn check_by_differences(op: &str, case: &Case, gradient: &Gradient) {
    // Inputs with ties or extremes have no derivative to speak of; the sizes matter, not the fill.
    let inputs: Vec<Array> = case
        .inputs
        .iter()
        .zip(1..)
        .map(|(input, seed)| match input.fill {
            Fill::Uniform(..) | Fill::Channels(_) => filled(input.shape, input.fill, seed),
            _ => filled(input.shape, Fill::Uniform(-1.0, 1.0), seed),
        })
        .collect();
    let outputs = (case.reference)(&inputs);
    let d_out = filled(outputs[0].values.shape, Fill::Uniform(-1.0, 1.0), 99);
    let value = |inputs: &[Array]| -> f64 {
        let output = &(case.reference)(inputs)[0].values;
        output.data.iter().zip(&d_out.data).map(|(y, d)| y * d).sum()
    };
    let gradients = gradient(&inputs, &d_out);
    assert_eq!(gradients.len(), inputs.len(), "{op} ({}): one gradient an input", case.name);
    for (which, found) in gradients.iter().enumerate() {
        assert_eq!(found.is_some(), case.inputs[which].differentiate, "{op} ({})", case.name);
        let Some(found) = found else { continue };
        let length = inputs[which].data.len();
        for sample in 0..length.min(6) {
            let at = sample * 7919 % length;
            let difference = |step: f64| {
                let mut moved = inputs.clone();
                moved[which].data[at] += step;
                value(&moved)
            };
            let step = 1e-5;
            let expected = (difference(step) - difference(-step)) / (2.0 * step);
            let found = found.values.data[at];
            assert!(
                (found - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
                "{op} ({}): gradient {which} at {at} is {found}, differences give {expected}",
                case.name
            );
        }
    }
}
