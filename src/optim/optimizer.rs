//! Optimizers over a network's arena of parameters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gpu::{Gpu, Slice};
use crate::nn::{Group, Parameters, Stage};
use crate::ops::{Adam, AdamHyper, Judged, LossScale, Sgd, SgdHyper, adam, grad_norm, l2_sp, sgd};
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

/// How parameters follow their gradients, by PyTorch's definitions.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Algorithm {
    /// `torch.optim.SGD`.
    Sgd {
        /// Momentum; 0 for none.
        momentum: f64,
        /// Nesterov's momentum.
        nesterov: bool,
    },
    /// `torch.optim.Adam` with its default betas and ε; weight decay joins the gradient.
    Adam,
    /// `torch.optim.AdamW` with its default betas and ε; weight decay shrinks the parameter.
    AdamW,
}

/// PyTorch's defaults for Adam.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// What an optimizer does besides following the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The update rule.
    pub algorithm: Algorithm,
    /// Weight decay of everything but batch norm.
    pub weight_decay: f64,
    /// Weight decay of batch norm's weights and biases.
    pub norm_weight_decay: f64,
    /// Bound on the norm of all gradients together, as `clip_grad_norm_`.
    pub clip_grad_norm: Option<f64>,
    /// Strength λ of the penalty ½λ‖θ − θ₀‖² on the distance to the starting weights; batch norm
    /// and the classifier are free of it.
    pub l2_sp: f64,
}

/// Neighbouring groups that are updated by one dispatch.
struct Segment {
    parameters: Slice,
    /// Their copy in f16, in mixed precision.
    shadow: Option<Slice>,
    gradients: Slice,
    /// Velocity, or first and second moment.
    state: Vec<Slice>,
    weight_decay: f64,
    /// What the learning rate is multiplied by.
    rate: f64,
    /// Where the penalty pulls to; none where it does not apply.
    start: Option<Slice>,
    /// First byte in the arena.
    offset: u64,
    hyper: Slice,
}

/// The state of an optimizer of some of a network's parameters.
pub struct Optimizer {
    number: u64,
    settings: Settings,
    segments: Vec<Segment>,
    hyper: Slice,
    one: Tensor,
    /// What the loss is multiplied by, in mixed precision.
    loss_scale: Option<LossScale>,
    steps: u64,
}

/// How gradients were scaled; see [`LossScale`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The scale of the next step.
    pub scale: f64,
    /// What the gradients of the latest step are multiplied by.
    pub of_gradients: f64,
    /// Steps skipped because a gradient was not finite.
    pub skipped: u64,
}

/// Bytes from one segment's numbers to the next.
const HYPER_STRIDE: u64 = 256;

impl Optimizer {
    /// An optimizer of the stages from `train_from` on. `rate` gives what the learning rate of a
    /// stage is multiplied by.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no memory for gradients, see [`Parameters::require_gradients`].
    pub fn new(
        gpu: &Gpu,
        parameters: &Parameters,
        settings: Settings,
        train_from: Stage,
        rate: impl Fn(Stage) -> f64,
    ) -> Result<Self> {
        let gradients = parameters
            .gradients()
            .ok_or_else(|| Error::Usage("the network has no memory for gradients".into()))?;
        // Runs of neighbouring groups that are treated alike.
        let mut runs: Vec<(Treatment, u64, u64)> = Vec::new();
        for group in parameters.groups().iter().filter(|group| group.stage >= train_from) {
            let treatment = Treatment::new(group, &settings, &rate);
            match runs.last_mut() {
                Some((last, offset, bytes))
                    if *last == treatment && *offset + *bytes == group.offset =>
                {
                    *bytes += group.bytes;
                }
                _ => runs.push((treatment, group.offset, group.bytes)),
            }
        }
        let hyper = gpu.lease(HYPER_STRIDE * runs.len() as u64);
        let arenas = if matches!(settings.algorithm, Algorithm::Sgd { .. }) { 1 } else { 2 };
        let segments = runs.into_iter().zip(0..).map(|((treatment, offset, bytes), index)| {
            let values = parameters.values().part(offset, bytes);
            Segment {
                gradients: gradients.part(offset, bytes),
                state: (0..arenas).map(|_| zeros(gpu, bytes)).collect(),
                weight_decay: treatment.weight_decay,
                rate: treatment.rate,
                start: treatment.penalised.then(|| {
                    let start = gpu.lease(bytes);
                    gpu.copy(&values, &start);
                    start
                }),
                shadow: parameters.shadow().map(|shadow| shadow.part(offset / 2, bytes / 2)),
                parameters: values,
                hyper: hyper.part(HYPER_STRIDE * index, HYPER_STRIDE),
                offset,
            }
        });
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            segments: segments.collect(),
            settings,
            hyper,
            one: Tensor::from_host(gpu, Shape::vector(1), &[1.0])?,
            loss_scale: parameters.shadow().map(|_| LossScale::new(gpu)).transpose()?,
            steps: 0,
        })
    }

    /// A number that no other optimizer of this process has.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The gradient by the loss that backward passes begin with: 1, or the loss scale.
    pub fn seed(&self) -> Tensor {
        self.loss_scale.as_ref().map_or_else(|| self.one.clone(), LossScale::seed)
    }

    /// How gradients are scaled by now; none in single precision. Waits for the device.
    ///
    /// # Errors
    /// What the device reported.
    pub fn scaling(&self, gpu: &Gpu) -> Result<Option<Scaling>> {
        let Some(loss_scale) = &self.loss_scale else { return Ok(None) };
        let numbers = gpu.download(loss_scale.memory()).wait_f32()?;
        Ok(Some(Scaling {
            scale: numbers[0].into(),
            of_gradients: numbers[4].into(),
            skipped: numbers[5] as u64,
        }))
    }

    /// Steps begun.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on after `steps` steps whose [`Optimizer::state`] has been put back.
    pub fn resume(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// What is kept from step to step, each piece under a name of its own.
    pub fn state(&self) -> Vec<(String, Slice)> {
        let names = match self.settings.algorithm {
            Algorithm::Sgd { .. } => &["velocity"][..],
            Algorithm::Adam | Algorithm::AdamW => &["first_moment", "second_moment"],
        };
        let of_segment = |(index, segment): (usize, &Segment)| {
            let named = names.iter().zip(segment.state.clone());
            named.map(|(name, slice)| (format!("{name}.{index}"), slice)).collect::<Vec<_>>()
        };
        let loss_scale = self.loss_scale.iter();
        let loss_scale = loss_scale.map(|it| ("loss_scale".to_owned(), it.memory().clone()));
        self.segments.iter().enumerate().flat_map(of_segment).chain(loss_scale).collect()
    }

    /// Makes the penalty pull to the parameters in `start`, an arena laid out as the network's,
    /// instead of those that the optimizer began with.
    pub fn pull_to(&mut self, start: &Slice) {
        for segment in self.segments.iter_mut().filter(|segment| segment.start.is_some()) {
            segment.start = Some(start.part(segment.offset, segment.parameters.bytes));
        }
    }

    /// Uploads the numbers of the next step. To be called before the step is recorded, because an
    /// upload takes effect after what has been recorded.
    ///
    /// # Errors
    /// What the device reported.
    pub fn begin_step(&mut self, gpu: &Gpu, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        let mut bytes = vec![0; self.hyper.bytes as usize];
        for (segment, bytes) in self.segments.iter().zip(bytes.chunks_mut(HYPER_STRIDE as usize)) {
            let rate = segment.rate * learning_rate;
            match self.settings.algorithm {
                Algorithm::Sgd { momentum, nesterov } => {
                    let hyper = SgdHyper {
                        learning_rate: rate as f32,
                        momentum: momentum as f32,
                        weight_decay: segment.weight_decay as f32,
                        first: u8::from(self.steps == 1).into(),
                        nesterov: u8::from(nesterov).into(),
                        unused: [0.0; 3],
                    };
                    bytes[..size_of_val(&hyper)].copy_from_slice(bytemuck::bytes_of(&hyper));
                }
                Algorithm::Adam | Algorithm::AdamW => {
                    let decoupled = self.settings.algorithm == Algorithm::AdamW;
                    let decay = segment.weight_decay;
                    // Which steps are skipped, and so the bias of the moments, only the device knows;
                    // after infinitely many steps there is none.
                    let step = if self.loss_scale.is_some() { u64::MAX } else { self.steps };
                    let hyper = AdamHyper::new(step, rate, BETAS, EPSILON, decay, decoupled);
                    bytes[..size_of_val(&hyper)].copy_from_slice(bytemuck::bytes_of(&hyper));
                }
            }
        }
        gpu.upload(&self.hyper, &bytes)
    }

    /// Records the update of the parameters by their gradients.
    ///
    /// # Errors
    /// Those of the update's operations.
    pub fn step(&self, gpu: &Gpu) -> Result<()> {
        self.step_if_finite(gpu, self.one.memory())
    }

    /// [`Optimizer::step`], which changes nothing if the device finds `loss` (one f32) to be NaN or
    /// infinite; in mixed precision, nothing if a gradient is.
    ///
    /// # Errors
    /// Those of the update's operations.
    pub fn step_if_finite(&self, gpu: &Gpu, loss: &Slice) -> Result<()> {
        for segment in &self.segments {
            if let Some(start) = &segment.start {
                let strength = self.settings.l2_sp as f32;
                let scale = self.loss_scale.as_ref().map(LossScale::memory);
                l2_sp(gpu, &segment.gradients, &segment.parameters, start, strength, scale)?;
            }
        }
        let gradients: Vec<_> = self.segments.iter().map(|s| &s.gradients).collect();
        let bound = self.settings.clip_grad_norm.map(|bound| bound as f32);
        let (scale, verdict) = match (&self.loss_scale, bound) {
            (Some(loss_scale), _) => {
                let betas = match self.settings.algorithm {
                    Algorithm::Sgd { .. } => [0.0; 2],
                    Algorithm::Adam | Algorithm::AdamW => BETAS,
                };
                let judged = loss_scale.judge(gpu, &gradients, loss, betas, bound)?;
                let Judged { factor, verdict } = judged;
                (factor, Some(verdict))
            }
            (None, Some(_)) => (grad_norm(gpu, &gradients, bound)?, None),
            (None, None) => (self.one.clone(), None),
        };
        let loss = verdict.as_ref().map_or(loss, Tensor::memory);
        for Segment { parameters, shadow, gradients, state, hyper, .. } in &self.segments {
            let (scale, shadow) = (scale.memory(), shadow.as_ref());
            match &state[..] {
                [velocity] => {
                    let step = Sgd { parameters, gradients, velocity, hyper, scale, loss, shadow };
                    sgd(gpu, step)?;
                }
                [first_moment, second_moment] => {
                    let step = Adam {
                        parameters,
                        gradients,
                        first_moment,
                        second_moment,
                        hyper,
                        scale,
                        loss,
                        shadow,
                    };
                    adam(gpu, step)?;
                }
                _ => unreachable!("an optimizer keeps one arena or two"),
            }
        }
        Ok(())
    }
}

/// What neighbouring groups must have in common to be updated together.
#[derive(PartialEq)]
struct Treatment {
    weight_decay: f64,
    rate: f64,
    penalised: bool,
}

impl Treatment {
    fn new(group: &Group, settings: &Settings, rate: impl Fn(Stage) -> f64) -> Self {
        Self {
            weight_decay: match group.norm {
                true => settings.norm_weight_decay,
                false => settings.weight_decay,
            },
            rate: rate(group.stage),
            penalised: settings.l2_sp != 0.0 && !group.norm && group.stage != Stage::Head,
        }
    }
}

fn zeros(gpu: &Gpu, bytes: u64) -> Slice {
    let slice = gpu.lease(bytes);
    gpu.clear(&slice);
    slice
}
