//! Whole networks as users run them: the first step, training, evaluation, the loader.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::file::{Group, Row, Status};
use super::stopwatch::Effort;
use super::{memory, open};
use crate::checkpoint::Source;
use crate::data::{Augment, Dataset, Loader, Order, ScanOptions, Transform, demo_root};
use crate::error::{Error, Result};
use crate::gpu::{AdapterClass, Gpu, GpuOptions, Problem};
use crate::nn::arch::{Arch, ConvNorm};
use crate::nn::{BnPolicy, Mode, Stage};
use crate::optim::{Algorithm, Optimizer, Settings};
use crate::train::{Batch, Network, Pending, Pipeline, Stepper};
use crate::verify::formulas;

/// Side of the images, images a batch.
type Size = (u32, usize);

const SMALL: &[Size] = &[(64, 8), (64, 32), (224, 4)];
const ALL: &[Size] =
    &[(64, 8), (64, 16), (64, 32), (64, 256), (224, 4), (224, 16), (224, 64), (224, 256)];

/// Steps before those that are timed, at least: as many as may be on their way, which the first wait for,
/// and one more.
const WARM_UP: usize = 3;
/// Seconds that a GPU, whose steps are short, is timed for at least, and steps at most.
const TIMED_SECONDS: f64 = 0.3;
const MOST_STEPS: usize = 500;
/// Batches whose logits may be on their way.
const IN_FLIGHT: usize = 2;

/// PyTorch's usual SGD.
const SGD: Settings = Settings {
    algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
    weight_decay: 1e-4,
    norm_weight_decay: 0.0,
    clip_grad_norm: None,
    l2_sp: 0.0,
};
const TRAIN: Mode = Mode { bn: BnPolicy::Train, train_from: Some(Stage::Stem), ..Mode::EVAL };
/// Small, so that the weights of the benchmark stay finite.
const RATE: f64 = 1e-4;

/// The bundled network, its optimizer, and a batch size.
struct Subject<'a> {
    gpu: &'a Gpu,
    network: Network,
    optimizer: Optimizer,
}

impl<'a> Subject<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self> {
        let path = Source::Bundled.resolve(&mut |_| ())?.unwrap_or_default();
        let mut network = Network::load(gpu, &path, None)?;
        network.net.parameters_mut().require_gradients(gpu);
        let parameters = network.net.parameters();
        let optimizer = Optimizer::new(gpu, parameters, SGD, Stage::Stem, |_| 1.0)?;
        Ok(Self { gpu, network, optimizer })
    }

    fn row(&self, group: Group, (size, images): Size) -> Row {
        let arch = self.network.net.arch();
        let forward = flops(&arch, size as usize) * images as f64;
        let factor = if group == Group::Inference { 1.0 } else { 3.0 };
        Row {
            name: format!("{arch} {}", if factor > 1.0 { "training" } else { "inference" }),
            shape: format!("{size} px, batch {images}"),
            flops: factor * forward,
            images,
            ..Row::new(group)
        }
    }

    /// Trains for so long; `row` gets the times of the steps.
    fn train(&mut self, (size, images): Size, mut course: Course, row: &mut Row) -> Result<()> {
        let Self { gpu, network, optimizer } = self;
        let gpu = *gpu;
        network.image_size = size;
        memory::forget();
        let mut stepper = Stepper::new(gpu, network, TRAIN, 0.0, None);
        let mut spare = vec![batch(size, images)];
        let plan = stepper.plan(optimizer, &spare[0])?;
        row.device_bytes = Some(plan.peak_bytes);
        row.micro_batch = Some(stepper.micro_batch()).filter(|&part| part < images);
        gpu.prepare(&plan)?;
        let mut pipeline = Pipeline::start();
        let mut seconds = Vec::new();
        while let Some(step) = course.begin(seconds.len()) {
            let batch = spare.pop().unwrap_or_else(|| batch(size, images));
            let started = Instant::now();
            let downloads = stepper.step(optimizer, RATE, &batch)?;
            // A processor that plays GPU computes within the submission.
            if course.counts(step) && gpu.class() != AdapterClass::Software {
                row.host_samples.push(started.elapsed().as_secs_f64());
            }
            let pending = Pending { step: step as u64, batch, learning_rate: RATE, downloads };
            if let Some(done) = pipeline.push(pending)? {
                seconds.push(done.seconds);
                spare.push(done.batch);
            }
        }
        // What is left has no steps behind it, and may long be done.
        while pipeline.pop()?.is_some() {}
        row.samples = course.counted_of(seconds);
        row.process_bytes = memory::peak();
        Ok(())
    }

    /// Evaluates batches for so long, two of them on their way; `row` gets their times.
    fn evaluate(&mut self, (size, images): Size, mut course: Course, row: &mut Row) -> Result<()> {
        let Self { gpu, network, .. } = self;
        network.image_size = size;
        memory::forget();
        let pixels = pixels(size, images);
        let part = network.images_at_a_time(gpu, images);
        row.micro_batch = Some(part).filter(|&part| part < images);
        let evaluate = || -> Result<Vec<_>> {
            let parts = pixels.chunks(part * pixels.len() / images);
            parts
                .map(|part| network.evaluate(gpu, part, part.len() * images / pixels.len()))
                .collect()
        };
        let mut answers = VecDeque::new();
        let mut last = Instant::now();
        let mut seconds = Vec::new();
        while course.begin(seconds.len()).is_some() {
            answers.push_back(evaluate()?);
            if answers.len() <= IN_FLIGHT {
                continue;
            }
            for answer in answers.pop_front().into_iter().flatten() {
                answer.wait()?;
            }
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
        for answer in answers.into_iter().flatten() {
            answer.wait()?;
        }
        row.samples = course.counted_of(seconds);
        row.device_bytes = Some(gpu.allocated_bytes());
        row.process_bytes = memory::peak();
        Ok(())
    }
}

/// The steps of a row: those of a warm-up, then those that count, then those on their way when the last of
/// these is done.
struct Course {
    started: Option<Instant>,
    /// Seconds and steps of the warm-up, at least.
    warm_up: (f64, usize),
    /// Seconds and steps that count, at least.
    timed: (f64, usize),
    /// Steps begun, and at most.
    begun: usize,
    most: usize,
    /// The first that counts, and when it began.
    counted: Option<(usize, Instant)>,
}

impl Course {
    fn new(warm_up: (f64, usize), timed: (f64, usize)) -> Self {
        Self { started: None, warm_up, timed, begun: 0, most: usize::MAX, counted: None }
    }

    /// What a row takes.
    fn of_row(gpu: &Gpu, effort: &Effort) -> Self {
        match gpu.class() {
            AdapterClass::Software => Self::new((0.0, WARM_UP), (0.0, effort.samples)),
            _ => Self::new((effort.warm_up_seconds, WARM_UP), (TIMED_SECONDS, effort.samples)),
        }
    }

    /// The first step and no other, which counts.
    fn of_one_step() -> Self {
        Self { most: 1, ..Self::new((0.0, 0), (0.0, 1)) }
    }

    /// Number of the step that begins now, when so many are done; none when they are enough.
    fn begin(&mut self, done: usize) -> Option<usize> {
        let step = self.begun;
        let started = *self.started.get_or_insert_with(Instant::now);
        let (seconds, steps) = self.warm_up;
        let warm = step >= steps && started.elapsed().as_secs_f64() >= seconds;
        if self.counted.is_none() && warm {
            self.counted = Some((step, Instant::now()));
        }
        if let Some((first, since)) = self.counted {
            let (seconds, steps) = self.timed;
            let enough = done >= first + steps && since.elapsed().as_secs_f64() >= seconds;
            if enough || done >= first + steps.max(MOST_STEPS) {
                return None;
            }
        }
        if step >= self.most {
            return None;
        }
        self.begun += 1;
        Some(step)
    }

    fn counts(&self, step: usize) -> bool {
        self.counted.is_some_and(|(first, _)| step >= first)
    }

    /// Those times, of all steps that were done, which count.
    fn counted_of(&self, mut seconds: Vec<f64>) -> Vec<f64> {
        let first = self.counted.map_or(0, |(first, _)| first);
        seconds.split_off(first.min(seconds.len()))
    }
}

/// Images by formula, so that every machine computes the same; a few, again and again.
fn pixels(size: u32, images: usize) -> Vec<u8> {
    const FEW: usize = 16;
    let mut pixels = formulas::pixels(0, images.min(FEW), size as usize);
    let bytes = images * pixels.len() / images.min(FEW);
    while pixels.len() < bytes {
        pixels.extend_from_within(..pixels.len().min(bytes - pixels.len()));
    }
    pixels
}

fn batch(size: u32, images: usize) -> Batch {
    Batch {
        pixels: pixels(size, images),
        features: Vec::new(),
        targets: Vec::new(),
        labels: formulas::labels(0, images),
        share: None,
        noise_key: [0; 2],
        failed: Vec::new(),
    }
}

/// The choices between kernels that training makes, from small to large.
pub(super) fn problems(gpu: &Gpu, effort: &Effort) -> Result<Vec<Problem>> {
    let Ok(mut subject) = Subject::new(gpu) else { return Ok(Vec::new()) };
    let mut problems = Vec::new();
    for &(size, images) in if effort.small { SMALL } else { ALL } {
        subject.network.image_size = size;
        let mut stepper = Stepper::new(gpu, &subject.network, TRAIN, 0.0, None);
        problems.extend(stepper.plan(&subject.optimizer, &batch(size, images))?.problems);
        gpu.trim();
    }
    Ok(problems)
}

/// From opening the adapter to the end of the first training step, with whatever caches there are.
pub(super) fn first_step(index: usize, options: GpuOptions) -> Result<Row> {
    let size = (64, 16);
    let started = Instant::now();
    let gpu = open(index, options)?;
    let mut row = match Subject::new(&gpu) {
        Ok(mut subject) => {
            let mut row = subject.row(Group::Start, size);
            let trained = subject.train(size, Course::of_one_step(), &mut row);
            gpu.finish()?;
            row.samples = vec![started.elapsed().as_secs_f64()];
            row.host_samples.clear();
            refused(&mut row, trained)?;
            row
        }
        Err(error) => {
            let mut row = Row::new(Group::Start);
            refused(&mut row, Err(error))?;
            row
        }
    };
    row.name = "first training step, from opening the adapter,".into();
    (row.flops, row.images) = (0.0, 0);
    Ok(row)
}

/// Training and evaluation, from small to large; what would take too long is left out.
pub(super) fn measure(gpu: &Gpu, effort: &Effort, mut tell: impl FnMut(Row)) -> Result<()> {
    let mut subject = match Subject::new(gpu) {
        Ok(subject) => subject,
        Err(error) => {
            let mut row = Row::new(Group::Training);
            refused(&mut row, Err(error))?;
            tell(row);
            return Ok(());
        }
    };
    for group in [Group::Training, Group::Inference] {
        // Seconds of a pixel so far, at worst a guess from a size that suits the adapter less.
        let mut per_pixel = 0.0;
        for &size in if effort.small { SMALL } else { ALL } {
            let (side, images) = size;
            let pixels = f64::from(side * side) * images as f64;
            let mut row = subject.row(group, size);
            let seconds = per_pixel * pixels * (effort.samples + WARM_UP) as f64;
            if seconds > effort.row_seconds {
                row.withhold(Status::Skipped, format!("would take {seconds:.0} s"));
                tell(row);
                continue;
            }
            let measured = match group {
                Group::Training => subject.train(size, Course::of_row(gpu, effort), &mut row),
                _ => subject.evaluate(size, Course::of_row(gpu, effort), &mut row),
            };
            refused(&mut row, measured)?;
            gpu.trim();
            per_pixel = row.summary().map_or(per_pixel, |all| all.median / pixels);
            tell(row);
        }
    }
    Ok(())
}

/// Turns what kept a row from being measured into its status; a lost device ends everything.
fn refused(row: &mut Row, outcome: Result<()>) -> Result<()> {
    let (status, error) = match outcome {
        Ok(()) => return Ok(()),
        Err(error @ (Error::OutOfMemory(_) | Error::Shape { .. })) => (Status::Unsupported, error),
        Err(error @ (Error::Checkpoint { .. } | Error::Data { .. })) => (Status::Skipped, error),
        Err(error) => return Err(error),
    };
    row.withhold(status, error.to_string());
    Ok(())
}

/// Epochs of the bundled images, decoded and augmented, with nothing behind the loader.
pub(super) fn loader(effort: &Effort, mut tell: impl FnMut(Row)) {
    for size in [64, 224] {
        let mut row = Row {
            name: "loader, bundled images, light augmentation,".into(),
            shape: format!("{size} px"),
            ..Row::new(Group::Loader)
        };
        let measured = epochs(size, effort.samples).map(|(samples, images)| {
            row.samples = samples;
            row.images = images;
        });
        if let Err(error) = measured {
            row.withhold(Status::Skipped, error.to_string());
        }
        tell(row);
    }
}

fn epochs(size: u32, count: usize) -> Result<(Vec<f64>, usize)> {
    let dataset = Dataset::scan(&demo_root()?, &ScanOptions { val_fraction: 0.2, seed: 0 })?;
    let items: Arc<[_]> = dataset.train.into();
    let images = items.len();
    let mut samples = Vec::new();
    for epoch in 0..count as u64 + 1 {
        let order = Order { seed: 0, epoch, shuffle: true, batch_size: 32, drop_last: false };
        let transform = Transform { size, augment: Augment::Light, auto_augment: None };
        let started = Instant::now();
        for batch in Loader::new(items.clone(), order.batches(images), transform, 0, epoch, 0)? {
            batch?;
        }
        samples.push(started.elapsed().as_secs_f64());
    }
    // The first epoch found the files outside the system's cache.
    samples.remove(0);
    Ok((samples, images))
}

/// Multiplications and additions of a forward pass of one square image.
fn flops(arch: &Arch, size: usize) -> f64 {
    let after =
        |conv: &ConvNorm, side: usize| (side + 2 * conv.padding - conv.kernel) / conv.stride + 1;
    let cost = |conv: &ConvNorm, side: usize| {
        let taps = conv.kernel.pow(2) * conv.in_channels * conv.out_channels;
        2.0 * (taps * after(conv, side).pow(2)) as f64
    };
    let stem = arch.stem();
    let mut total = cost(&stem, size);
    // The max-pool's windows are 3×3, two pixels apart, with a border of one.
    let mut side = (after(&stem, size) - 1) / 2 + 1;
    for block in arch.blocks() {
        total += block.downsample.iter().map(|conv| cost(conv, side)).sum::<f64>();
        for conv in &block.convs {
            total += cost(conv, side);
            side = after(conv, side);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_only_with_others_behind_them() {
        let mut course = Course::new((0.0, 3), (0.0, 5));
        let (mut on_their_way, mut done) = (VecDeque::new(), Vec::new());
        while let Some(step) = course.begin(done.len()) {
            on_their_way.push_back(step as f64);
            if on_their_way.len() > IN_FLIGHT {
                done.extend(on_their_way.pop_front());
            }
        }
        assert_eq!(on_their_way.len(), IN_FLIGHT);
        assert_eq!(course.counted_of(done), [3.0, 4.0, 5.0, 6.0, 7.0]);
        let mut course = Course::of_one_step();
        assert_eq!([course.begin(0), course.begin(0)], [Some(0), None]);
    }

    #[test]
    fn resnets_cost_what_is_published() {
        // Multiply-adds of the convolutions at 224 px: 1.81 and 4.09 thousand million.
        for (name, published) in [("resnet18", 1.814e9), ("resnet50", 4.087e9)] {
            let found = flops(&Arch::from_name(name).unwrap(), 224) / 2.0;
            assert!((found / published - 1.0).abs() < 0.005, "{name}: {found}");
        }
    }
}
