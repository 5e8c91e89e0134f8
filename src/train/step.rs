//! One training step: forward, loss, backward, update, recorded as one submission.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::network::Network;
use super::source::Batch;
use super::teachers::Teachers;
use crate::error::{Error, Result};
use crate::gpu::{Again, Download, Gpu, Place, Plan, Slice};
use crate::nn::{Mode, Stage};
use crate::ops::{
    ClassWeights, CrossEntropy, CrossEntropyOutput, Distillation, Target, Targets, add,
    cross_entropy, distillation,
};
use crate::optim::{Ema, Optimizer};
use crate::tensor::{Shape, Tensor};
use crate::{Tape, Var};

/// Steps the host may be ahead of the device.
const IN_FLIGHT: usize = 2;

/// What a step learns from.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// Images, `[n, size, size, 3]` bytes.
    Pixels(&'a [u8]),
    /// What the layers before the first that is trained made of the images, n × features.
    Features(&'a [f32]),
}

/// How the steps of a phase are done.
pub struct Stepper<'a> {
    gpu: &'a Gpu,
    network: &'a Network,
    /// What is trained, and how batch norm behaves.
    mode: Mode,
    /// The first stage that is trained; what it takes may be given instead of pixels.
    first: Stage,
    label_smoothing: f32,
    /// What each class weighs in the loss, here and on the device; none for all alike.
    class_weights: Option<(Vec<f32>, ClassWeights)>,
    /// Whom to learn from besides the labels.
    teachers: Option<&'a Teachers>,
    /// Images that go through the network at a time; a larger batch is done in several parts whose
    /// gradients add up.
    micro_batch: usize,
    /// Side of the images in pixels.
    image_size: u32,
    /// What averages the weights after each step.
    ema: Option<Rc<Ema>>,
    /// The steps that do a batch at once.
    at_once: Again<Kind>,
}

/// What decides which commands a step consists of, besides the stepper.
#[derive(PartialEq)]
struct Kind {
    optimizer: u64,
    image_size: u32,
    images: usize,
    /// Whether images come as features, and whether with targets that are not labels.
    inputs: [bool; 2],
}

/// A part of a batch on the device.
struct Part {
    targets: Targets,
    /// Logits to come near to, if the batch has them.
    goals: Option<Tensor>,
    inputs: PartInputs,
    images: usize,
}

impl Part {
    /// Where all of it lies.
    fn places(&self) -> Vec<Place> {
        let inputs = match &self.inputs {
            PartInputs::Pixels(pixels) => pixels,
            PartInputs::Features(features) => features.memory(),
        };
        let goals = self.goals.as_ref().map(Tensor::memory);
        [self.targets.memory(), inputs].into_iter().chain(goals).map(Slice::place).collect()
    }
}

enum PartInputs {
    Pixels(Slice),
    Features(Tensor),
}

impl<'a> Stepper<'a> {
    /// Steps of whole batches.
    pub fn new(
        gpu: &'a Gpu,
        network: &'a Network,
        mode: Mode,
        label_smoothing: f64,
        teachers: Option<&'a Teachers>,
    ) -> Self {
        let label_smoothing = label_smoothing as f32;
        let micro_batch = usize::MAX;
        let first = mode.train_from.unwrap_or(Stage::Head);
        Self {
            gpu,
            network,
            mode,
            first,
            label_smoothing,
            class_weights: None,
            teachers,
            micro_batch,
            image_size: network.image_size,
            ema: None,
            at_once: Again::default(),
        }
    }

    /// Has at most `images` images go through the network at a time.
    pub fn limit(&mut self, images: usize) {
        self.micro_batch = images;
    }

    /// Takes images of `size` × `size` pixels from now on, instead of the network's own size.
    pub fn resize(&mut self, size: u32) {
        self.image_size = size;
    }

    /// Has an average of the weights follow each step.
    pub fn average(&mut self, ema: Rc<Ema>) {
        self.ema = Some(ema);
    }

    /// Steps whose loss weighs classes.
    ///
    /// # Errors
    /// What the device reported.
    pub fn weigh(&mut self, class_weights: Vec<f32>) -> Result<()> {
        let on_device = ClassWeights::new(self.gpu, &class_weights)?;
        self.class_weights = Some((class_weights, on_device));
        self.at_once.forget();
        Ok(())
    }

    /// Whether activations are stored in f16.
    pub fn mixed(&self) -> bool {
        self.gpu.mixed()
    }

    /// Images that go through the network at a time, at most.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Records a step and submits it. Returns what the loss will be read from.
    ///
    /// # Errors
    /// Those of the operations, and what the device reported.
    pub fn step(
        &self,
        optimizer: &mut Optimizer,
        learning_rate: f64,
        batch: &Batch,
    ) -> Result<Vec<Download>> {
        optimizer.begin_step(self.gpu, learning_rate)?;
        let losses = self.record(optimizer, batch)?;
        for _ in parts(batch.labels.len(), self.micro_batch) {
            self.network.net.count_batch(self.mode);
        }
        if let Some(ema) = &self.ema {
            ema.update(self.gpu)?;
        }
        self.gpu.submit()?;
        Ok(losses)
    }

    /// Splits batches as large as `batch` into the largest parts whose tensors the adapter can bind.
    /// Returns what a step takes.
    ///
    /// # Errors
    /// [`Error::Gpu`] if not even one image fits.
    pub fn plan(&mut self, optimizer: &Optimizer, batch: &Batch) -> Result<Plan> {
        self.micro_batch = self.micro_batch.min(batch.labels.len());
        loop {
            let plan = self.arrange(optimizer, batch)?;
            if plan.fits() {
                return Ok(plan);
            }
            if self.micro_batch == 1 {
                return Err(Error::Gpu(format!(
                    "one image of {} pixels needs a tensor of {} MB, the adapter binds {} MB; lower \
                     --image-size",
                    self.image_size,
                    plan.largest_bytes >> 20,
                    plan.binding_limit >> 20
                )));
            }
            self.micro_batch = self.micro_batch.div_ceil(2);
        }
    }

    /// Lets go of all device memory that is free, and keeps what a step on `batch` takes, in the parts
    /// that [`Stepper::plan`] found. Returns what that is.
    ///
    /// # Errors
    /// Those of the operations, and what the device reported.
    pub fn arrange(&self, optimizer: &Optimizer, batch: &Batch) -> Result<Plan> {
        self.gpu.plan(|| self.record(optimizer, batch).map(|_| ()))
    }

    fn record(&self, optimizer: &Optimizer, batch: &Batch) -> Result<Vec<Download>> {
        let weights = self.class_weights.as_ref().map(|(weights, _)| &weights[..]);
        let targets = batch.targets(weights);
        if targets.len() <= self.micro_batch {
            return self.record_at_once(optimizer, batch, &targets);
        }
        let (mut losses, mut downloads) = (Vec::new(), Vec::new());
        let mut start = 0;
        let mut parts = parts(targets.len(), self.micro_batch).peekable();
        while let Some(images) = parts.next() {
            let targets = &targets[start..start + images];
            let part = self.load(batch, start, targets)?;
            let mode = Mode { accumulate: start > 0, ..self.mode };
            let stats = self.gradients(part, batch.labels.len(), mode, optimizer.seed())?;
            downloads.extend(stats.iter().map(|stats| self.gpu.download(stats.memory())));
            losses.extend(stats);
            start += images;
            match parts.peek() {
                // The device begins with this part while the next is prepared.
                Some(_) => self.gpu.submit()?,
                None => optimizer.step_if_finite(self.gpu, self.sum(&losses)?.memory())?,
            }
        }
        Ok(downloads)
    }

    /// Records a step of which all images are one part.
    fn record_at_once(
        &self,
        optimizer: &Optimizer,
        batch: &Batch,
        targets: &[Target],
    ) -> Result<Vec<Download>> {
        let part = self.load(batch, 0, targets)?;
        let features = matches!(part.inputs, PartInputs::Features(_));
        let kind = Kind {
            optimizer: optimizer.number(),
            image_size: self.image_size,
            images: part.images,
            inputs: [features, part.goals.is_some()],
        };
        let images = part.images;
        let inputs = part.places();
        self.at_once.record(self.gpu, kind, &inputs, || {
            let stats = self.gradients(part, images, self.mode, optimizer.seed())?;
            optimizer.step_if_finite(self.gpu, self.sum(&stats)?.memory())?;
            Ok(stats.iter().map(|stats| stats.memory().clone()).collect())
        })
    }

    /// The sum of losses, which is finite only if each is.
    fn sum(&self, losses: &[Tensor]) -> Result<Tensor> {
        let [first, others @ ..] = losses else { unreachable!("a step has a loss") };
        if others.is_empty() {
            return Ok(first.clone());
        }
        let sum = first.duplicate(self.gpu);
        others.iter().try_for_each(|loss| sum.add_assign(self.gpu, loss))?;
        Ok(sum)
    }

    /// Uploads the part of a batch with these targets, which begins with image `start`.
    fn load(&self, batch: &Batch, start: usize, targets: &[Target]) -> Result<Part> {
        let (gpu, network) = (self.gpu, self.network);
        network.net.draw(gpu, batch.noise_key, start)?;
        let weights = self.class_weights.as_ref().map(|(_, weights)| weights);
        let images = targets.len();
        let end = start + images;
        let mut goals = None;
        if !batch.targets.is_empty() {
            let width = network.net.classes();
            let values = &batch.targets[start * width..end * width];
            goals = Some(Tensor::from_host(gpu, Shape::matrix(images, width), values)?);
        }
        Ok(Part {
            targets: Targets::new(gpu, targets)?.weighted(weights),
            goals,
            inputs: match batch.inputs() {
                Inputs::Pixels(pixels) => {
                    let size = (self.image_size as usize).pow(2) * 3;
                    PartInputs::Pixels(network.upload(gpu, &pixels[start * size..end * size])?)
                }
                Inputs::Features(features) => {
                    let size = network.activation(self.first, 1).len();
                    let features = &features[start * size..end * size];
                    PartInputs::Features(network.features(gpu, self.first, features, images)?)
                }
            },
            images,
        })
    }

    /// Records the gradients, times `seed`, of a part of a batch of so many images. Returns the
    /// statistics of the losses by the labels and by the teachers, if there are any.
    fn gradients(
        &self,
        part: Part,
        images: usize,
        mode: Mode,
        seed: Tensor,
    ) -> Result<Vec<Tensor>> {
        let gpu = self.gpu;
        let tape = Tape::new(gpu);
        let Part { targets, mut goals, inputs, images: count } = part;
        if let (Some(teachers), None, PartInputs::Pixels(pixels)) = (self.teachers, &goals, &inputs)
        {
            goals = Some(teachers.targets(gpu, pixels, count, self.image_size)?);
        }
        let logits = self.logits(&tape, inputs, count, mode)?;
        let lessons = self.teachers.map(Teachers::lessons);
        // A loss's weight divides what its sum over images is divided by.
        let images = images as f64;
        let divisor = (images / lessons.map_or(1.0, |lessons| lessons.task_loss_weight)) as f32;
        let options = CrossEntropy { label_smoothing: self.label_smoothing, divisor };
        let CrossEntropyOutput { loss, stats } = cross_entropy(&tape, &logits, &targets, options)?;
        let (Some(lessons), Some(goals)) = (lessons, goals) else {
            tape.backward(&loss, seed)?;
            return Ok(vec![stats]);
        };
        let options = Distillation {
            temperature: lessons.temperature as f32,
            divisor: (images / lessons.distill_loss_weight) as f32,
        };
        let by_teachers = distillation(&tape, &logits, &goals, options)?;
        let loss = add(&tape, &loss, &by_teachers.loss)?;
        tape.backward(&loss, seed)?;
        Ok(vec![stats, by_teachers.stats])
    }

    /// Which parameter, or which operation on the images of `batch`, first holds a value that is not
    /// finite, in the network as it is now.
    ///
    /// # Errors
    /// What the device reported.
    pub fn first_non_finite(&self, batch: &Batch) -> Result<Option<String>> {
        let gpu = self.gpu;
        let parameters = self.network.net.parameters();
        let values = parameters.download(gpu, parameters.values())?;
        for (parameter, values) in parameters.list().iter().zip(values) {
            if values.iter().any(|value| !value.is_finite()) {
                return Ok(Some(format!("the parameter {}", parameter.name)));
            }
        }
        let targets = batch.targets(None);
        let mut start = 0;
        for images in parts(targets.len(), self.micro_batch) {
            let part = self.load(batch, start, &targets[start..start + images])?;
            let tape = Tape::watching(gpu);
            self.logits(&tape, part.inputs, images, self.mode)?;
            if let Some(found) = tape.first_non_finite() {
                return Ok(Some(found));
            }
            start += images;
        }
        Ok(None)
    }

    /// What the network makes of a part of a batch.
    fn logits(&self, tape: &Tape, inputs: PartInputs, images: usize, mode: Mode) -> Result<Var> {
        let network = self.network;
        match inputs {
            PartInputs::Pixels(pixels) => {
                let input = network.input_of_size(tape, &pixels, images, self.image_size)?;
                drop(pixels);
                network.net.forward(tape, &input, mode)
            }
            PartInputs::Features(features) => network.after(tape, self.first, features, mode),
        }
    }
}

/// Images of each part of `images` that go through the network at most `most` at a time: of as few parts
/// as can be, all equal or the first ones larger by one, so that none is too small for batch norm.
fn parts(images: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = images.div_ceil(most);
    (0..count).map(move |part| images / count + usize::from(part < images % count))
}

/// Images of the smallest of the parts of `images` that go through the network at most `most` at a time.
pub fn smallest_part(images: usize, most: usize) -> usize {
    parts(images, most).last().unwrap_or(0)
}

/// A step whose loss has been asked for.
pub struct Pending {
    /// Number of the step in the run, from 0.
    pub step: u64,
    /// What it learned from.
    pub batch: Batch,
    /// The schedule's learning rate.
    pub learning_rate: f64,
    /// The loss's parts.
    pub downloads: Vec<Download>,
}

/// A step that the device has done.
pub struct Done {
    /// Number of the step in the run, from 0.
    pub step: u64,
    /// What it learned from.
    pub batch: Batch,
    /// The schedule's learning rate.
    pub learning_rate: f64,
    /// Mean loss of the batch, before the update.
    pub loss: f64,
    /// Images whose label had the largest logit.
    pub right: f64,
    /// Since the step before was done.
    pub seconds: f64,
}

/// Steps on their way, so that the host prepares the next while the device works.
pub struct Pipeline {
    pending: VecDeque<Pending>,
    last: Instant,
}

impl Pipeline {
    /// Nothing on its way.
    pub fn start() -> Self {
        Self { pending: VecDeque::new(), last: Instant::now() }
    }

    /// Adds a step; waits for an earlier one if too many are on their way.
    ///
    /// # Errors
    /// What the device reported.
    pub fn push(&mut self, pending: Pending) -> Result<Option<Done>> {
        self.pending.push_back(pending);
        if self.pending.len() > IN_FLIGHT { self.pop() } else { Ok(None) }
    }

    /// Waits for the earliest step; none if all are done.
    ///
    /// # Errors
    /// What the device reported.
    pub fn pop(&mut self) -> Result<Option<Done>> {
        let Some(Pending { step, batch, learning_rate, downloads }) = self.pending.pop_front()
        else {
            return Ok(None);
        };
        let (mut loss, mut right) = (0.0, 0.0);
        for download in downloads {
            let stats = download.wait_f32()?;
            loss += f64::from(stats[0]);
            right += f64::from(stats[1]);
        }
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        Ok(Some(Done { step, batch, learning_rate, loss, right, seconds }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_differ_by_one_image_at_most() {
        let found = |images, most| parts(images, most).collect::<Vec<_>>();
        assert_eq!(found(16, 4), [4; 4]);
        assert_eq!(found(13, 4), [4, 3, 3, 3]);
        assert_eq!(found(57, 8), [8, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(found(3, usize::MAX), [3]);
        for (images, most) in (0..200).flat_map(|images| (1..20).map(move |most| (images, most))) {
            let parts = found(images, most);
            assert_eq!((parts.iter().sum::<usize>(), parts.len()), (images, images.div_ceil(most)));
            let smallest = smallest_part(images, most);
            assert!(
                parts.iter().all(|&part| (smallest..=smallest + 1).contains(&part)),
                "{parts:?}"
            );
            assert!(parts.iter().all(|&part| part <= most));
        }
    }
}
