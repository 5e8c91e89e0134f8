//! What the checks and benchmarks of batch normalisation go through.

use super::reference::{reference, reference_gradient};
use super::{BatchNorm, BatchNormState, batch_norm};
use crate::autograd::{Tape, Var};
use crate::ops::case::{Case, Fill, Input};
use crate::tensor::Shape;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for training in [true, false] {
        for (relu, residual) in [(false, false), (true, false), (true, true), (false, true)] {
            let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu };
            cases.push(case(Shape::new(3, 7, 5, 13), Fill::Uniform(-1.0, 1.0), residual, options));
            cases.push(case(Shape::new(2, 9, 9, 64), Fill::Uniform(-1.0, 1.0), residual, options));
            // More than a few pixels.
            cases.push(case(Shape::new(2, 33, 17, 5), Fill::Uniform(-1.0, 1.0), residual, options));
        }
    }
    let options = BatchNorm { training: true, momentum: 0.1, epsilon: 1e-5, relu: false };
    // Two values a channel; a mean a thousand times the deviation; more chunks than threads merge.
    cases.push(case(Shape::new(2, 1, 1, 4), Fill::Uniform(-1.0, 1.0), false, options));
    cases.push(case(Shape::new(4, 9, 7, 6), Fill::Uniform(999.0, 1001.0), false, options));
    cases.push(case(Shape::new(2, 57, 51, 4), Fill::Uniform(-1.0, 1.0), false, options));
    // Chunks for many threads to merge.
    cases.push(case(Shape::new(1, 260, 259, 4), Fill::Uniform(-1.0, 1.0), false, options));
    // ResNet-18 at 224 px, batch 8, and at 64 px, batch 16: the ends of layer1 and layer4; and batch 64.
    let options = BatchNorm { relu: true, ..options };
    for (shape, for_gpus) in [
        (Shape::new(8, 56, 56, 64), false),
        (Shape::new(16, 2, 2, 512), false),
        (Shape::new(64, 56, 56, 64), true),
    ] {
        let case = case(shape, Fill::Uniform(-1.0, 1.0), true, options);
        cases.push(Case { benchmark: true, for_gpus, ..case });
    }
    cases
}

fn case(shape: Shape, fill: Fill, residual: bool, options: BatchNorm) -> Case {
    let vector = Shape::vector(shape.c);
    let mut inputs = vec![
        Input::variable(shape).filled(fill).activation(),
        Input::variable(vector).filled(Fill::Uniform(0.5, 1.5)),
        Input::variable(vector),
        Input::constant(Shape::matrix(2, shape.c), Fill::Uniform(0.25, 1.0)),
    ];
    if residual {
        inputs.push(Input::variable(shape).activation());
    }
    let name = format!(
        "{shape} {fill} {}{}{}",
        if options.training { "train" } else { "eval" },
        if residual { " +residual" } else { "" },
        if options.relu { " +relu" } else { "" }
    );
    let run = move |tape: &Tape, inputs: &[Var]| {
        // The running statistics are updated in place; the case's own must stay as they are.
        let running = inputs[3].value().duplicate(tape.gpu());
        let state = BatchNormState { gamma: &inputs[1], beta: &inputs[2], running: &running };
        let y = batch_norm(tape, &inputs[0], state, inputs.get(4), None, options)?;
        Ok(vec![y, tape.constant(running)])
    };
    Case::new(name, inputs, run, move |inputs| reference(inputs, options))
        .gradient(move |inputs, d_y| reference_gradient(inputs, d_y, options, false))
}
