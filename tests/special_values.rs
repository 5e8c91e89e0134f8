//! NaN, infinities, labels that are no class, shapes that do not fit, and arenas larger than a
//! binding: what the cases of the operations cannot express.

mod common;

use wgrad::gpu::{Gpu, GpuOptions};
use wgrad::ops::{self, ClassWeights, CrossEntropy, MaxPool2d, Target, Targets};
use wgrad::{Dtype, Error, Shape, Tape, Tensor};

const NAN: f32 = f32::NAN;
const LOWEST: f32 = f32::NEG_INFINITY;

fn every_gpu() -> Vec<Gpu> {
    common::every_gpu(GpuOptions { guards: true, ..Default::default() })
}

#[test]
fn a_maximum_may_be_nan_or_minus_infinity() {
    let pool = MaxPool2d { kernel: [1, 2], stride: [1, 2], padding: [0, 0] };
    for gpu in every_gpu() {
        let tape = Tape::new(&gpu);
        let (lowest, highest) = (LOWEST, f32::INFINITY);
        let row =
            [1.0, NAN, NAN, 1.0, lowest, lowest, lowest, f32::MIN, highest, 1.0, lowest, highest];
        let x = tape.leaf(Tensor::from_host(&gpu, Shape::new(1, 1, 12, 1), &row).unwrap());
        let y = ops::max_pool2d(&tape, &x, pool).unwrap();
        let found = y.value().download(&gpu).unwrap();
        assert!(found[0].is_nan() && found[1].is_nan(), "{found:?}");
        assert_eq!(found[2..], [lowest, f32::MIN, highest, highest]);
        let d_y = Tensor::from_host(&gpu, y.shape(), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let d_x = tape.backward(&y, d_y).unwrap().take(&x).unwrap().download(&gpu).unwrap();
        assert_eq!(d_x, [0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 4.0, 5.0, 0.0, 0.0, 6.0]);
    }
}

/// Loss, statistics and gradient of two rows of three classes.
fn cross_entropy(gpu: &Gpu, logits: [f32; 6], targets: [Target; 2]) -> (f32, Vec<f32>, Vec<f32>) {
    let tape = Tape::new(gpu);
    let logits = tape.leaf(Tensor::from_host(gpu, Shape::matrix(2, 3), &logits).unwrap());
    let targets = Targets::new(gpu, &targets).unwrap();
    let options = CrossEntropy { label_smoothing: 0.0, divisor: 1.0 };
    let output = ops::cross_entropy(&tape, &logits, &targets, options).unwrap();
    let seed = Tensor::from_host(gpu, Shape::vector(1), &[1.0]).unwrap();
    let gradient = tape.backward(&output.loss, seed).unwrap().take(&logits).unwrap();
    let download = |tensor: &Tensor| tensor.download(gpu).unwrap();
    (download(output.loss.value())[0], download(&output.stats), download(&gradient))
}

#[test]
fn a_row_without_an_answer_has_no_loss_and_is_wrong() {
    for gpu in every_gpu() {
        let good = [0.0, 5.0, 0.0];
        for (bad, target) in [
            ([0.0, NAN, 0.0], 0.into()),
            ([NAN; 3], 2.into()),
            ([LOWEST; 3], 0.into()),
            ([0.0, 1.0, 2.0], 3.into()),
            ([0.0, 1.0, 2.0], Target { other: 3, share: 0.75, ..2.into() }),
        ] {
            let logits = [bad[0], bad[1], bad[2], good[0], good[1], good[2]];
            let (loss, stats, gradient) = cross_entropy(&gpu, logits, [target, 1.into()]);
            assert!(loss.is_nan() && stats[0].is_nan(), "{bad:?} {target:?}: {loss}");
            assert_eq!(stats[1..], [1.0, 1.0, 2.0], "{bad:?} {target:?}");
            assert!(gradient[..3].iter().all(|d| d.is_nan()), "{bad:?} {target:?}: {gradient:?}");
            assert!(
                gradient[3..].iter().all(|d| d.is_finite()),
                "{bad:?} {target:?}: {gradient:?}"
            );
        }
    }
}

#[test]
fn a_class_may_be_ruled_out() {
    for gpu in every_gpu() {
        let logits = [LOWEST, 1.0, 1.0, 0.0, 0.0, LOWEST];
        let (loss, stats, gradient) = cross_entropy(&gpu, logits, [2.into(), 0.into()]);
        assert!((loss - 2.0 * std::f32::consts::LN_2).abs() < 1e-6, "{loss}");
        assert_eq!(
            stats[1..],
            [1.0, 2.0, 2.0],
            "the second of two equal logits is not the top one"
        );
        let expected = [0.0, 0.5, -0.5, -0.5, 0.5, 0.0];
        assert!(gradient.iter().zip(expected).all(|(d, e)| (d - e).abs() < 1e-6), "{gradient:?}");
    }
}

#[test]
fn a_class_without_weight_may_be_ruled_out() {
    for gpu in every_gpu() {
        let tape = Tape::no_grad(&gpu);
        let logits = Tensor::from_host(&gpu, Shape::matrix(1, 3), &[LOWEST, 1.0, 1.0]).unwrap();
        let weights = ClassWeights::new(&gpu, &[0.0, 1.0, 3.0]).unwrap();
        let targets = ops::labels(&gpu, &[2]).unwrap().weighted(Some(&weights));
        let options = CrossEntropy { label_smoothing: 0.0, divisor: 1.0 };
        let output = ops::cross_entropy(&tape, &tape.constant(logits), &targets, options).unwrap();
        let loss = output.loss.value().download(&gpu).unwrap()[0];
        assert!((loss - 3.0 * std::f32::consts::LN_2).abs() < 1e-6, "{loss}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let gpu = &every_gpu()[0];
    let tape = Tape::no_grad(gpu);
    let tensor = |shape: Shape| Tensor::from_host(gpu, shape, &vec![0.0; shape.len()]).unwrap();
    let image = tape.constant(tensor(Shape::new(1, 4, 4, 3)));
    for pool in [
        MaxPool2d { kernel: [0, 2], stride: [1, 1], padding: [0, 0] },
        MaxPool2d { kernel: [2, 2], stride: [1, 0], padding: [0, 0] },
        MaxPool2d { kernel: [3, 3], stride: [1, 1], padding: [2, 1] },
        MaxPool2d { kernel: [5, 5], stride: [1, 1], padding: [0, 0] },
        MaxPool2d { kernel: [1, 1], stride: [1, 512], padding: [0, 0] },
        MaxPool2d { kernel: [1 << 40, 1 << 40], stride: [1, 1], padding: [1 << 39, 1 << 39] },
    ] {
        let result = ops::max_pool2d(&tape, &image, pool);
        assert!(matches!(result, Err(Error::Shape { op: "max_pool2d", .. })), "{pool:?}");
    }
    let options = CrossEntropy { label_smoothing: 0.0, divisor: 1.0 };
    let labels = ops::labels(gpu, &[0]).unwrap();
    let logits = tape.constant(tensor(Shape::matrix(2, 3)));
    assert!(
        ops::cross_entropy(&tape, &logits, &labels, options).is_err(),
        "one label for two rows"
    );
    assert!(ops::cross_entropy(&tape, &image, &labels, options).is_err(), "logits of an image");
    let bytes = gpu.lease(4 * 4 * 3 - 4);
    assert!(ops::normalize(gpu, &bytes, image.shape(), [0.0; 3], [1.0; 3], Dtype::F32).is_err());
    let (long, short) = (gpu.lease(32), gpu.lease(16));
    assert!(ops::l2_sp(gpu, &long, &short, &long, 1.0, None).is_err());
    assert!(ops::grad_norm(gpu, &[&gpu.lease(20)], None).is_err());
}

#[test]
fn arenas_may_be_larger_than_a_binding() {
    for gpu in common::every_gpu(GpuOptions { floor_limits: true, ..Default::default() }) {
        let (bytes, last) = (gpu.binding_limit() + 512, gpu.binding_limit() + 256);
        let [gradients, parameters] = [(); 2].map(|()| gpu.lease(bytes));
        gpu.clear(&gradients);
        gpu.clear(&parameters);
        // A three at the first place, and a four behind the limit.
        gpu.upload(&parameters, bytemuck::bytes_of(&3.0f32)).unwrap();
        gpu.upload(&parameters.part(last, 256), bytemuck::bytes_of(&4.0f32)).unwrap();
        let start = gpu.lease(bytes);
        gpu.clear(&start);
        ops::l2_sp(&gpu, &gradients, &parameters, &start, 2.0, None).unwrap();
        let norm = ops::grad_norm(&gpu, &[&gradients], Some(5.0)).unwrap();
        let behind = gpu.download(&gradients.part(last, 256)).wait_f32().unwrap();
        assert_eq!(behind[..2], [8.0, 0.0]);
        let [scale, norm] = norm.download(&gpu).unwrap()[..] else { panic!("two numbers") };
        assert!((norm - 10.0).abs() < 1e-5 && (scale - 0.5).abs() < 1e-6, "{norm} {scale}");
    }
}
