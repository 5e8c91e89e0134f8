//! Optimizers over a network's arena of parameters.

use crate::gpu::{Gpu, Slice};
use crate::nn::{Group, Parameters, Stage};
use crate::ops::{Adam, AdamHyper, Sgd, SgdHyper, adam, grad_norm, l2_sp, sgd};
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
    settings: Settings,
    segments: Vec<Segment>,
    hyper: Slice,
    one: Tensor,
    steps: u64,
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
                parameters: values,
                hyper: hyper.part(HYPER_STRIDE * index, HYPER_STRIDE),
                offset,
            }
        });
        Ok(Self {
            segments: segments.collect(),
            settings,
            hyper,
            one: Tensor::from_host(gpu, Shape::vector(1), &[1.0])?,
            steps: 0,
        })
    }

    /// Steps done.
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
        self.segments.iter().enumerate().flat_map(of_segment).collect()
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
                    let hyper = AdamHyper::new(self.steps, rate, BETAS, EPSILON, decay, decoupled);
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
    /// infinite.
    ///
    /// # Errors
    /// Those of the update's operations.
    pub fn step_if_finite(&self, gpu: &Gpu, loss: &Slice) -> Result<()> {
        for segment in &self.segments {
            if let Some(start) = &segment.start {
                let strength = self.settings.l2_sp as f32;
                l2_sp(gpu, &segment.gradients, &segment.parameters, start, strength)?;
            }
        }
        let scale = match self.settings.clip_grad_norm {
            Some(bound) => {
                let gradients: Vec<_> = self.segments.iter().map(|s| &s.gradients).collect();
                grad_norm(gpu, &gradients, Some(bound as f32))?
            }
            None => self.one.clone(),
        };
        for Segment { parameters, gradients, state, hyper, .. } in &self.segments {
            let scale = scale.memory();
            match &state[..] {
                [velocity] => {
                    sgd(gpu, Sgd { parameters, gradients, velocity, hyper, scale, loss })?;
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
