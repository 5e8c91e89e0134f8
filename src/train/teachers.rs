//! Networks that a run learns from, besides the labels: knowledge distillation.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::interrupt::Interrupt;
use super::network::{Answer, Network, read_finite};
use super::validate::in_order;
use crate::Tape;
use crate::data::Items;
use crate::error::{Context, Error, Result};
use crate::gpu::{Gpu, Slice};
use crate::nn::Mode;
use crate::ops::soften;
use crate::tensor::{Shape, Tensor};

/// What a run learns from, besides the labels.
#[derive(Clone, Debug, Serialize)]
pub struct Lessons {
    /// The teachers' checkpoints.
    pub teachers: Vec<PathBuf>,
    /// SHA-256 of each of those files: what makes them the same, wherever they lie.
    pub teacher_sha256: Vec<String>,
    /// What logits are divided by before they become probabilities.
    pub temperature: f64,
    /// Weight of the loss by the labels.
    pub task_loss_weight: f64,
    /// Weight of the loss by the teachers.
    pub distill_loss_weight: f64,
}

impl Lessons {
    /// Checks what no single option's type can.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option, its value, and what it can be.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Usage(text));
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return wrong(format!("--temperature {}: it must be above 0", self.temperature));
        }
        for (option, weight) in [
            ("--task-loss-weight", self.task_loss_weight),
            ("--distill-loss-weight", self.distill_loss_weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return wrong(format!("{option} {weight}: it must be a number of 0 or more"));
            }
        }
        if self.distill_loss_weight == 0.0 {
            return wrong(
                "--distill-loss-weight 0 leaves nothing to learn from teachers; use \
                          `wgrad finetune`"
                    .into(),
            );
        }
        Ok(())
    }
}

/// The teachers of a run, on the device.
pub struct Teachers {
    networks: Vec<Network>,
    lessons: Lessons,
    /// What the student's file says of them.
    lineage: Vec<Value>,
}

impl Teachers {
    /// Loads the teachers of `student`; classes are matched by name.
    ///
    /// # Errors
    /// Those of reading, and [`Error::Checkpoint`] for a teacher of other classes.
    pub fn load(gpu: &Gpu, lessons: &Lessons, student: &Network) -> Result<Self> {
        let (mut networks, mut lineage) = (Vec::new(), Vec::new());
        for (path, sha256) in lessons.teachers.iter().zip(&lessons.teacher_sha256) {
            let doing = || format!("loading the teacher {}", path.display());
            let mut checkpoint = read_finite(path).context(doing)?;
            checkpoint.call_classes_like(&student.classes);
            checkpoint
                .order_classes(&student.classes, &"the data")
                .map_err(|what| Error::checkpoint(path, what))
                .context(doing)?;
            let network = Network::from_checkpoint(gpu, &checkpoint, Some(student.image_size));
            networks.push(network.context(doing)?);
            lineage.push(json!({
                "path": path.to_string_lossy(),
                "sha256": sha256,
                "role": "teacher",
                "provenance": checkpoint.meta.provenance,
            }));
        }
        Ok(Self { networks, lessons: lessons.clone(), lineage })
    }

    /// What the student learns, and with which weights.
    pub fn lessons(&self) -> &Lessons {
        &self.lessons
    }

    /// The networks.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// What the student's file says of its teachers.
    pub fn lineage(&self) -> &[Value] {
        &self.lineage
    }

    /// What the teachers make of `count` uploaded images of `size` × `size` pixels: the mean of their
    /// softened probabilities, images × classes. Recorded, not yet run.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn targets(&self, gpu: &Gpu, pixels: &Slice, count: usize, size: u32) -> Result<Tensor> {
        let tape = Tape::no_grad(gpu);
        let classes = self.networks[0].net.classes();
        let targets = Tensor::empty(gpu, Shape::matrix(count, classes));
        let share = 1.0 / self.networks.len() as f32;
        for (at, teacher) in self.networks.iter().enumerate() {
            let input = teacher.input_of_size(&tape, pixels, count, size)?;
            let logits = teacher.net.forward(&tape, &input, Mode::EVAL)?;
            let temperature = self.lessons.temperature as f32;
            soften(gpu, logits.value(), temperature, share, &targets, at > 0)?;
        }
        Ok(targets)
    }

    /// What the teachers make of images that are always the same, computed once.
    ///
    /// # Errors
    /// [`Error::Interrupted`], too many unreadable images, and what the device reported.
    pub fn all_targets(
        &self,
        gpu: &Gpu,
        items: &Items,
        batch_size: usize,
        workers: usize,
        interrupt: &Interrupt,
    ) -> Result<Targets> {
        let first = &self.networks[0];
        let of = |network: &Network| network.images_at_a_time(gpu, batch_size);
        let batch_size = self.networks.iter().map(of).min().unwrap_or(1);
        let classes = first.net.classes();
        let mut targets = Targets { values: vec![0.0; items.len() * classes], classes };
        for batch in in_order(items, first.image_size, batch_size, workers)? {
            interrupt.check()?;
            let batch = batch?;
            if batch.labels.is_empty() {
                continue;
            }
            let pixels = first.upload(gpu, &batch.pixels)?;
            let size = first.image_size;
            let tensor = self.targets(gpu, &pixels, batch.labels.len(), size)?;
            let values = Answer::new(gpu, &tensor)?.wait()?;
            for (&item, row) in batch.items.iter().zip(values.chunks(classes)) {
                targets.values[item * classes..(item + 1) * classes].copy_from_slice(row);
            }
        }
        Ok(targets)
    }
}

/// The teachers' softened probabilities of every training image.
pub struct Targets {
    /// Images × classes; zeros for an image that cannot be read.
    values: Vec<f32>,
    classes: usize,
}

impl Targets {
    /// Those of these images.
    pub fn select(&self, images: &[usize]) -> Vec<f32> {
        let rows =
            images.iter().map(|&at| &self.values[at * self.classes..(at + 1) * self.classes]);
        rows.flatten().copied().collect()
    }
}
