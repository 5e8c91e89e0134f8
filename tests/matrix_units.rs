//! The kernels for matrix units, with plain arithmetic in the units' place: whatever the adapter, what
//! they load, stage and store is what NVIDIA's, Apple's and software's units would get.

mod common;

use std::collections::BTreeSet;

use wgrad::gpu::{Gpu, GpuOptions, MatrixUnits, Shader};
use wgrad::ops::{Conv2d, OPS, conv2d};
use wgrad::tune::check_matrix_units;
use wgrad::verify;
use wgrad::{Dtype, Shape, Tape, Tensor};

/// What stands in for the units. A fragment of sums is spread over the lanes; one of factors is only
/// the place it lies at, which holds it until the multiplication.
const EMULATION: &str = "
var<private> lane: u32;

alias Sums = array<f32, ${SIDE * SIDE / LANES}>;
struct Factors { at: u32, row: u32, column: u32 }

fn multiply_add(a: Factors, b: Factors, add: Sums) -> Sums {
  var sums = add;
  for (var e = 0u; e < ${SIDE * SIDE / LANES}u; e++) {
    let i = (e * LANES + lane) / SIDE;
    let j = (e * LANES + lane) % SIDE;
    for (var k = 0u; k < SIDE; k++) {
      let left = a.at + i * a.row + k * a.column;
      let right = b.at + k * b.row + j * b.column;
      sums[e] += f32(a_tile[left / 4u][left % 4u]) * f32(b_tile[right / 4u][right % 4u]);
    }
  }
  return sums;
}

fn store(fragment: Sums, at: u32, row: u32) {
  var sums = fragment;
  for (var e = 0u; e < ${SIDE * SIDE / LANES}u; e++) {
    let element = e * LANES + lane;
    let place = at * 4u + element / SIDE * row * 4u + element % SIDE;
    band[place / 4u][place % 4u] = sums[e];
  }
}
";

/// The shader with [`EMULATION`] for every operation on cooperative matrices.
fn emulated(shader: &Shader) -> Shader {
    let mut source = shader.source.to_owned();
    let mut replace = |from: &str, to: &str| {
        assert!(source.contains(from), "{}.wgsl has no `{from}`: emulate it anew", shader.name);
        source = source.replace(from, to);
    };
    macro_rules! part {
        ($name:literal) => {
            replace(
                concat!("//#include ", $name, "\n"),
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
            )
        };
    }
    part!("cooperative_tiles");
    part!("cooperative_multiply");
    part!("cooperative_places");
    if shader.source.contains("cooperative_outputs") {
        part!("cooperative_outputs");
    }
    part!("cooperative_sums");
    replace("enable wgpu_cooperative_matrix;\n", "");
    let subgroup = ",\n) {\n  let subgroup = thread / LANES;\n  lane = thread % LANES;";
    replace(", @builtin(subgroup_id) subgroup: u32,\n) {", subgroup);
    replace("coop_mat${SIDE}x${SIDE}<f32, C>()", "Sums()");
    replace("coopMultiplyAdd(", "multiply_add(");
    replace("coopStoreT(", "store(");
    replace("&band[to_${f}]", "to_${f}");
    // Rows of fragments follow each other at the stride, or (not transposed) columns do.
    for (role, tile) in [("A", "a"), ("B", "b")] {
        for (load, by_rows) in [("coopLoadT", true), ("coopLoad", false)] {
            let load = format!(
                "{load}<coop_mat${{SIDE}}x${{SIDE}}<factor, {role}>>(\n          &{tile}_tile["
            );
            let Some(start) = source.find(&load) else { continue };
            let arguments = start + load.len();
            let end = arguments + source[arguments..].find(");\n").expect("the call ends");
            let (at, stride) = source[arguments..end].split_once("], ").expect("place and stride");
            let strides = match by_rows {
                true => format!("{stride} * 4u, 1u"),
                false => format!("1u, {stride} * 4u"),
            };
            let call = format!("Factors(({at}) * 4u, {strides}");
            source.replace_range(start..end, &call);
        }
    }
    assert!(!source.replace("cooperative", "").contains("coop"), "{source}");
    Shader { name: shader.name, source: Box::leak((source + EMULATION).into_boxed_str()) }
}

fn cooperative_shaders() -> impl Iterator<Item = &'static Shader> {
    let shaders = OPS.iter().flat_map(|op| op.shaders).copied();
    shaders.filter(|shader| shader.name.ends_with("_cooperative"))
}

/// Every Vulkan adapter with f16, as if it had these units: for f16, and for f32 too if `single`.
fn gpus(side: u32, lanes: u32, single: bool) -> Vec<Gpu> {
    let units = MatrixUnits { side, lanes, wide_loads: true };
    let options = GpuOptions {
        guards: true,
        mixed: true,
        pretended_matrix_units: [Some(units), single.then_some(units)],
        ..Default::default()
    };
    let gpus: Vec<_> = common::every_gpu(options).into_iter().filter(Gpu::mixed).collect();
    for gpu in &gpus {
        for shader in cooperative_shaders() {
            gpu.replace_shader(Box::leak(Box::new(emulated(shader))));
        }
    }
    if gpus.is_empty() {
        println!("skipped: no adapter has f16 in shaders");
    }
    gpus
}

/// Whether kernels for these units are right about numbers of this type: sizes that fit no tile, all kinds of
/// windows and strides, and whatever follows a forward pass. `kernel` is used in so many passes of operations,
/// those of cases with such names.
fn agrees(
    (side, lanes): (u32, u32),
    dtype: Dtype,
    (kernel, passes): (&'static str, usize),
    cases: fn(&str) -> bool,
) {
    // Splitting is for units that have f16 alone.
    for gpu in gpus(side, lanes, !kernel.starts_with("split")) {
        let mut seen = BTreeSet::new();
        for op in OPS {
            let all = op.cases();
            let small = all.iter().filter(|case| !case.benchmark && case.dtype == dtype);
            for case in small.filter(|case| cases(&case.name)) {
                for &pass in case.passes {
                    gpu.forget_kernels();
                    for row in verify::check_kernel(&gpu, op, case, pass, kernel) {
                        assert!(row.passed(), "fragments of {side}, {lanes} lanes: {row}");
                    }
                    // Passes that the case does not come to choose nothing.
                    if let Some(chosen) = gpu.chosen_kernel(pass) {
                        // Kernels for windows are not for every convolution.
                        let is_for_it = !kernel.contains("window")
                            || gpu.offered_kernels(pass).contains(&kernel);
                        assert_eq!(chosen == kernel, is_for_it, "{}: {chosen}", case.name);
                        seen.extend(is_for_it.then_some((op.name, pass)));
                    }
                }
            }
        }
        assert_eq!(seen.len(), passes, "{kernel}: {seen:?}");
    }
}

const ANY: fn(&str) -> bool = |_| true;

#[test]
fn as_nvidia_has_them() {
    agrees((16, 32), Dtype::F16, ("cooperative 64x64", 7), ANY);
}

#[test]
fn as_nvidia_has_them_for_windows() {
    let windows =
        |case: &str| ["9x7x32", "6x9x64", "6x9x32"].iter().any(|size| case.contains(size));
    agrees((16, 32), Dtype::F16, ("cooperative window 64x64", 3), windows);
}

#[test]
fn as_apple_has_them() {
    agrees((8, 32), Dtype::F32, ("cooperative 64x64", 7), ANY);
}

#[test]
fn as_software_has_them() {
    agrees((8, 8), Dtype::F16, ("cooperative 64x64", 7), ANY);
}

#[test]
fn as_nvidia_has_them_for_f32() {
    agrees((16, 32), Dtype::F32, ("split 64x64", 7), ANY);
}

/// Numbers that lose their second part are further off than is allowed.
#[test]
fn a_part_left_out_is_noticed() {
    let op = OPS.iter().find(|op| op.name == "linear").expect("there is such an operation");
    let cases = op.cases();
    let case = cases.iter().find(|case| case.dtype == Dtype::F32).expect("it has cases");
    for gpu in gpus(16, 32, false) {
        let forward = cooperative_shaders().find(|shader| shader.name.contains("forward"));
        let Shader { name, source } = emulated(forward.expect("there is one"));
        let wrong = source.replace("in 0..PARTS - left", "in 0..1");
        assert_ne!(source, wrong);
        gpu.replace_shader(Box::leak(Box::new(Shader { name, source: wrong.leak() })));
        let rows = verify::check_kernel(&gpu, op, case, "conv2d_forward", "split 64x64");
        assert!(rows.iter().any(|row| !row.passed()), "{rows:?}");
    }
}

/// Numbers are scaled by the largest wherever it lies, also where a tensor has more than all threads
/// read at a time.
#[test]
fn the_largest_number_may_be_the_last() {
    const ROWS: usize = (256 << 8) + 1;
    let shape = Shape::new(ROWS, 1, 1, 4);
    let mut numbers = vec![1e-3; 4 * ROWS];
    numbers[4 * ROWS - 4..].fill(1e3);
    for gpu in gpus(16, 32, false) {
        let tape = Tape::new(&gpu);
        let x = tape.constant(Tensor::from_host(&gpu, shape, &numbers).unwrap());
        let weight = Tensor::from_host(&gpu, Shape::new(1, 1, 4, 4), &[0.0; 16]).unwrap();
        let weight = tape.leaf(weight);
        let conv = Conv2d { stride: [1; 2], padding: [0; 2] };
        let y = conv2d(&tape, &x, &weight, None, conv).unwrap();
        let d_y = Tensor::from_host(&gpu, shape, &numbers).unwrap();
        gpu.force_kernel("conv2d_backward_weight", Some("split 64x64"));
        let d_weight = tape.backward(&y, d_y).unwrap().take(&weight).unwrap();
        assert_eq!(gpu.chosen_kernel("conv2d_backward_weight"), Some("split 64x64"));
        let found = d_weight.download(&gpu).unwrap();
        assert!(found.iter().all(|sum| (sum / 1e6 - 1.0).abs() < 1e-5), "{found:?}");
    }
}

/// Right units are used, wrong ones are not.
#[test]
fn they_are_compared_with_plain_kernels_first() {
    for gpu in gpus(16, 32, true) {
        assert_eq!(check_matrix_units(&gpu, Dtype::F16).unwrap(), None);
        assert!(gpu.matrix_units(true).is_some());
        // Units that leave out the last product of a row.
        let shader = cooperative_shaders().find(|shader| shader.name.contains("weight")).unwrap();
        let Shader { name, source } = emulated(shader);
        let wrong = source.replace("k < SIDE; k++", "k < SIDE - 1u; k++");
        assert_ne!(source, wrong);
        gpu.replace_shader(Box::leak(Box::new(Shader { name, source: wrong.leak() })));
        let wrong = check_matrix_units(&gpu, Dtype::F16).unwrap().expect("it is noticed");
        assert!(wrong.contains("conv2d_backward_weight cooperative"), "{wrong}");
        assert_eq!(gpu.matrix_units(true), None);
    }
}

/// So are those that a first layer alone has: pixels that are read in pairs, here each in the other's place.
#[test]
fn pairs_of_pixels_are_compared_too() {
    for gpu in gpus(16, 32, true) {
        let mut shaders = cooperative_shaders();
        let shader = shaders.find(|shader| shader.name.starts_with("conv2d_forward")).unwrap();
        let Shader { name, source } = emulated(shader);
        let wrong = source.replace("of_window(a_${j}, s)", "of_window(a_${j}.zwxy, s)");
        assert_ne!(source, wrong);
        gpu.replace_shader(Box::leak(Box::new(Shader { name, source: wrong.leak() })));
        let wrong = check_matrix_units(&gpu, Dtype::F16).unwrap().expect("it is noticed");
        assert!(wrong.contains("conv2d_forward cooperative"), "{wrong}");
    }
}
