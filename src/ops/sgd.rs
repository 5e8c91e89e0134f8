//! Stochastic gradient descent over an arena, in place, as `torch.optim.SGD` with dampening 0:
//!
//! g = scale·gradient + weight_decay·θ
//! v = momentum·v + g, and v = g at the first step
//! θ −= learning_rate·v, or learning_rate·(g + momentum·v) with Nesterov's momentum;
//!
//! nothing changes where the loss is not finite.

use std::fmt;

use super::case::{Array, Case, EPSILON, Expected, Fill, Input};
use super::{Op, arena, cast};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Dtype, Shape, Tensor};

static SGD: Shader = shader!("sgd");

pub(super) const OP: Op = Op { name: "sgd", shaders: &[&SGD], cases };

/// Numbers of a step, as the kernel reads them from memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SgdHyper {
    /// The learning rate.
    pub learning_rate: f32,
    /// The momentum; 0 for none.
    pub momentum: f32,
    /// The weight decay, added to the gradient; 0 for none.
    pub weight_decay: f32,
    /// 1 at the first step, when the velocity is undefined, else 0.
    pub first: f32,
    /// 1 for Nesterov's momentum, else 0.
    pub nesterov: f32,
    /// Zeros.
    pub unused: [f32; 3],
}

impl fmt::Display for SgdHyper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { learning_rate, momentum, weight_decay, .. } = self;
        write!(f, "lr {learning_rate} momentum {momentum} weight_decay {weight_decay}")?;
        f.write_str(if self.nesterov == 1.0 { " nesterov" } else { "" })?;
        f.write_str(if self.first == 1.0 { " first step" } else { "" })
    }
}

/// What [`sgd`] works on. The slices must lie in different buffers; the arenas are equally long.
#[derive(Clone, Copy)]
pub struct Sgd<'a> {
    /// The parameters θ, overwritten.
    pub parameters: &'a Slice,
    /// Their gradients.
    pub gradients: &'a Slice,
    /// The momentum buffer v, overwritten; undefined before the first step.
    pub velocity: &'a Slice,
    /// An [`SgdHyper`].
    pub hyper: &'a Slice,
    /// What gradients are multiplied by: one f32, such as [`super::grad_norm`]'s first.
    pub scale: &'a Slice,
    /// The loss that the gradients are of: one f32. Where it is not finite the step changes nothing, so
    /// that what went wrong can be looked for in the network that it went wrong in.
    pub loss: &'a Slice,
    /// The copy of the parameters in f16, overwritten, if they have one.
    pub shadow: Option<&'a Slice>,
}

/// Parameters of `shaders/sgd.wgsl`.
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
pub fn sgd(gpu: &Gpu, step: Sgd) -> Result<()> {
    let arenas = [step.parameters, step.gradients, step.velocity];
    for (part, shadow) in arena::parts_with_shadow(gpu, "sgd", arenas, step.shadow)? {
        let (count, words) = arena::threads(gpu, &part[0]);
        let rest = [step.hyper, step.scale, step.loss].into_iter().chain(&shadow);
        gpu.run(
            Kernel::new(&SGD).half(shadow.is_some()).with("WORDS", words.into()),
            &Params { count: count as u32 },
            &part.iter().chain(rest).collect::<Vec<_>>(),
            gpu.groups(count.div_ceil(256)),
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let case_of = |length: usize, hyper: SgdHyper, [scale, loss]: [f32; 2], half: bool| {
        let input = Input::constant(Shape::vector(length), Fill::Uniform(-1.0, 1.0));
        let case = Case::new(
            format!("{length} parameters {hyper} scale {scale} loss {loss}"),
            vec![input; 3],
            move |tape, inputs| {
                let gpu = tape.gpu();
                let [parameters, velocity] = [0, 2].map(|at| inputs[at].value().duplicate(gpu));
                let one = |number: f32| Tensor::from_host(gpu, Shape::vector(1), &[number]);
                let (scale, loss) = (one(scale)?, one(loss)?);
                let shadow = half.then(|| Tensor::empty_as(gpu, parameters.shape(), Dtype::F16));
                if let Some(shadow) = &shadow {
                    cast(gpu, parameters.memory(), shadow.memory())?;
                }
                let memory = gpu.lease(size_of::<SgdHyper>() as u64);
                gpu.upload(&memory, bytemuck::bytes_of(&hyper))?;
                let step = Sgd {
                    parameters: parameters.memory(),
                    gradients: inputs[1].value().memory(),
                    velocity: velocity.memory(),
                    hyper: &memory,
                    scale: scale.memory(),
                    loss: loss.memory(),
                    shadow: shadow.as_ref().map(Tensor::memory),
                };
                sgd(gpu, step)?;
                let outputs = [parameters, velocity].into_iter().chain(shadow);
                Ok(outputs.map(|output| tape.constant(output)).collect())
            },
            move |inputs| {
                let mut expected = reference(inputs, hyper, scale, loss);
                expected.extend(half.then(|| expected[0].clone()));
                expected
            },
        );
        if half { case.in_half() } else { case }
    };
    let case = |length, hyper, scalars| case_of(length, hyper, scalars, false);
    let hyper = SgdHyper {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 1e-4,
        first: 0.0,
        nesterov: 0.0,
        unused: [0.0; 3],
    };
    vec![
        // More than one workgroup does, by eights and by fours.
        case(2504, hyper, [1.0, 0.5]),
        case(17, SgdHyper { first: 1.0, ..hyper }, [0.25, 0.5]),
        case(1100, SgdHyper { nesterov: 1.0, weight_decay: 0.5, ..hyper }, [1.0, 0.5]),
        case(8, SgdHyper { nesterov: 1.0, first: 1.0, ..hyper }, [1.0, 0.5]),
        case(64, SgdHyper { momentum: 0.0, weight_decay: 0.0, first: 1.0, ..hyper }, [3.0, 0.5]),
        case(77, hyper, [1.0, f32::NAN]),
        case(8, SgdHyper { first: 1.0, ..hyper }, [1.0, f32::INFINITY]),
        case_of(2504, hyper, [0.5, 0.5], true),
        case_of(77, hyper, [1.0, f32::INFINITY], true),
        Case { benchmark: true, ..case(11_689_512, hyper, [1.0, 0.5]) },
    ]
}

/// The parameters and the velocity after a step; `inputs` are θ, gradient and v.
fn reference(inputs: &[Array], hyper: SgdHyper, scale: f32, loss: f32) -> Vec<Expected> {
    if !loss.is_finite() {
        return [&inputs[0], &inputs[2]].map(|array| Expected::exact(array.clone())).into();
    }
    let [learning_rate, momentum, decay, scale] =
        [hyper.learning_rate, hyper.momentum, hyper.weight_decay, scale].map(f64::from);
    let kept = if hyper.first == 1.0 { 0.0 } else { momentum };
    let (mut parameters, mut velocity) = (inputs[0].clone(), inputs[2].clone());
    let (mut parameter_errors, mut velocity_errors) = (Vec::new(), Vec::new());
    for (index, gradient) in inputs[1].data.iter().enumerate() {
        let (parameter, v) = (&mut parameters.data[index], &mut velocity.data[index]);
        let g = scale * gradient + decay * *parameter;
        // Two products and a sum for g; a product and a sum more for v.
        let g_size = (scale * gradient).abs() + (decay * *parameter).abs();
        let v_error = EPSILON * (3.0 * g_size + 2.0 * (kept * *v).abs() + g_size);
        *v = kept * *v + g;
        let (step, step_error) = match hyper.nesterov == 1.0 {
            true => {
                let size = g_size + (momentum * *v).abs();
                (g + momentum * *v, EPSILON * (3.0 * g_size + 2.0 * size) + momentum * v_error)
            }
            false => (*v, v_error),
        };
        *parameter -= learning_rate * step;
        velocity_errors.push(v_error);
        parameter_errors
            .push(learning_rate * (step_error + EPSILON * step.abs()) + EPSILON * parameter.abs());
    }
    vec![
        Expected::within(parameters, parameter_errors),
        Expected::within(velocity, velocity_errors),
    ]
}
