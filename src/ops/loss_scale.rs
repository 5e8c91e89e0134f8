//! Dynamic loss scaling, as `torch.amp.GradScaler` with its defaults, decided on the device.
//!
//! Gradients in f16 underflow; so the loss is multiplied by a scale before it is differentiated, and
//! updates divide by it. If a gradient is not finite the step is skipped and the scale halved; after
//! 2000 steps in a row that were done it is doubled.
//!
//! norm = √Σ g² / scale, factor = min(1, max_norm / (norm + 1e-6)) / scale; cₜ₊₁ = cₜ + (1 − β)·(1 − cₜ),
//! which is 1 − βᵗ of the steps that were done.

use super::case::{Array, Case, EPSILON, Expected, Fill, Input, given};
use super::{Op, grad_norm};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};

static LOSS_SCALE: Shader = shader!("loss_scale");

pub(super) const OP: Op = Op { name: "loss_scale", shaders: &[&LOSS_SCALE], cases };

/// PyTorch's defaults.
const INITIAL: f32 = 65_536.0;
const GROWTH: f32 = 2.0;
const BACKOFF: f32 = 0.5;
const INTERVAL: f32 = 2000.0;

/// The scale and what it depends on, eight f32 on the device: the scale; the steps done since it last
/// changed; 1 − β1ᵗ and 1 − β2ᵗ after t steps done; the scale that the latest gradients have; the
/// steps skipped; two that are not used.
pub struct LossScale {
    memory: Slice,
}

/// What is to become of a step.
pub struct Judged {
    /// Four f32: what gradients are to be multiplied by, their norm, and 1 − βᵗ of both moments; what
    /// [`super::sgd`] and [`super::adam`] take for their scale.
    pub factor: Tensor,
    /// The loss, or an infinity if the step is to be skipped; what they take for the loss.
    pub verdict: Tensor,
}

/// Parameters of `shaders/loss_scale.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Number of partial sums.
    partials: u32,
    /// Whether there is a bound on the norm.
    clip: u32,
    max_norm: f32,
    growth: f32,
    backoff: f32,
    interval: f32,
    one_minus_betas: [f32; 2],
    /// Which WGSL cannot spell.
    infinity: f32,
}

impl LossScale {
    /// PyTorch's initial scale, 65,536.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Self::of(gpu, [INITIAL, 0.0, 0.0, 0.0, INITIAL, 0.0, 0.0, 0.0])
    }

    fn of(gpu: &Gpu, state: [f32; 8]) -> Result<Self> {
        let memory = gpu.lease(size_of_val(&state) as u64);
        gpu.upload(&memory, bytemuck::cast_slice(&state))?;
        Ok(Self { memory })
    }

    /// All of it, to be kept and put back.
    pub fn memory(&self) -> &Slice {
        &self.memory
    }

    /// The gradient by the loss to begin with: the scale.
    pub fn seed(&self) -> Tensor {
        Tensor::view(self.memory.part(0, 16), Shape::vector(1))
    }

    /// Judges a step by its gradients, those of scale·loss, and its loss (one f32), and moves the
    /// scale on. `betas` are those of the optimizer's moments; `max_norm` bounds the norm of the
    /// gradients by the loss.
    ///
    /// # Errors
    /// Those of [`super::grad_norm`].
    pub fn judge(
        &self,
        gpu: &Gpu,
        gradients: &[&Slice],
        loss: &Slice,
        betas: [f64; 2],
        max_norm: Option<f32>,
    ) -> Result<Judged> {
        let (sums, partials) = grad_norm::partials(gpu, gradients)?;
        let judged = Judged {
            factor: Tensor::empty(gpu, Shape::vector(4)),
            verdict: Tensor::empty(gpu, Shape::vector(1)),
        };
        let params = Params {
            partials,
            clip: max_norm.is_some().into(),
            max_norm: max_norm.unwrap_or_default(),
            growth: GROWTH,
            backoff: BACKOFF,
            interval: INTERVAL,
            one_minus_betas: betas.map(|beta| (1.0 - beta) as f32),
            infinity: f32::INFINITY,
        };
        let Judged { factor, verdict } = &judged;
        let slices = [&sums, loss, &self.memory, factor.memory(), verdict.memory()];
        gpu.run(Kernel::new(&LOSS_SCALE), &params, &slices, [1, 1, 1]);
        Ok(judged)
    }
}

const BETAS: [f64; 2] = [0.9, 0.999];
/// What the scale may grow to: the shader's `LARGEST`.
const LARGEST: f32 = f32::from_bits((126 + 127) << 23);

fn cases() -> Vec<Case> {
    // `poison` takes the place of a gradient.
    let case = |state: [f32; 4], loss: f32, max_norm: Option<f32>, poison: Option<f32>| {
        let lengths = [1000, 77];
        let input = |length| Input::constant(Shape::vector(length), Fill::Uniform(-1.0, 1.0));
        let state = [state[0], state[1], state[2], state[3], state[0], 3.0, 0.0, 0.0];
        Case::new(
            format!(
                "state {state:?} loss {loss}{}{}",
                given("max_norm", max_norm),
                given("with a gradient of", poison)
            ),
            lengths.map(input).to_vec(),
            move |tape, inputs| {
                let gpu = tape.gpu();
                let gradients: Vec<_> =
                    inputs.iter().map(|input| input.value().duplicate(gpu)).collect();
                if let Some(poison) = poison {
                    let place = gradients[1].memory().part(256, 4);
                    gpu.upload(&place, bytemuck::bytes_of(&poison))?;
                }
                let slices: Vec<_> = gradients.iter().map(Tensor::memory).collect();
                let scale = LossScale::of(gpu, state)?;
                let loss = Tensor::from_host(gpu, Shape::vector(1), &[loss])?;
                let judged = scale.judge(gpu, &slices, loss.memory(), BETAS, max_norm)?;
                let after = Tensor::view(scale.memory.clone(), Shape::vector(8));
                let outputs = [judged.factor, judged.verdict, after];
                Ok(outputs.map(|output| tape.constant(output)).to_vec())
            },
            move |inputs| reference(inputs, state, loss, max_norm, poison),
        )
    };
    vec![
        case([65_536.0, 7.0, 0.0, 0.0], 0.5, None, None),
        case([1024.0, 1999.0, 0.1, 0.001], 0.5, Some(0.001), None),
        case([256.0, 0.0, 0.4, 0.3], 0.5, Some(1e3), None),
        // Doubled it would be too large to divide by.
        case([LARGEST, 1999.0, 0.1, 0.001], 0.5, None, None),
        case([65_536.0, 1999.0, 0.1, 0.001], 0.5, Some(1.0), Some(f32::INFINITY)),
        case([8.0, 3.0, 0.0, 0.0], 0.5, None, Some(f32::NAN)),
        case([8.0, 3.0, 0.1, 0.001], f32::NAN, None, None),
    ]
}

/// Factor, verdict, and the state after the step.
fn reference(
    inputs: &[Array],
    state: [f32; 8],
    loss: f32,
    max_norm: Option<f32>,
    poison: Option<f32>,
) -> Vec<Expected> {
    let [scale, done, bias1, bias2, _, skipped, ..] = state.map(f64::from);
    let vector = |values: Vec<f64>| Array::new(Shape::vector(values.len()), values);
    if poison.is_some() || !loss.is_finite() {
        let after = vec![scale * 0.5, 0.0, bias1, bias2, scale, skipped + 1.0, 0.0, 0.0];
        return [vec![0.0, f64::INFINITY, bias1, bias2], vec![f64::INFINITY], after]
            .map(|values| Expected::exact(vector(values)))
            .to_vec();
    }
    let squares: f64 = inputs.iter().flat_map(|input| &input.data).map(|g| g * g).sum();
    let terms = inputs.iter().map(|input| input.data.len()).sum::<usize>() as f64;
    let norm = squares.sqrt() / scale;
    // As in `grad_norm`, and a division more.
    let roundings = (4.0 + 2.0 * terms.sqrt()) / 2.0 + 9.0 + 5.0;
    let clipped = max_norm.map_or(1.0, |most| (f64::from(most) / (norm + 1e-6)).min(1.0));
    let clip_roundings = if clipped < 1.0 { roundings + 6.0 } else { 0.0 };
    let moved = |bias: f64, beta: f64| bias + (1.0 - beta) * (1.0 - bias);
    let biases = [moved(bias1, BETAS[0]), moved(bias2, BETAS[1])];
    let bias_errors = biases.map(|bias| 4.0 * EPSILON * bias);
    let grows = done + 1.0 >= 2000.0;
    let grown = if scale * 2.0 > f64::from(LARGEST) { scale } else { scale * 2.0 };
    let after = vec![
        if grows { grown } else { scale },
        if grows { 0.0 } else { done + 1.0 },
        biases[0],
        biases[1],
        scale,
        skipped,
        0.0,
        0.0,
    ];
    let factor = clipped / scale;
    // Below the smallest normal number devices may flush to zero.
    let least = f64::from(f32::MIN_POSITIVE);
    vec![
        Expected::within(
            vector(vec![factor, norm, biases[0], biases[1]]),
            vec![
                EPSILON * factor * (clip_roundings + 5.0) + least,
                EPSILON * norm * roundings + least,
                bias_errors[0],
                bias_errors[1],
            ],
        ),
        Expected::exact(vector(vec![f64::from(loss)])),
        Expected::within(
            vector(after),
            vec![0.0, 0.0, bias_errors[0], bias_errors[1], 0.0, 0.0, 0.0, 0.0],
        ),
    ]
}
