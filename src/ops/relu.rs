//! Rectified linear unit: y = max(x, 0).
//!
//! d_x = d_y where y > 0, else 0 (also at x = 0, as PyTorch).

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::Result;
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Kernel, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};

static FORWARD: Shader = shader!("relu_forward");
static BACKWARD: Shader = shader!("relu_backward");

pub(super) const OP: Op = Op { name: "relu", shaders: &[&FORWARD, &BACKWARD], cases };

/// Parameters of both shaders.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers.
    count: u32,
    /// Backward: whether to add to what `d_x` holds.
    accumulate: u32,
}

/// y = max(x, 0); NaN stays NaN.
///
/// # Errors
/// None today; the signature is that of every operation.
pub fn relu(tape: &Tape, x: &Var) -> Result<Var> {
    let (gpu, count) = (tape.gpu(), x.shape().vec4s());
    let y = Tensor::empty_as(gpu, x.shape(), x.value().dtype());
    gpu.run(
        Kernel::new(&FORWARD).half(y.dtype().is_half()),
        &Params { count: count as u32, accumulate: 0 },
        &[x.value().memory(), y.memory()],
        gpu.groups(count.div_ceil(256)),
    );
    let (slot, kept) = (x.slot(), y.clone());
    Ok(tape.output("relu", y, &[x], || ReluBackward { x: slot, y: kept }))
}

struct ReluBackward {
    x: Slot,
    y: Tensor,
}

impl Backward for ReluBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let Some(d_x) = grads.target(self.x) else { return Ok(()) };
        let (gpu, count) = (grads.gpu(), d_y.shape().vec4s());
        gpu.run(
            Kernel::new(&BACKWARD).half(d_y.dtype().is_half()),
            &Params { count: count as u32, accumulate: d_x.accumulate.into() },
            &[self.y.memory(), d_y.memory(), d_x.tensor.memory()],
            gpu.groups(count.div_ceil(256)),
        );
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: Shape, fill: Fill| {
        Case::new(
            format!("{shape} {fill}"),
            vec![Input::variable(shape).filled(fill).activation()],
            |tape, inputs| Ok(vec![relu(tape, &inputs[0])?]),
            |inputs| vec![Expected::exact(inputs[0].map(|x| x.max(0.0)))],
        )
        .gradient(|inputs, d_y| vec![Some(Expected::exact(reference_gradient(&inputs[0], d_y)))])
    };
    vec![
        case(Shape::new(2, 5, 3, 8), Fill::Uniform(-1.0, 1.0)),
        case(Shape::new(1, 1, 1, 1), Fill::Uniform(-1.0, 1.0)),
        case(Shape::new(3, 7, 7, 13), Fill::Extremes),
        Case { benchmark: true, ..case(Shape::new(8, 56, 56, 64), Fill::Uniform(-1.0, 1.0)) },
        Case {
            benchmark: true,
            for_gpus: true,
            ..case(Shape::new(64, 56, 56, 64), Fill::Uniform(-1.0, 1.0))
        },
    ]
}

fn reference_gradient(x: &Array, d_y: &Array) -> Array {
    let pass = |(&x, &d): (&f64, &f64)| if x > 0.0 { d } else { 0.0 };
    Array::new(x.shape, x.data.iter().zip(&d_y.data).map(pass).collect())
}
