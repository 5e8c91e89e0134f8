//! What convolutions are checked and timed on.

use super::geometry::Geometry;
use super::reference::{reference, reference_bias, reference_data, reference_weight};
use super::{Conv2d, PASSES, conv2d};
use crate::autograd::{Tape, Var};
use crate::ops::add;
use crate::ops::case::{Case, Expected, Fill, Input};
use crate::tensor::Shape;

pub(super) fn cases() -> Vec<Case> {
    let small = [
        // (x, window, c_out, stride, padding): odd sizes, tails in every dimension, batch 1.
        (Shape::new(2, 9, 7, 16), [3, 3], 24, [1, 1], [1, 1]),
        (Shape::new(1, 8, 8, 64), [3, 3], 64, [1, 1], [1, 1]),
        (Shape::new(2, 9, 11, 8), [3, 3], 20, [2, 2], [1, 1]),
        // Sums in parts by the input, of which pixels with fewer taps leave some empty.
        (Shape::new(3, 8, 8, 32), [3, 3], 72, [2, 2], [1, 1]),
        (Shape::new(2, 17, 15, 3), [7, 7], 8, [2, 2], [3, 3]),
        (Shape::new(3, 17, 14, 3), [7, 7], 16, [2, 2], [3, 3]),
        (Shape::new(3, 6, 8, 4), [4, 5], 8, [1, 2], [0, 2]),
        (Shape::new(2, 7, 6, 20), [1, 1], 36, [2, 2], [0, 0]),
        (Shape::new(5, 1, 1, 13), [1, 1], 10, [1, 1], [0, 0]),
        (Shape::new(1, 5, 9, 5), [2, 3], 6, [3, 1], [0, 2]),
        (Shape::new(1, 1, 1, 1), [3, 3], 1, [1, 1], [1, 1]),
        (Shape::new(1, 6, 6, 140), [1, 1], 136, [1, 1], [0, 0]),
        (Shape::new(4, 2, 2, 8), [3, 3], 8, [3, 3], [1, 1]),
        // Taps that find what they read in one tile of kernels for matrix units.
        (Shape::new(3, 9, 7, 32), [3, 3], 32, [1, 1], [1, 1]),
        (Shape::new(2, 6, 9, 64), [3, 5], 96, [1, 1], [1, 2]),
        // The same where a workgroup has too little memory for five of them.
        (Shape::new(1, 6, 9, 32), [5, 3], 32, [1, 1], [2, 1]),
        // Even sizes, other paddings; more images than Winograd's workspace takes at a time.
        (Shape::new(3, 6, 10, 12), [3, 3], 20, [1, 1], [0, 2]),
        (Shape::new(48, 16, 16, 12), [3, 3], 12, [1, 1], [1, 1]),
        // Tiles of one place or one tap, at which some or all that is read is padding.
        (Shape::new(33, 3, 2, 36), [3, 3], 40, [1, 1], [1, 1]),
        (Shape::new(40, 1, 3, 32), [5, 5], 12, [1, 2], [2, 2]),
        // Sums in many parts by the weight, and in some by the input.
        (Shape::new(7, 15, 14, 20), [3, 3], 64, [1, 1], [1, 1]),
    ];
    let small = small.into_iter().map(|(x, window, c_out, stride, padding)| {
        case(x, window, c_out, Conv2d { stride, padding }, false)
    });
    let with_bias =
        case(Shape::new(3, 6, 5, 9), [3, 3], 11, Conv2d { stride: [1, 1], padding: [1, 1] }, true);
    let mut extremes =
        case(Shape::new(1, 5, 5, 8), [3, 3], 8, Conv2d { stride: [1, 1], padding: [1, 1] }, false);
    extremes.inputs[0].fill = Fill::Extremes;
    extremes.name += " extremes";
    // ResNet-18 at 64 px, batch 16, and at 224 px, batch 64.
    let large = [(16, 16, false), (64, 56, true)].into_iter().flat_map(resnet18);
    // Deep enough for workgroups to share sums, and not.
    let twice = [Shape::new(3, 9, 7, 32), Shape::new(2, 6, 5, 24)].map(twice);
    small.chain([with_bias, extremes]).chain(twice).chain(large).collect()
}

/// x ∗ weight + bias twice over, of whose gradients the second are added to the first.
fn twice(x: Shape) -> Case {
    let conv = Conv2d { stride: [1; 2], padding: [1; 2] };
    let run = move |tape: &Tape, inputs: &[Var]| {
        let once = || conv2d(tape, &inputs[0], &inputs[1], Some(&inputs[2]), conv);
        Ok(vec![add(tape, &once()?, &once()?)?])
    };
    let once = case(x, [3, 3], x.c, conv, true);
    let (name, inputs) = (once.name.clone() + " twice", once.inputs.clone());
    let mut case = Case::new(name, inputs, run, move |inputs| {
        let once = reference(&inputs[0], &inputs[1], Some(&inputs[2]), conv);
        let stored = once.values.map(|y| 2.0 * y.abs()).data;
        vec![doubled(once).through(stored)]
    })
    .gradient(move |inputs, d_y| {
        let by_input = reference_data(&inputs[0], &inputs[1], d_y, conv);
        // The first is stored before the second joins it.
        let stored = by_input.values.map(f64::abs).data;
        let by_weight = reference_weight(&inputs[0], &inputs[1], d_y, conv);
        vec![
            Some(doubled(by_input).through(stored)),
            Some(doubled(by_weight)),
            Some(doubled(reference_bias(d_y))),
        ]
    });
    (case.passes, case.flops) = (once.passes, 2.0 * once.flops);
    case
}

/// Results added to themselves.
fn doubled(mut once: Expected) -> Expected {
    once.allowances_mut().flatten().for_each(|allowance| *allowance *= 2.0);
    let values = once.values.clone();
    once.added_to(&values)
}

/// The convolutions of ResNet-18 on so many images, which are so many pixels wide after the stem.
fn resnet18((n, side, for_gpus): (usize, usize, bool)) -> impl Iterator<Item = Case> {
    let convs = [
        (4 * side, 3, 7, 64, 2),
        (side, 64, 3, 64, 1),
        (side, 64, 3, 128, 2),
        (side, 64, 1, 128, 2),
        (side / 2, 128, 3, 128, 1),
        (side / 2, 128, 3, 256, 2),
        (side / 4, 256, 3, 256, 1),
        (side / 4, 256, 3, 512, 2),
        (side / 8, 512, 3, 512, 1),
    ];
    convs.into_iter().map(move |(size, c_in, window, c_out, stride)| {
        let conv = Conv2d { stride: [stride; 2], padding: [window / 2; 2] };
        let x = Shape::new(n, size, size, c_in);
        let case = case(x, [window; 2], c_out, conv, false);
        Case { benchmark: true, for_gpus, ..case }
    })
}

fn case(x: Shape, window: [usize; 2], c_out: usize, conv: Conv2d, bias: bool) -> Case {
    let weight = Shape::new(window[0], window[1], x.c.next_multiple_of(4), c_out);
    let mut inputs = vec![
        Input::variable(x).activation(),
        Input::variable(weight).filled(Fill::Channels(x.c)).weight(),
    ];
    if bias {
        inputs.push(Input::variable(Shape::vector(c_out)));
    }
    let [stride, padding] = [conv.stride, conv.padding];
    let name = format!(
        "{x} {}x{} s{}x{} p{}x{} -> {c_out}{}",
        window[0],
        window[1],
        stride[0],
        stride[1],
        padding[0],
        padding[1],
        if bias { " bias" } else { "" }
    );
    let run = move |tape: &Tape, inputs: &[Var]| {
        Ok(vec![conv2d(tape, &inputs[0], &inputs[1], inputs.get(2), conv)?])
    };
    let mut case = Case::new(name, inputs, run, move |inputs| {
        vec![reference(&inputs[0], &inputs[1], inputs.get(2), conv)]
    })
    .gradient(move |inputs, d_y| {
        let mut gradients = vec![
            Some(reference_data(&inputs[0], &inputs[1], d_y, conv)),
            Some(reference_weight(&inputs[0], &inputs[1], d_y, conv)),
        ];
        if inputs.len() > 2 {
            gradients.push(Some(reference_bias(d_y)));
        }
        gradients
    });
    case.passes = PASSES;
    case.flops = Geometry::new(x, weight, conv).expect("a case's shapes fit together").flops();
    case
}
