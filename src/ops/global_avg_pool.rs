//! Mean over all pixels: y[n, c] = Σ x[n, h, w, c] / (H·W).
//!
//! d_x[n, h, w, c] = d_y[n, c] / (H·W).

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Kernel, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static FORWARD: Shader = shader!("global_avg_pool_forward");
static BACKWARD: Shader = shader!("global_avg_pool_backward");

pub(super) const OP: Op = Op { name: "global_avg_pool", shaders: &[&FORWARD, &BACKWARD], cases };

/// Parameters of both shaders.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    n: u32,
    /// Pixels of an image.
    pixels: u32,
    c4: u32,
    /// One divided by `pixels`.
    scale: f32,
    /// Backward: whether to add to what `d_x` holds.
    accumulate: u32,
}

impl Params {
    fn new(x: Shape, accumulate: bool) -> Self {
        let pixels = x.h * x.w;
        Self {
            n: x.n as u32,
            pixels: pixels as u32,
            c4: x.c4() as u32,
            scale: (1.0 / pixels as f64) as f32,
            accumulate: accumulate.into(),
        }
    }
}

/// The mean of each channel of each image of `x`, as a matrix `(n, 1, 1, c)` of f32.
///
/// # Errors
/// [`Error::Shape`] if images have no pixels.
pub fn global_avg_pool(tape: &Tape, x: &Var) -> Result<Var> {
    let (gpu, shape) = (tape.gpu(), x.shape());
    if shape.h * shape.w == 0 {
        return Err(Error::shape("global_avg_pool", format!("{shape} has no pixels")));
    }
    let y = Tensor::empty(gpu, Shape::matrix(shape.n, shape.c));
    gpu.run(
        Kernel::new(&FORWARD).half(x.value().dtype().is_half()),
        &Params::new(shape, false),
        &[x.value().memory(), y.memory()],
        gpu.groups(y.shape().vec4s().div_ceil(64)),
    );
    Ok(tape.output("global_avg_pool", y, &[x], || GlobalAvgPoolBackward { x: x.slot() }))
}

struct GlobalAvgPoolBackward {
    x: Slot,
}

impl Backward for GlobalAvgPoolBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let Some(d_x) = grads.target(self.x) else { return Ok(()) };
        let (gpu, shape) = (grads.gpu(), d_x.tensor.shape());
        gpu.run(
            Kernel::new(&BACKWARD).half(d_x.tensor.dtype().is_half()),
            &Params::new(shape, d_x.accumulate),
            &[d_y.memory(), d_x.tensor.memory()],
            gpu.groups(shape.vec4s().div_ceil(256)),
        );
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: Shape, fill: Fill| {
        Case::new(
            format!("{shape} {fill}"),
            vec![Input::variable(shape).filled(fill).activation()],
            |tape, inputs| Ok(vec![global_avg_pool(tape, &inputs[0])?]),
            |inputs| vec![reference(&inputs[0])],
        )
        .gradient(|inputs, d_y| vec![Some(reference_gradient(inputs[0].shape, d_y))])
    };
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        case(Shape::new(3, 7, 7, 32), unit),
        case(Shape::new(1, 1, 1, 1), unit),
        case(Shape::new(23, 5, 3, 13), Fill::Extremes),
        case(Shape::new(1, 14, 9, 6), Fill::Uniform(0.0, 1.0)),
        Case { benchmark: true, ..case(Shape::new(32, 7, 7, 512), unit) },
    ]
}

fn reference(x: &Array) -> Expected {
    let Shape { n, h, w, c } = x.shape;
    let (mut y, mut magnitudes) = (Array::zeros(Shape::matrix(n, c)), vec![0.0; n * c]);
    for (index, value) in x.data.iter().enumerate() {
        let to = index / (h * w * c) * c + index % c;
        y.data[to] += value / (h * w) as f64;
        magnitudes[to] += value.abs() / (h * w) as f64;
    }
    Expected::sums(y, &magnitudes, h * w)
}

/// Two roundings: of 1 / (H·W), and of the product.
fn reference_gradient(x: Shape, d_y: &Array) -> Expected {
    let Shape { h, w, c, .. } = x;
    let d = |index: usize| d_y.data[index / (h * w * c) * c + index % c] / (h * w) as f64;
    Expected::rounded(Array::new(x, (0..x.len()).map(d).collect()), 2.0)
}
