//! The adapter's own ceilings, by kernels that do nothing else.

use super::file::Ceiling;
use super::stopwatch::{Effort, Stopwatch, Summary};
use crate::error::Result;
use crate::gpu::{AdapterClass, Kernel, Shader};
use crate::shader;

pub(super) static FMA: Shader = shader!("bench_fma");
pub(super) static COPY: Shader = shader!("bench_copy");

/// Workgroups of 64 threads: enough for two hundred multiprocessors.
const GROUPS: usize = 4096;
/// Numbers of independent vec4s a thread; what suits an adapter best is its ceiling.
const CHAINS: [u32; 4] = [2, 3, 4, 8];
/// Steps in a round of the loop, as the shader has them.
const ROUNDS: u32 = 16;

/// Name of the ceiling that arithmetic in f32 has.
pub(super) const FLOPS: &str = "f32 multiply-add";
/// Name of the ceiling that memory has.
pub(super) const BANDWIDTH: &str = "copy";

/// Measures each ceiling.
pub(super) fn measure(stopwatch: &Stopwatch<'_>, effort: &Effort) -> Result<Vec<Ceiling>> {
    let mut ceilings = vec![best(stopwatch, effort, FLOPS, false)?];
    if stopwatch.gpu.report().f16 {
        ceilings.push(best(stopwatch, effort, "f16 multiply-add", true)?);
    }
    ceilings.push(copy(stopwatch, effort)?);
    Ok(ceilings)
}

fn best(stopwatch: &Stopwatch<'_>, effort: &Effort, name: &str, half: bool) -> Result<Ceiling> {
    let measure = |chains| arithmetic(stopwatch, effort, half, chains);
    let all = CHAINS.map(measure).into_iter().collect::<Result<Vec<_>>>()?;
    let median = |samples: &Vec<f64>| Summary::of(samples).map_or(0.0, |all| all.median);
    let samples = all.into_iter().max_by(|a, b| median(a).total_cmp(&median(b)));
    let (name, unit) = (name.into(), "GFLOP/s".into());
    Ok(Ceiling { name, unit, samples: samples.unwrap_or_default() })
}

/// Samples in GFLOP/s.
fn arithmetic(
    stopwatch: &Stopwatch<'_>,
    effort: &Effort,
    half: bool,
    chains: u32,
) -> Result<Vec<f64>> {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Params {
        count: u32,
        scale: f32,
        shift: f32,
    }
    let gpu = stopwatch.gpu;
    let kernel = Kernel::new(&FMA).half(half).with("CHAINS", chains);
    let y = gpu.lease(GROUPS as u64 * 64 * 4);
    let time = |count: u32| {
        let params = Params { count, scale: 0.5, shift: 0.5 };
        stopwatch.time(|| {
            gpu.run(kernel, &params, &[&y], gpu.groups(GROUPS));
            Ok(())
        })
    };
    time(1)?;
    // As many steps as make a sample long enough to be measured well, and no driver impatient.
    let mut count = 4;
    while time(count)? < effort.sample_seconds && count < 1 << 20 {
        count *= 2;
    }
    let seconds: Vec<f64> = (0..effort.samples).map(|_| time(count)).collect::<Result<_>>()?;
    let steps = f64::from(count) * f64::from(ROUNDS) * f64::from(chains);
    let operations = 8.0 * steps * GROUPS as f64 * 64.0;
    Ok(seconds.iter().map(|seconds| operations / seconds * 1e-9).collect())
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
