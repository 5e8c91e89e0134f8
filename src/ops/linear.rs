//! Linear layer: y = x·W + b, a 1×1 convolution of images of one pixel.

use super::Op;
use super::case::{Case, Input};
use super::conv2d::{
    Conv2d, PASSES, conv2d, reference, reference_bias, reference_data, reference_weight,
};
use crate::Result;
use crate::autograd::{Tape, Var};
use crate::tensor::Shape;

pub(super) const OP: Op = Op { name: "linear", shaders: &[], cases };

const POINTWISE: Conv2d = Conv2d { stride: [1, 1], padding: [0, 0] };

/// y = x·weight + bias of a matrix x (n × c_in), with `weight` `(1, 1, c_in, c_out)`.
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes do not fit together.
pub fn linear(tape: &Tape, x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    conv2d(tape, x, weight, bias, POINTWISE)
}

fn cases() -> Vec<Case> {
    let checked = [(16, 512, 10), (3, 32, 1000), (1, 5, 2)];
    let checked = checked.map(|(n, c_in, c_out)| case(n, c_in, c_out)).into_iter();
    checked.chain([Case { benchmark: true, ..case(64, 512, 1000) }]).collect()
}

fn case(n: usize, c_in: usize, c_out: usize) -> Case {
    let weight = Shape::new(1, 1, c_in.next_multiple_of(4), c_out);
    let inputs = vec![
        Input::variable(Shape::matrix(n, c_in)).activation(),
        Input::variable(weight).filled(super::case::Fill::Channels(c_in)).weight(),
        Input::variable(Shape::vector(c_out)),
    ];
    let mut case = Case::new(
        format!("{n}x{c_in} -> {c_out}"),
        inputs,
        |tape, inputs| Ok(vec![linear(tape, &inputs[0], &inputs[1], Some(&inputs[2]))?]),
        |inputs| vec![reference(&inputs[0], &inputs[1], Some(&inputs[2]), POINTWISE)],
    )
    .gradient(|inputs, d_y| {
        vec![
            Some(reference_data(&inputs[0], &inputs[1], d_y, POINTWISE)),
            Some(reference_weight(&inputs[0], &inputs[1], d_y, POINTWISE)),
            Some(reference_bias(d_y)),
        ]
    });
    case.passes = PASSES;
    case.flops = 2.0 * (n * c_in * c_out) as f64;
    case
}
