//! `--tune`: which kernel is the fastest for each pass at the sizes at hand, on this adapter.
//!
//! Every kernel is first compared with the plainest one on the same numbers, and one that differs by
//! more than rounding explains cannot win. What was found is kept in the user's cache folder for the
//! same adapter, driver, backend and shaders, and used by every later run.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache;
use crate::error::Result;
use crate::gpu::{Gpu, Problem, Sizes};
use crate::ops::case::{Expected, HALF_EPSILON};
use crate::ops::{Operands, Trial};
use crate::provenance::{self, Provenance};
use crate::tensor::{Dtype, Tensor};

/// Seconds that measuring one kernel at one problem should take.
const SECONDS: f64 = 0.1;
/// Measurements of a kernel; the shortest counts, being the one least disturbed.
const SAMPLES: usize = 9;
/// A kernel that takes so many times the best at its first run is not measured again.
const HOPELESS: f64 = 3.0;
/// Times the sums of |terms| that Winograd's algorithm adds up, for numbers of like size: seven.
const WINOGRAD: f64 = 8.0;
/// Times what rounding explains of plain kernels that kernels which split numbers may be off: six roundings
/// of a sum at least, and twelve for three products that are each wrong by 2^-22.
const SPLIT: f64 = 3.0;

/// What measuring a problem gave.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The pass and its sizes.
    pub problem: Problem,
    /// Multiplications and additions.
    pub flops: f64,
    /// The kernels, with seconds, or why they are out; the fastest first.
    pub kernels: Vec<(&'static str, std::result::Result<f64, String>)>,
}

impl Tuned {
    /// The fastest kernel that is right.
    pub fn best(&self) -> Option<&'static str> {
        self.kernels.iter().find(|(_, outcome)| outcome.is_ok()).map(|(name, _)| *name)
    }
}

impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { pass, sizes, .. } = &self.problem;
        let [n, h, w, c_in, r, s, c_out, stride, ..] = sizes;
        write!(f, "{pass} {n}x{h}x{w}x{c_in} {r}x{s} s{stride} -> {c_out}:")?;
        for (name, outcome) in &self.kernels {
            match outcome {
                Ok(seconds) => write!(f, " {name} {:.3} ms,", seconds * 1e3)?,
                Err(reason) => write!(f, " {name} {reason},")?,
            }
        }
        Ok(())
    }
}

/// What is kept on disk.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Choices {
    adapter: String,
    choices: Vec<Choice>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Choice {
    pass: String,
    sizes: Sizes,
    kernel: String,
}

/// Makes the device use what earlier runs found to be the fastest. Returns how many choices that are.
pub fn load(gpu: &Gpu) -> usize {
    let choices = read(gpu);
    for Choice { pass, sizes, kernel } in &choices.choices {
        gpu.prefer_kernel(pass, *sizes, kernel);
    }
    choices.choices.len()
}

/// What decides about kernels besides adapter and build: the first digits of the SHA-256 of all choices
/// that the device has been told; none without any.
pub fn digest(gpu: &Gpu) -> Option<String> {
    let choices = gpu.preferred_kernels();
    let mut hash = Sha256::new();
    for (pass, sizes, kernel) in &choices {
        hash.update(format!("{pass} {sizes:?} {kernel}\n"));
    }
    (!choices.is_empty()).then(|| digits(&hash.finalize()))
}

/// Measures the kernels of each problem, makes the device use the fastest, and keeps that for later
/// runs. Tells of each problem as it is done.
///
/// # Errors
/// What the device reported.
pub fn tune(gpu: &Gpu, problems: &[Problem], mut tell: impl FnMut(&Tuned)) -> Result<()> {
    for problem in problems.iter().filter(|problem| problem.kernels.len() > 1) {
        let tuned = measure(gpu, problem)?;
        tell(&tuned);
        let Some(best) = tuned.best() else { continue };
        gpu.prefer_kernel(problem.pass, problem.sizes, best);
        keep(gpu, problem, best);
    }
    gpu.trim();
    Ok(())
}

/// Adds a choice to those on disk, where other processes may have put theirs since.
fn keep(gpu: &Gpu, problem: &Problem, kernel: &str) {
    let Choices { mut choices, .. } = read(gpu);
    choices.retain(|old| old.pass != problem.pass || old.sizes != problem.sizes);
    let (pass, kernel) = (problem.pass.to_owned(), kernel.to_owned());
    choices.push(Choice { pass, sizes: problem.sizes, kernel });
    let kept = Choices { adapter: identity(gpu), choices };
    if let Ok(text) = serde_json::to_vec_pretty(&kept) {
        cache::store(&file_name(gpu), &text);
    }
}

fn measure(gpu: &Gpu, problem: &Problem) -> Result<Tuned> {
    let judge = Judge::new(gpu, problem)?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for &name in &problem.kernels {
        let objection = judge.objection(name).or_else(|error| match gpu.finish() {
            // A kernel that the device refuses is not the fastest.
            Ok(()) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        });
        match objection? {
            Some(objection) => wrong.push((name, Err(objection))),
            None => right.push((name, judge.time(name, 1)?)),
        }
    }
    let best = right.iter().map(|&(_, once)| once).fold(f64::INFINITY, f64::min);
    let repeats = |once: f64| (SECONDS / SAMPLES as f64 / once).clamp(1.0, 64.0) as usize;
    // In turns, so that a slow second of the machine is everybody's.
    let mut hopeful: Vec<_> =
        right.iter_mut().filter(|(_, once)| *once <= HOPELESS * best).collect();
    let repeats: Vec<usize> = hopeful.iter().map(|(_, once)| repeats(*once)).collect();
    for _ in 0..SAMPLES {
        for ((name, shortest), &repeats) in hopeful.iter_mut().zip(&repeats) {
            *shortest = shortest.min(judge.time(name, repeats)?);
        }
    }
    right.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let right = right.into_iter().map(|(name, seconds)| (name, Ok(seconds)));
    let kernels = right.chain(wrong).collect();
    Ok(Tuned { problem: problem.clone(), flops: judge.trial.flops(), kernels })
}

/// Compares the adapter's matrix units with plain kernels, in all passes of a convolution, and makes
/// the device do without them if they compute something else. Returns what is wrong.
///
/// # Errors
/// What the device reported, apart from what running these kernels led to.
pub fn check_matrix_units(gpu: &Gpu, dtype: Dtype) -> Result<Option<String>> {
    if gpu.matrix_units(dtype.is_half()).is_none() {
        return Ok(None);
    }
    for problem in Trial::samples(gpu, dtype)? {
        let judge = Judge::new(gpu, &problem)?;
        for name in problem.kernels.iter().filter(|name| name.starts_with("cooperative")) {
            let objection = judge.objection(name).unwrap_or_else(|error| Some(error.to_string()));
            if let Some(objection) = objection {
                gpu.distrust_matrix_units();
                return Ok(Some(format!("{} {name} {objection}", problem.pass)));
            }
        }
    }
    Ok(None)
}

/// [`check_matrix_units`], unless this build has found them right on this adapter before, with the same driver:
/// that is kept in the user's cache folder.
///
/// # Errors
/// What the device reported.
pub fn check_matrix_units_once(gpu: &Gpu, dtype: Dtype) -> Result<Option<String>> {
    if gpu.matrix_units(dtype.is_half()).is_none() {
        return Ok(None);
    }
    let Provenance { version, commit, .. } = Provenance::default();
    let checked = format!("{}, {dtype}, wgrad {version} {commit}", identity(gpu));
    let name = format!("units-{}", digits(&Sha256::digest(&checked)));
    if cache::load(&name).is_some_and(|kept| kept == checked.as_bytes()) {
        return Ok(None);
    }
    let wrong = check_matrix_units(gpu, dtype)?;
    if wrong.is_none() {
        cache::store(&name, checked.as_bytes());
    }
    Ok(wrong)
}

/// What the kernels of a problem are compared with: the plainest of them.
struct Judge<'a> {
    gpu: &'a Gpu,
    pass: &'static str,
    trial: Trial,
    operands: Operands,
    plain: Vec<f32>,
    /// For each result, what rounding explains of a difference.
    allowance: Vec<f64>,
}

impl<'a> Judge<'a> {
    fn new(gpu: &'a Gpu, problem: &Problem) -> Result<Self> {
        let trial = Trial::new(gpu, problem)?;
        // Every table offers the kernel that needs nothing of the adapter.
        let plain = problem.kernels.iter().copied().find(|name| name.starts_with("registers"));
        let (magnitudes, operands) = (trial.operands(true)?, trial.operands(false)?);
        gpu.force_kernel(problem.pass, Some(plain.unwrap_or(problem.kernels[0])));
        let [magnitudes, plain] = [&magnitudes, &operands].map(|operands| trial.run(operands));
        gpu.force_kernel(problem.pass, None);
        let half = plain.dtype().is_half();
        let [magnitudes, plain] = [magnitudes.download(gpu)?, plain.download(gpu)?];
        let magnitudes: Vec<f64> = magnitudes.into_iter().map(f64::from).collect();
        // Both sides round.
        let mut allowance = Expected::allowances(&magnitudes, trial.terms());
        if half {
            let stored = allowance.iter_mut().zip(&plain);
            stored
                .for_each(|(allowance, value)| *allowance += HALF_EPSILON * f64::from(value.abs()));
        }
        Ok(Self { gpu, pass: problem.pass, trial, operands, plain, allowance })
    }

    /// Runs the kernel so many times, at least once, without waiting for it.
    fn run(&self, name: &'static str, times: usize) -> Tensor {
        self.gpu.force_kernel(self.pass, Some(name));
        for _ in 1..times {
            self.trial.run(&self.operands);
        }
        let last = self.trial.run(&self.operands);
        self.gpu.force_kernel(self.pass, None);
        last
    }

    /// What speaks against the kernel, if its results differ by more than rounding explains.
    fn objection(&self, name: &'static str) -> Result<Option<String>> {
        let factor = match name.split(' ').next() {
            Some("winograd") => 1.0 + WINOGRAD,
            Some("split") => 1.0 + SPLIT,
            _ => 2.0,
        };
        let found = self.run(name, 1).download(self.gpu)?;
        let pairs = found.iter().zip(&self.plain).zip(&self.allowance);
        let far = pairs.map(|((a, b), allowed)| f64::from((a - b).abs()) / (factor * allowed));
        let share = far.fold(0.0, |worst: f64, far| if far <= worst { worst } else { far });
        let wrong = share > 1.0 || share.is_nan();
        Ok(wrong.then(|| format!("differs by {share:.1} of what rounding explains")))
    }

    /// Seconds of the kernel, the mean of so many runs.
    fn time(&self, name: &'static str, runs: usize) -> Result<f64> {
        self.gpu.finish()?;
        let started = Instant::now();
        self.run(name, runs);
        self.gpu.finish()?;
        Ok(started.elapsed().as_secs_f64() / runs as f64)
    }
}

/// What a choice holds for.
fn identity(gpu: &Gpu) -> String {
    let report = gpu.report();
    format!(
        "{} ({}, {}), shaders {}",
        report.name,
        report.backend,
        report.driver,
        provenance::shaders()
    )
}

fn file_name(gpu: &Gpu) -> String {
    format!("tuned-{}.json", digits(&Sha256::digest(identity(gpu))))
}

/// The first digits of a hash.
fn digits(hash: &[u8]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What earlier runs found; nothing if there is no such file, or it is another's.
fn read(gpu: &Gpu) -> Choices {
    let data = cache::load(&file_name(gpu));
    let choices = data.and_then(|data| serde_json::from_slice::<Choices>(&data).ok());
    choices.filter(|choices| choices.adapter == identity(gpu)).unwrap_or_default()
}
