//! Photos to the network's input: y[n, h, w, c] = (byte[n, h, w, c] / 255 − mean[c]) / std[c].
//!
//! Computed as (byte − 255·mean[c]) · 1/(255·std[c]), with both constants rounded once.

use super::Op;
use super::case::{Array, Case, EPSILON, Expected};
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

static NORMALIZE: Shader = shader!("normalize");

pub(super) const OP: Op = Op { name: "normalize", shaders: &[&NORMALIZE], cases };

/// Parameters of `shaders/normalize.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// 255·mean.
    center: [f32; 3],
    pixels: u32,
    /// 1 / (255·std).
    scale: [f32; 3],
    /// WGSL rounds a struct with a `vec3` up to a multiple of 16 bytes.
    padding: u32,
}

/// Packed RGB bytes, channels fastest, rows and images without gaps, as numbers of `shape`, which has
/// three channels, and `dtype`. `mean` and `std` are those of the channels scaled to 0…1.
///
/// # Errors
/// [`Error::Shape`] if `shape` has other than three channels or `pixels` holds too few bytes.
pub fn normalize(
    gpu: &Gpu,
    pixels: &Slice,
    shape: Shape,
    mean: [f32; 3],
    std: [f32; 3],
    dtype: Dtype,
) -> Result<Tensor> {
    if shape.c != 3 || pixels.bytes < shape.len() as u64 {
        let what = format!("{} bytes for RGB images {shape}", pixels.bytes);
        return Err(Error::shape("normalize", what));
    }
    let y = Tensor::empty_as(gpu, shape, dtype);
    gpu.run(
        Kernel::new(&NORMALIZE).half(dtype.is_half()),
        &Params {
            center: mean.map(|mean| (f64::from(mean) * 255.0) as f32),
            pixels: shape.pixels() as u32,
            scale: std.map(|std| (1.0 / (f64::from(std) * 255.0)) as f32),
            padding: 0,
        },
        &[pixels, y.memory()],
        gpu.groups(shape.pixels().div_ceil(256)),
    );
    Ok(y)
}

fn cases() -> Vec<Case> {
    let case = |n: usize, h: usize, w: usize, mean: [f32; 3], std: [f32; 3], dtype: Dtype| {
        let shape = Shape::new(n, h, w, 3);
        let case = Case::new(
            format!("{shape} mean {mean:?} std {std:?}"),
            Vec::new(),
            move |tape, _| {
                let mut bytes = photos(shape);
                bytes.resize(bytes.len().next_multiple_of(4), 0xff);
                let pixels = tape.gpu().lease(bytes.len() as u64);
                tape.gpu().upload(&pixels, &bytes)?;
                Ok(vec![tape.constant(normalize(tape.gpu(), &pixels, shape, mean, std, dtype)?)])
            },
            move |_| vec![reference(&photos(shape), shape, mean, std)],
        );
        if dtype.is_half() { case.in_half() } else { case }
    };
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    vec![
        case(2, 5, 7, mean, std, Dtype::F32),
        case(2, 5, 7, mean, std, Dtype::F16),
        case(1, 1, 1, [0.0; 3], [1.0; 3], Dtype::F32),
        case(3, 16, 16, [0.5; 3], [0.5; 3], Dtype::F32),
        Case { benchmark: true, ..case(32, 224, 224, mean, std, Dtype::F32) },
        Case { benchmark: true, ..case(32, 224, 224, mean, std, Dtype::F16) },
    ]
}

/// Every byte from 0 to 255, over and over, in an order that differs by channel.
fn photos(shape: Shape) -> Vec<u8> {
    (0..shape.len()).map(|index| (index * 89) as u8).collect()
}

fn reference(bytes: &[u8], shape: Shape, mean: [f32; 3], std: [f32; 3]) -> Expected {
    let (mut values, mut allowance) = (Vec::new(), Vec::new());
    for (index, &byte) in bytes.iter().enumerate() {
        let (mean, std) = (f64::from(mean[index % 3]), f64::from(std[index % 3]));
        let y = (f64::from(byte) / 255.0 - mean) / std;
        values.push(y);
        // One rounding each of 255·mean, the scale, the difference and the product.
        allowance.push(EPSILON * (mean.abs() / std + 3.0 * y.abs()) * (1.0 + 4.0 * EPSILON));
    }
    Expected::within(Array::new(shape, values), allowance)
}
