//! The adapter's own ceilings, by kernels that do nothing else.

use super::file::Ceiling;
use super::stopwatch::{Effort, Stopwatch, Summary};
use crate::error::Result;
use crate::gpu::{AdapterClass, Kernel, Shader};
use crate::shader;
use crate::tensor::Dtype;

pub(super) static FMA: Shader = shader!("bench_fma");
pub(super) static MATRIX: Shader = shader!("bench_matrix");
pub(super) static COPY: Shader = shader!("bench_copy");

/// Workgroups of 64 threads: enough for two hundred multiprocessors.
const GROUPS: usize = 4096;
/// Numbers of independent vec4s a thread; what suits an adapter best is its ceiling.
const CHAINS: [u32; 4] = [2, 3, 4, 8];
/// Steps in a round of the loop, as the shader has them.
const ROUNDS: u32 = 16;

/// Name of the ceiling that arithmetic in f32 has.
pub(super) const FLOPS: &str = "f32 multiply-add";
/// Name of the ceiling that matrix units have, for matrices of the type that activations are stored in.
pub(super) const MATRIX_FLOPS: &str = "matrix multiply-add";
/// Name of the ceiling that memory has.
pub(super) const BANDWIDTH: &str = "copy";

/// Measures each ceiling, with matrix units' for numbers of type `dtype`.
pub(super) fn measure(
    stopwatch: &Stopwatch<'_>,
    effort: &Effort,
    dtype: Dtype,
) -> Result<Vec<Ceiling>> {
    let gpu = stopwatch.gpu;
    let lanes = |name: &str, half: bool| {
        let operations = f64::from(ROUNDS) * GROUPS as f64 * 64.0 * 8.0;
        best(stopwatch, effort, name, |chains| {
            let kernel = Kernel::new(&FMA).half(half).with("CHAINS", chains);
            (kernel, GROUPS * 64, operations * f64::from(chains))
        })
    };
    let mut ceilings = vec![lanes(FLOPS, false)?];
    if gpu.report().f16 {
        ceilings.push(lanes("f16 multiply-add", true)?);
    }
    // On Metal, units that load from single numbers only have no ceiling here.
    if let Some(units) = gpu.matrix_units(dtype.is_half()).filter(|units| units.wide_loads) {
        let side = f64::from(units.side);
        let operations = f64::from(ROUNDS) * GROUPS as f64 * 2.0 * side * side * side;
        ceilings.push(best(stopwatch, effort, MATRIX_FLOPS, |chains| {
            let kernel = Kernel::new(&MATRIX).half(dtype.is_half()).with("CHAINS", chains);
            let kernel = kernel.with("SIDE", units.side).with("LANES", units.lanes);
            (kernel, GROUPS * units.lanes as usize, operations * f64::from(chains))
        })?);
    }
    ceilings.push(copy(stopwatch, effort)?);
    Ok(ceilings)
}

/// Of the same ceilings measured twice, each as it was the higher.
pub(super) fn higher(first: Vec<Ceiling>, second: Vec<Ceiling>) -> Vec<Ceiling> {
    let pairs = first.into_iter().zip(second);
    pairs.map(|(a, b)| if median(&b.samples) > median(&a.samples) { b } else { a }).collect()
}

fn median(samples: &[f64]) -> f64 {
    Summary::of(samples).map_or(0.0, |all| all.median)
}

/// The best that a kernel reaches with some number of chains; `kernel` gives it with the numbers it
/// writes and the operations of a round.
fn best(
    stopwatch: &Stopwatch<'_>,
    effort: &Effort,
    name: &str,
    kernel: impl Fn(u32) -> (Kernel, usize, f64),
) -> Result<Ceiling> {
    let measure = |chains| arithmetic(stopwatch, effort, kernel(chains));
    let all = CHAINS.map(measure).into_iter().collect::<Result<Vec<_>>>()?;
    let samples = all.into_iter().max_by(|a, b| median(a).total_cmp(&median(b)));
    let (name, unit) = (name.into(), "GFLOP/s".into());
    Ok(Ceiling { name, unit, samples: samples.unwrap_or_default() })
}

/// Samples in GFLOP/s.
fn arithmetic(
    stopwatch: &Stopwatch<'_>,
    effort: &Effort,
    (kernel, numbers, operations): (Kernel, usize, f64),
) -> Result<Vec<f64>> {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Params {
        count: u32,
        /// What sums are multiplied by, and what is added; or both factors.
        numbers: [f32; 2],
    }
    let gpu = stopwatch.gpu;
    let y = gpu.lease(numbers as u64 * 4);
    let time = |count: u32| {
        let params = Params { count, numbers: [0.5; 2] };
        stopwatch.time(|| {
            gpu.run(kernel, &params, &[&y], gpu.groups(GROUPS));
            Ok(())
        })
    };
    time(1)?;
    // As many rounds as make a sample long enough to be measured well, and no driver impatient.
    let mut count = 4;
    while time(count)? < effort.sample_seconds && count < 1 << 20 {
        count *= 2;
    }
    let seconds: Vec<f64> = (0..effort.samples).map(|_| time(count)).collect::<Result<_>>()?;
    Ok(seconds.iter().map(|seconds| operations * f64::from(count) / seconds * 1e-9).collect())
}

fn copy(stopwatch: &Stopwatch<'_>, effort: &Effort) -> Result<Ceiling> {
    let gpu = stopwatch.gpu;
    // Larger than any cache.
    let wanted = if gpu.class() == AdapterClass::Software { 64 << 20 } else { 256 << 20 };
    let bytes = gpu.binding_limit().min(wanted);
    let (x, y) = (gpu.lease(bytes), gpu.lease(bytes));
    gpu.clear(&x);
    let count = (bytes / 16) as u32;
    let seconds = stopwatch.sample(effort, 16, |repeats| {
        stopwatch.time(|| {
            for _ in 0..repeats {
                let groups = gpu.groups((count as usize).div_ceil(256));
                gpu.run(Kernel::new(&COPY), &count, &[&x, &y], groups);
            }
            Ok(())
        })
    })?;
    Ok(Ceiling {
        name: BANDWIDTH.into(),
        unit: "GB/s".into(),
        samples: seconds.iter().map(|seconds| 2.0 * bytes as f64 / seconds * 1e-9).collect(),
    })
}
