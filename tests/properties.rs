//! What holds for every operation whatever its formula: gradients add up, and a second run gives the same
//! bits.

mod common;

use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::ops::case::{Array, Case, Fill, compare, filled};
use wgrad::ops::{self, BatchNorm, BatchNormState, OPS, Op};
use wgrad::{Dtype, Error, Shape, Tape, Tensor, Var};

fn on_every_case(check: impl Fn(&Gpu, &Op, &Case)) {
    for gpu in common::every_gpu(GpuOptions { guards: true, ..Default::default() }) {
        for op in OPS {
            let cases = op.cases();
            for case in cases.iter().filter(|case| !case.benchmark && case.supported(&gpu)) {
                check(&gpu, op, case);
            }
        }
    }
}

/// The gradient by the first output, of a case that has gradients.
fn seed(case: &Case, inputs: &[Array]) -> Option<Array> {
    let output = (case.reference)(inputs)[0].values.shape;
    case.gradient.as_ref().map(|_| case.fill_gradient(output))
}

#[test]
fn gradients_are_added_to_what_a_leaf_holds() {
    on_every_case(|gpu, op, case| {
        let inputs = case.fill();
        let (Some(gradient), Some(d_out)) = (&case.gradient, seed(case, &inputs)) else { return };
        let held = case.fill_held();
        let sums = case.execute_adding(gpu, &inputs, &d_out, &held).unwrap();
        for (index, expected) in gradient(&inputs, &d_out).into_iter().enumerate() {
            let (Some(mut expected), Some(sum)) = (expected, &sums[index]) else { continue };
            let held = &held[index];
            // Where x is used twice, what it holds is stored with the first of its gradients.
            if case.name.contains(" twice") {
                let stored = expected.intermediates.iter_mut().zip(&held.data);
                stored.for_each(|(stored, held)| *stored += held.abs());
            }
            let half = case.dtype.is_half();
            let expected = if half { expected.through_half() } else { expected };
            let mut expected = expected.added_to(held);
            if sum.dtype().is_half() {
                expected = expected.stored_in_half();
            }
            let found = sum.download(gpu).unwrap();
            let worst = compare(&found, &expected, &case.kernels(gpu));
            assert!(worst.share <= 1.0, "{} ({}): gradient {index} {worst}", op.name, case.name);
        }
    });
}

#[test]
fn a_second_run_gives_the_same_bits() {
    on_every_case(|gpu, op, case| {
        let inputs = case.fill();
        let run = || -> Vec<Vec<u32>> {
            let (outputs, gradients) =
                case.execute(gpu, &inputs, seed(case, &inputs).as_ref()).unwrap();
            let tensors = outputs.iter().chain(gradients.iter().flatten());
            tensors.map(|t| bytemuck::cast_vec(t.download(gpu).unwrap())).collect()
        };
        assert_eq!(run(), run(), "{} ({})", op.name, case.name);
    });
}

/// Small uploads share staging memory, which is filled again once it was read; large ones that come again have
/// their own.
#[test]
fn uploads_take_their_turn_among_other_commands() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let sizes = [4, 1 << 12, (1 << 16) + 4, 1 << 20];
        let places = sizes.map(|bytes| gpu.lease(bytes));
        for round in 0..12u8 {
            let mut copies = Vec::new();
            for turn in [2 * round, 2 * round + 1] {
                for (place, bytes) in places.iter().zip(sizes) {
                    gpu.upload(place, &vec![turn; bytes as usize]).unwrap();
                    let copy = gpu.lease(bytes);
                    gpu.copy(place, &copy);
                    copies.push((gpu.download(&copy), turn));
                }
            }
            for (copy, turn) in copies {
                assert!(copy.wait().unwrap().iter().all(|&byte| byte == turn), "round {round}");
            }
        }
    }
}

/// Batch norm of `x`, with fixed parameters; what comes after it is `relu` and whatever joins.
fn batch_norm(tape: &Tape, x: &Var, residual: Option<&Var>, training: bool, relu: bool) -> Var {
    let gpu = tape.gpu();
    let tensor = |shape: Shape, seed| {
        let values = filled(shape, Fill::Uniform(0.5, 1.5), seed);
        Tensor::from_host(gpu, shape, &values.to_f32()).unwrap()
    };
    let vector = Shape::vector(x.shape().c);
    let [gamma, beta] = [1, 2].map(|seed| tape.constant(tensor(vector, seed)));
    let running = tensor(Shape::matrix(2, x.shape().c), 3);
    let state = BatchNormState { gamma: &gamma, beta: &beta, running: &running };
    let options = BatchNorm { training, momentum: 0.1, epsilon: 1e-5, relu };
    ops::batch_norm(tape, x, state, residual, None, options).unwrap()
}

/// Shapes of few pixels, which one kernel does alone, and of many, batch statistics and running ones.
fn batch_norms() -> [(Shape, bool); 4] {
    let [few, many] = [Shape::new(2, 3, 5, 6), Shape::new(2, 31, 33, 6)];
    [(few, true), (few, false), (many, true), (many, false)]
}

#[test]
fn what_is_normalised_may_be_the_residual_too() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        for (shape, training) in batch_norms() {
            let [values, d_y] = [4, 5].map(|seed| {
                let values = filled(shape, Fill::Uniform(-1.0, 1.0), seed);
                Tensor::from_host(&gpu, shape, &values.to_f32()).unwrap()
            });
            let gradient = |joined: fn(&Tape, &Var, bool) -> Var| {
                let tape = Tape::new(&gpu);
                let x = tape.leaf(values.clone());
                let y = joined(&tape, &x, training);
                let mut grads = tape.backward(&y, d_y.clone()).unwrap();
                grads.take(&x).unwrap().download(&gpu).unwrap()
            };
            let at_once =
                gradient(|tape, x, training| batch_norm(tape, x, Some(x), training, true));
            let apart = gradient(|tape, x, training| {
                let sum = ops::add(tape, &batch_norm(tape, x, None, training, false), x).unwrap();
                ops::relu(tape, &sum).unwrap()
            });
            for (found, expected) in at_once.iter().zip(&apart) {
                assert!((found - expected).abs() < 1e-5, "{shape} {training}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_residual_alone_may_be_differentiated_by() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        for (shape, training) in batch_norms() {
            let values = filled(shape, Fill::Uniform(-3.0, 3.0), 6).to_f32();
            let tensor = |values: &[f32]| Tensor::from_host(&gpu, shape, values).unwrap();
            let tape = Tape::new(&gpu);
            let x = tape.constant(tensor(&values));
            let residual = tape.leaf(tensor(&values));
            let y = batch_norm(&tape, &x, Some(&residual), training, true);
            let through = y.value().download(&gpu).unwrap();
            let seed = tensor(&vec![2.0; shape.len()]);
            let mut grads = tape.backward(&y, seed).unwrap();
            let found = grads.take(&residual).unwrap().download(&gpu).unwrap();
            let expected: Vec<_> =
                through.iter().map(|&y| if y > 0.0 { 2.0 } else { 0.0 }).collect();
            assert_eq!(found, expected, "{shape} {training}");
        }
    }
}

#[test]
fn a_gradient_must_be_like_its_value() {
    for gpu in common::every_gpu(GpuOptions::default()) {
        let shape = Shape::matrix(2, 64);
        let tensor = |shape: Shape, dtype| {
            Tensor::from_host_as(&gpu, shape, &vec![1.0; shape.len()], dtype).unwrap()
        };
        let mut seeds = vec![tensor(Shape::matrix(1, 4), Dtype::F32)];
        seeds.extend(gpu.has_f16().then(|| tensor(shape, Dtype::F16)));
        for seed in seeds {
            let tape = Tape::new(&gpu);
            let x = tape.leaf(tensor(shape, Dtype::F32));
            let y = ops::relu(&tape, &x).unwrap();
            let refused = tape.backward(&y, seed).err();
            assert!(matches!(refused, Some(Error::Shape { op: "gradient", .. })), "{refused:?}");
        }
    }
}
