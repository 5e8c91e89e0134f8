//! Gradient of the penalty ½·strength·‖θ − θ₀‖² that keeps parameters near where they started
//! (L2-SP): gradient += scale·strength·(θ − θ₀), where the gradient is that of scale·loss.

use super::case::{Array, Case, EPSILON, Expected, Fill, Input, given};
use super::{Op, arena};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};

static L2_SP: Shader = shader!("l2_sp");

pub(super) const OP: Op = Op { name: "l2_sp", shaders: &[&L2_SP], cases };

/// Parameters of `shaders/l2_sp.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers.
    count: u32,
    strength: f32,
}

/// Adds the penalty's gradient to `gradients`, which are those of `scale` (one f32) times the loss if
/// it is given. The arenas are equally long; `gradients` lies in another buffer than the others.
///
/// # Errors
/// [`crate::Error::Shape`] if the arenas are not equally long multiples of 16 bytes.
pub fn l2_sp(
    gpu: &Gpu,
    gradients: &Slice,
    parameters: &Slice,
    start: &Slice,
    strength: f32,
    scale: Option<&Slice>,
) -> Result<()> {
    let kernel = match scale {
        Some(_) => Kernel::new(&L2_SP).with("SCALED", 1),
        None => Kernel::new(&L2_SP),
    };
    for [gradients, parameters, start] in
        arena::parts(gpu, "l2_sp", [gradients, parameters, start])?
    {
        let count = gradients.bytes / 16;
        let slices: Vec<_> = [&gradients, &parameters, &start].into_iter().chain(scale).collect();
        gpu.run(
            kernel,
            &Params { count: count as u32, strength },
            &slices,
            gpu.groups(count.div_ceil(256) as usize),
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let case = |length: usize, strength: f32, scale: Option<f32>| {
        let input = Input::constant(Shape::vector(length), Fill::Uniform(-1.0, 1.0));
        Case::new(
            format!("{length} parameters strength {strength}{}", given("scale", scale)),
            vec![input; 3],
            move |tape, inputs| {
                let gradients = inputs[0].value().duplicate(tape.gpu());
                let [parameters, start] = [1, 2].map(|at| inputs[at].value().memory());
                let one = |number| Tensor::from_host(tape.gpu(), Shape::vector(1), &[number]);
                let scale = scale.map(one).transpose()?;
                let scale = scale.as_ref().map(Tensor::memory);
                l2_sp(tape.gpu(), gradients.memory(), parameters, start, strength, scale)?;
                Ok(vec![tape.constant(gradients)])
            },
            move |inputs| vec![reference(inputs, strength * scale.unwrap_or(1.0))],
        )
    };
    vec![
        // More than one workgroup does.
        case(1100, 0.01, None),
        case(5, 1.0, None),
        case(77, 0.01, Some(1024.0)),
        Case { benchmark: true, ..case(11_689_512, 0.01, None) },
    ]
}

/// `inputs` are the gradient, θ and θ₀. A difference, a product and a sum are rounded.
fn reference(inputs: &[Array], strength: f32) -> Expected {
    let (mut values, mut allowance) = (inputs[0].clone(), Vec::new());
    for (index, value) in values.data.iter_mut().enumerate() {
        let pull = f64::from(strength) * (inputs[1].data[index] - inputs[2].data[index]);
        *value += pull;
        allowance.push(EPSILON * (2.0 * pull.abs() + value.abs()) * (1.0 + 4.0 * EPSILON));
    }
    Expected::within(values, allowance)
}
