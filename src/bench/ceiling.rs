//! The adapter's own ceilings, by kernels that do nothing else.

use super::file::Ceiling;
use super::stopwatch::{Effort, Stopwatch, Summary};
use crate::error::Result;
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader};
use crate::shader;
use crate::tensor::Dtype;

pub(super) static FMA: Shader = shader!("bench_fma");
pub(super) static MATRIX: Shader = shader!("bench_matrix");
pub(super) static COPY: Shader = shader!("bench_copy");

/// Workgroups of 64 threads: enough for two hundred multiprocessors, or few enough that processors which play
/// GPU stay in their loops for long, even in short samples.
fn groups(gpu: &Gpu) -> usize {
    if gpu.class() == AdapterClass::Software { 256 } else { 4096 }
}

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

/// Work that keeps an adapter at one of its ceilings, to be timed whenever that is asked for.
pub(super) struct Yardstick<'a> {
    stopwatch: &'a Stopwatch<'a>,
    /// What a sample of it does.
    work: Box<dyn Fn() + 'a>,
    /// Operations or bytes of a sample, in 1e9.
    amount: f64,
    /// With the samples by which it was found.
    ceiling: Ceiling,
}

impl<'a> Yardstick<'a> {
    /// One of `amount` operations or bytes, yet without samples.
    fn new(
        stopwatch: &'a Stopwatch<'a>,
        [name, unit]: [&str; 2],
        amount: f64,
        work: impl Fn() + 'a,
    ) -> Self {
        let ceiling = Ceiling { name: name.into(), unit: unit.into(), samples: Vec::new() };
        Self { stopwatch, work: Box::new(work), amount: amount * 1e-9, ceiling }
    }

    fn seconds(&self) -> Result<f64> {
        self.stopwatch.time(|| {
            (self.work)();
            Ok(())
        })
    }

    /// In the ceiling's unit.
    fn sample(&self) -> Result<f64> {
        Ok(self.amount / self.seconds()?)
    }

    /// With its samples.
    fn measured(mut self, effort: &Effort) -> Result<Self> {
        self.ceiling.samples = (0..effort.samples).map(|_| self.sample()).collect::<Result<_>>()?;
        Ok(self)
    }
}

/// What the adapter can do at most.
pub(super) struct Yardsticks<'a>(Vec<Yardstick<'a>>);

impl<'a> Yardsticks<'a> {
    /// Finds each ceiling, with matrix units' for numbers of type `dtype`.
    pub(super) fn find(
        stopwatch: &'a Stopwatch<'a>,
        effort: &Effort,
        dtype: Dtype,
    ) -> Result<Self> {
        let gpu = stopwatch.gpu;
        let groups = groups(gpu);
        let lanes = |name: &str, half: bool| {
            let operations = f64::from(ROUNDS) * groups as f64 * 64.0 * 8.0;
            best(stopwatch, effort, name, |chains| {
                let kernel = Kernel::new(&FMA).half(half).with("CHAINS", chains);
                (kernel, groups * 64, operations * f64::from(chains))
            })
        };
        let mut all = vec![lanes(FLOPS, false)?];
        if gpu.report().f16 {
            all.push(lanes("f16 multiply-add", true)?);
        }
        // On Metal, units that load from single numbers only have no ceiling here.
        if let Some(units) = gpu.matrix_units(dtype.is_half()).filter(|units| units.wide_loads) {
            let side = f64::from(units.side);
            let operations = f64::from(ROUNDS) * groups as f64 * 2.0 * side * side * side;
            all.push(best(stopwatch, effort, MATRIX_FLOPS, |chains| {
                let kernel = Kernel::new(&MATRIX).half(dtype.is_half()).with("CHAINS", chains);
                let kernel = kernel.with("SIDE", units.side).with("LANES", units.lanes);
                (kernel, groups * units.lanes as usize, operations * f64::from(chains))
            })?);
        }
        all.push(copy(stopwatch, effort)?);
        Ok(Self(all))
    }

    /// As they were found.
    pub(super) fn ceilings(&self) -> Vec<Ceiling> {
        self.0.iter().map(|yardstick| yardstick.ceiling.clone()).collect()
    }

    /// What to lay beside work that does arithmetic, or that moves memory alone: nothing measured yet.
    pub(super) fn beside(&self, arithmetic: bool) -> Beside<'_> {
        let names: &[_] = if arithmetic { &[FLOPS, MATRIX_FLOPS] } else { &[BANDWIDTH] };
        let wanted = self.0.iter().filter(|one| names.contains(&one.ceiling.name.as_str()));
        let empty = |one: &Yardstick<'_>| Ceiling { samples: Vec::new(), ..one.ceiling.clone() };
        Beside(wanted.map(|one| (one, empty(one))).collect())
    }
}

/// Ceilings measured between the samples of other work: others may use the adapter too, and clocks change.
pub(super) struct Beside<'a>(Vec<(&'a Yardstick<'a>, Ceiling)>);

impl Beside<'_> {
    /// Takes one more sample of each.
    pub(super) fn sample(&mut self) -> Result<()> {
        let take = |(yardstick, ceiling): &mut (&Yardstick<'_>, Ceiling)| {
            ceiling.samples.push(yardstick.sample()?);
            Ok(())
        };
        self.0.iter_mut().try_for_each(take)
    }

    /// What was measured.
    pub(super) fn ceilings(self) -> Vec<Ceiling> {
        self.0.into_iter().map(|(_, ceiling)| ceiling).collect()
    }
}

/// Of the same ceilings measured twice, each as it was the higher.
pub(super) fn higher(first: Vec<Ceiling>, second: Vec<Ceiling>) -> Vec<Ceiling> {
    let pairs = first.into_iter().zip(second);
    pairs.map(|(a, b)| if median(&b) > median(&a) { b } else { a }).collect()
}

fn median(ceiling: &Ceiling) -> f64 {
    Summary::of(&ceiling.samples).map_or(0.0, |all| all.median)
}

/// What others on the adapter have slowed down the least.
fn highest(ceiling: &Ceiling) -> f64 {
    ceiling.samples.iter().copied().fold(0.0, f64::max)
}

/// The best that a kernel reaches with some number of chains; `kernel` gives it with the numbers it
/// writes and the operations of a round.
fn best<'a>(
    stopwatch: &'a Stopwatch<'a>,
    effort: &Effort,
    name: &str,
    kernel: impl Fn(u32) -> (Kernel, usize, f64),
) -> Result<Yardstick<'a>> {
    let measure = |chains| arithmetic(stopwatch, effort, name, kernel(chains));
    let [first, others @ ..] = CHAINS.map(measure);
    others.into_iter().try_fold(first?, |best, other| {
        let other = other?;
        Ok(if highest(&other.ceiling) > highest(&best.ceiling) { other } else { best })
    })
}

fn arithmetic<'a>(
    stopwatch: &'a Stopwatch<'a>,
    effort: &Effort,
    name: &str,
    (kernel, numbers, operations): (Kernel, usize, f64),
) -> Result<Yardstick<'a>> {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Params {
        count: u32,
        /// What sums are multiplied by, and what is added; or both factors.
        numbers: [f32; 2],
    }
    let gpu = stopwatch.gpu;
    let y = gpu.lease(numbers as u64 * 4);
    let rounds = |count: u32| {
        let (y, params) = (y.clone(), Params { count, numbers: [0.5; 2] });
        let names = [name, "GFLOP/s"];
        Yardstick::new(stopwatch, names, operations * f64::from(count), move || {
            gpu.run(kernel, &params, &[&y], gpu.groups(groups(gpu)));
        })
    };
    rounds(1).seconds()?;
    // As many rounds as make a sample long enough to be measured well, and no driver impatient.
    let mut count = 4;
    while rounds(count).seconds()? < effort.sample_seconds && count < 1 << 20 {
        count *= 2;
    }
    rounds(count).measured(effort)
}

fn copy<'a>(stopwatch: &'a Stopwatch<'a>, effort: &Effort) -> Result<Yardstick<'a>> {
    let gpu = stopwatch.gpu;
    // Larger than any cache.
    let wanted = if gpu.class() == AdapterClass::Software { 64 << 20 } else { 256 << 20 };
    let bytes = gpu.binding_limit().min(wanted);
    let (x, y) = (gpu.lease(bytes), gpu.lease(bytes));
    gpu.clear(&x);
    let count = (bytes / 16) as u32;
    let groups = gpu.groups((count as usize).div_ceil(256));
    let copies = |repeats: usize| {
        let (x, y, names) = (x.clone(), y.clone(), [BANDWIDTH, "GB/s"]);
        Yardstick::new(stopwatch, names, 2.0 * bytes as f64 * repeats as f64, move || {
            (0..repeats).for_each(|_| gpu.run(Kernel::new(&COPY), &count, &[&x, &y], groups));
        })
    };
    let repeats = stopwatch.warm_up(effort, 16, |repeats| copies(repeats).seconds())?;
    copies(repeats).measured(effort)
}
