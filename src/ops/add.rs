//! Residual add: y = a + b.
//!
//! d_a = d_b = d_y.

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Kernel, Shader};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static ADD: Shader = shader!("add");

pub(super) const OP: Op = Op { name: "add", shaders: &[&ADD], cases };

/// Parameters of `shaders/add.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers.
    count: u32,
}

/// y = a + b of equal shapes and types.
///
/// # Errors
/// [`Error::Shape`] if the shapes or types differ.
pub fn add(tape: &Tape, a: &Var, b: &Var) -> Result<Var> {
    let y = a.value().duplicate(tape.gpu());
    y.add_assign(tape.gpu(), b.value())?;
    let (a_slot, b_slot) = (a.slot(), b.slot());
    Ok(tape.output("add", y, &[a, b], || AddBackward { a: a_slot, b: b_slot }))
}

struct AddBackward {
    a: Slot,
    b: Slot,
}

impl Backward for AddBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        grads.give(self.a, d_y.clone())?;
        grads.give(self.b, d_y)
    }
}

impl Tensor {
    /// Adds `other` to this tensor in place.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes or types differ.
    pub fn add_assign(&self, gpu: &Gpu, other: &Tensor) -> Result<()> {
        let shape = self.shape();
        if shape != other.shape() {
            return Err(Error::shape("add", format!("{shape} and {} differ", other.shape())));
        }
        if self.dtype() != other.dtype() {
            let what = format!("{shape} in {} and in {}", self.dtype(), other.dtype());
            return Err(Error::shape("add", what));
        }
        let count = shape.vec4s();
        gpu.run(
            Kernel::new(&ADD).half(self.dtype().is_half()),
            &Params { count: count as u32 },
            &[self.memory(), other.memory()],
            gpu.groups(count.div_ceil(256)),
        );
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: Shape, fill: Fill| {
        let input = Input::variable(shape).filled(fill).activation();
        Case::new(
            format!("{shape} {fill}"),
            vec![input, input],
            |tape, inputs| Ok(vec![add(tape, &inputs[0], &inputs[1])?]),
            |inputs| vec![Expected::rounded(sum(&inputs[0], &inputs[1]), 1.0)],
        )
        .gradient(|_, d_y| vec![Some(Expected::exact(d_y.clone())); 2])
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

fn sum(a: &Array, b: &Array) -> Array {
    Array::new(a.shape, a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect())
}
