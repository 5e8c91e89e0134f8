//! Adam and AdamW over an arena, in place, as `torch.optim.Adam` and `torch.optim.AdamW`:
//!
//! g = scale·gradient + coupled_decay·θ
//! m = β1·m + (1 − β1)·g
//! v = β2·v + (1 − β2)·g²
//! θ = shrink·θ − step_size · m / (√v / bias2_sqrt + ε)
//!
//! with step_size = lr / (1 − β1ᵗ) and bias2_sqrt = √(1 − β2ᵗ) at step t = 1, 2, …. Weight decay is
//! `coupled_decay` in Adam and shrink = 1 − lr·decay in AdamW.

use super::case::{Array, Case, EPSILON, Expected, Fill, Input, given};
use super::{Op, arena};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Dtype, Shape, Tensor};

static ADAM: Shader = shader!("adam");

pub(super) const OP: Op = Op { name: "adam", shaders: &[&ADAM], cases };

/// Numbers of a step, as the kernel reads them from memory. Computed in f64, because 1 − β2 of an
/// f32 has lost its last digits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdamHyper {
    /// lr / (1 − β1ᵗ).
    pub step_size: f32,
    /// What parameters are multiplied by first: 1 − lr·decay, or 1 if decay is coupled.
    pub shrink: f32,
    /// The weight decay added to the gradient, or 0 if it is decoupled.
    pub coupled_decay: f32,
    /// 1 − β1.
    pub one_minus_beta1: f32,
    /// β2.
    pub beta2: f32,
    /// 1 − β2.
    pub one_minus_beta2: f32,
    /// √(1 − β2ᵗ).
    pub bias2_sqrt: f32,
    /// ε, positive.
    pub epsilon: f32,
}

impl AdamHyper {
    /// The numbers of step `step`, counted from 1. `decoupled` chooses AdamW.
    pub fn new(
        step: u64,
        learning_rate: f64,
        betas: [f64; 2],
        epsilon: f64,
        weight_decay: f64,
        decoupled: bool,
    ) -> Self {
        let bias = betas.map(|beta| 1.0 - beta.powf(step as f64));
        let (shrink, coupled_decay) = match decoupled {
            true => (1.0 - learning_rate * weight_decay, 0.0),
            false => (1.0, weight_decay),
        };
        Self {
            step_size: (learning_rate / bias[0]) as f32,
            shrink: shrink as f32,
            coupled_decay: coupled_decay as f32,
            one_minus_beta1: (1.0 - betas[0]) as f32,
            beta2: betas[1] as f32,
            one_minus_beta2: (1.0 - betas[1]) as f32,
            bias2_sqrt: bias[1].sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }
}

/// What [`adam`] works on. The slices must lie in different buffers; the arenas are equally long.
#[derive(Clone, Copy)]
pub struct Adam<'a> {
    /// The parameters θ, overwritten.
    pub parameters: &'a Slice,
    /// Their gradients.
    pub gradients: &'a Slice,
    /// The mean gradient m, overwritten; zeros before the first step.
    pub first_moment: &'a Slice,
    /// The mean squared gradient v, overwritten; zeros before the first step.
    pub second_moment: &'a Slice,
    /// An [`AdamHyper`].
    pub hyper: &'a Slice,
    /// What gradients are multiplied by: one f32, such as [`super::grad_norm`]'s first.
    pub scale: &'a Slice,
    /// The loss that the gradients are of: one f32. Where it is not finite the step changes nothing, so
    /// that what went wrong can be looked for in the network that it went wrong in.
    pub loss: &'a Slice,
    /// The copy of the parameters in f16, overwritten, if they have one. 1 − β1ᵗ and 1 − β2ᵗ are the
    /// third and fourth number of `scale` then, as [`super::LossScale`] leaves them, and
    /// [`AdamHyper::step_size`] and [`AdamHyper::bias2_sqrt`] are without them.
    pub shadow: Option<&'a Slice>,
}

/// Parameters of `shaders/adam.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers, or of eight.
    count: u32,
}

/// Records one step.
///
/// # Errors
/// [`crate::Error::Shape`] if the arenas are not equally long multiples of 16 bytes.
pub fn adam(gpu: &Gpu, step: Adam) -> Result<()> {
    let arenas = [step.parameters, step.gradients, step.first_moment, step.second_moment];
    for (part, shadow) in arena::parts_with_shadow(gpu, "adam", arenas, step.shadow)? {
        let (count, words) = arena::threads(gpu, &part[0]);
        let rest = [step.hyper, step.scale, step.loss].into_iter().chain(&shadow);
        gpu.run(
            Kernel::new(&ADAM).half(shadow.is_some()).with("WORDS", words.into()),
            &Params { count: count as u32 },
            &part.iter().chain(rest).collect::<Vec<_>>(),
            gpu.groups(count.div_ceil(256)),
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    // `biases` are 1 − βᵗ that the device knows, in mixed precision.
    let case_of = |length: usize,
                   moments: f64,
                   (algorithm, hyper): (String, AdamHyper),
                   [scale, loss]: [f32; 2],
                   biases: Option<[f32; 2]>| {
        let input =
            |low: f64, high: f64| Input::constant(Shape::vector(length), Fill::Uniform(low, high));
        let case = Case::new(
            format!(
                "{length} parameters {algorithm} moments {moments} scale {scale} loss {loss}{}",
                given("biases", biases.map(|[bias1, bias2]| format!("{bias1} {bias2}")))
            ),
            vec![input(-1.0, 1.0), input(-1.0, 1.0), input(-moments, moments), input(0.0, moments)],
            move |tape, inputs| {
                let gpu = tape.gpu();
                let [parameters, first, second] =
                    [0, 2, 3].map(|at| inputs[at].value().duplicate(gpu));
                let [bias1, bias2] = biases.unwrap_or_default();
                let scale = Tensor::from_host(gpu, Shape::vector(4), &[scale, 0.0, bias1, bias2])?;
                let loss = Tensor::from_host(gpu, Shape::vector(1), &[loss])?;
                let copy = |_| Tensor::empty_as(gpu, parameters.shape(), Dtype::F16);
                let shadow = biases.map(copy);
                let memory = gpu.lease(size_of::<AdamHyper>() as u64);
                gpu.upload(&memory, bytemuck::bytes_of(&hyper))?;
                let step = Adam {
                    parameters: parameters.memory(),
                    gradients: inputs[1].value().memory(),
                    first_moment: first.memory(),
                    second_moment: second.memory(),
                    hyper: &memory,
                    scale: scale.memory(),
                    loss: loss.memory(),
                    shadow: shadow.as_ref().map(Tensor::memory),
                };
                adam(gpu, step)?;
                let outputs = [parameters, first, second].into_iter().chain(shadow);
                Ok(outputs.map(|output| tape.constant(output)).collect())
            },
            move |inputs| {
                let [bias1, bias2] = biases.unwrap_or([1.0; 2]).map(f64::from);
                let corrected = [
                    f64::from(hyper.step_size) / bias1,
                    f64::from(hyper.bias2_sqrt) * bias2.sqrt(),
                ];
                let mut expected =
                    reference(inputs, hyper, corrected, biases.is_some(), scale, loss);
                expected.extend(biases.map(|_| expected[0].clone()));
                expected
            },
        );
        if biases.is_some() { case.in_half() } else { case }
    };
    let case = |length, moments, hyper, scalars| case_of(length, moments, hyper, scalars, None);
    let hyper = |step: u64, weight_decay: f64, decoupled: bool| {
        let algorithm = if decoupled { "adamw" } else { "adam" };
        let step_name = if step == u64::MAX { "any".into() } else { step.to_string() };
        let hyper = AdamHyper::new(step, 1e-3, [0.9, 0.999], 1e-8, weight_decay, decoupled);
        (format!("{algorithm} step {step_name} weight_decay {weight_decay}"), hyper)
    };
    vec![
        // More than one workgroup does, by eights and by fours.
        case(2504, 0.5, hyper(10, 0.0, false), [1.0, 0.5]),
        case(17, 0.0, hyper(1, 0.01, false), [1.0, 0.5]),
        case(1100, 0.0, hyper(1, 0.01, true), [0.25, 0.5]),
        case(64, 1e-3, hyper(100_000, 0.5, true), [1.0, 0.5]),
        case(9, 1e-6, hyper(3, 0.5, false), [1e-4, 0.5]),
        case(77, 0.5, hyper(3, 0.01, true), [1.0, f32::NEG_INFINITY]),
        case_of(77, 0.5, hyper(u64::MAX, 0.01, true), [0.5, 0.5], Some([0.1, 0.001])),
        case_of(2504, 0.5, hyper(u64::MAX, 0.01, false), [1.0, 0.5], Some([0.9, 0.05])),
        Case { benchmark: true, ..case(11_689_512, 0.5, hyper(10, 0.01, true), [1.0, 0.5]) },
    ]
}

/// Parameters and moments after a step; `inputs` are θ, gradient, m and v.
fn reference(
    inputs: &[Array],
    hyper: AdamHyper,
    [step_size, bias2_sqrt]: [f64; 2],
    corrected: bool,
    scale: f32,
    loss: f32,
) -> Vec<Expected> {
    if !loss.is_finite() {
        return [&inputs[0], &inputs[2], &inputs[3]]
            .map(|array| Expected::exact(array.clone()))
            .into();
    }
    let number = f64::from;
    // A division, and a root and a product, where the device corrects the moments' bias.
    let device = if corrected { 10.0 } else { 0.0 };
    let shape = inputs[0].shape;
    let mut results: [Vec<f64>; 3] = Default::default();
    let mut errors: [Vec<f64>; 3] = Default::default();
    for index in 0..shape.len() {
        let [theta, gradient, m_old, v_old] = [0, 1, 2, 3].map(|input| inputs[input].data[index]);
        let (scaled, decay) = (number(scale) * gradient, number(hyper.coupled_decay) * theta);
        let g = scaled + decay;
        // Two products and a sum.
        let g_error = EPSILON * 2.0 * (scaled.abs() + decay.abs());

        let keep = number(hyper.one_minus_beta1);
        let m = m_old + keep * (g - m_old);
        // A difference, a product and a sum.
        let m_error = keep * g_error + EPSILON * (2.0 * keep * (g - m_old).abs() + m.abs());

        let (kept, added) = (number(hyper.beta2) * v_old, number(hyper.one_minus_beta2) * g * g);
        let v = kept + added;
        let v_error = 2.0 * number(hyper.one_minus_beta2) * g.abs() * g_error
            + EPSILON * (kept + 2.0 * added + v);

        let root = v.sqrt() / bias2_sqrt;
        let denominator = root + number(hyper.epsilon);
        // The root halves v's relative error. WGSL grants it 4.5 and each division 2.5 units in
        // the last place, two roundings each.
        let root_error =
            root * (0.5 * v_error / v.max(f64::MIN_POSITIVE) + (14.0 + device) * EPSILON);
        let ratio = m / denominator;
        let ratio_error =
            m_error / denominator + ratio.abs() * ((root_error / denominator) + 6.0 * EPSILON);
        let shrunk = number(hyper.shrink) * theta;
        let theta = shrunk - step_size * ratio;
        let theta_error = step_size * (ratio_error + EPSILON * (1.0 + device) * ratio.abs())
            + EPSILON * (shrunk.abs() + theta.abs());

        for (which, (value, error)) in
            [(theta, theta_error), (m, m_error), (v, v_error)].into_iter().enumerate()
        {
            results[which].push(value);
            errors[which].push(error + f64::from(f32::MIN_POSITIVE));
        }
    }
    let expected = |(values, allowance)| Expected::within(Array::new(shape, values), allowance);
    results.into_iter().zip(errors).map(expected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_corrections_are_those_of_the_step() {
        let hyper = AdamHyper::new(1, 1e-3, [0.9, 0.999], 1e-8, 0.1, true);
        assert_eq!(hyper.step_size, 1e-2);
        assert_eq!(hyper.one_minus_beta2, 1e-3);
        assert_eq!(hyper.bias2_sqrt, 1e-3f64.sqrt() as f32);
        assert_eq!((hyper.shrink, hyper.coupled_decay), (0.9999, 0.0));
        let late = AdamHyper::new(1_000_000, 1e-3, [0.9, 0.999], 1e-8, 0.1, false);
        assert_eq!((late.step_size, late.bias2_sqrt), (1e-3, 1.0));
        assert_eq!((late.shrink, late.coupled_decay), (1.0, 0.1));
    }
}
