//! Dropout: y = x·m, where m is 0 with probability p and 1 / (1 − p) else, for each element by itself
//! or for a whole row (image) at once: torchvision's `stochastic_depth(mode="row")`.
//!
//! d_x = d_y·m.
//!
//! m is not kept: it is a hash (pcg4d) of a key on the device, the place that drops, the row and the
//! channels, which forward and backward both compute. An element is dropped if its word is below
//! p·2³².

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static DROPOUT: Shader = shader!("dropout");

pub(super) const OP: Op = Op { name: "dropout", shaders: &[&DROPOUT], cases };

/// Options of [`dropout`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of being dropped, 0 up to but without 1.
    pub p: f32,
    /// What is dropped at once.
    pub per: Per,
    /// Tells places that drop by the same key apart.
    pub site: u32,
}

/// What is dropped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each number by itself.
    Element,
    /// All numbers of an image.
    Row,
}

/// Parameters of `shaders/dropout.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers, of all rows and of one.
    count: u32,
    row: u32,
    /// Words below it are dropped.
    threshold: u32,
    /// 1 / (1 − p).
    scale: f32,
    site: u32,
    per_row: u32,
    /// Whether to add to what the output holds.
    accumulate: u32,
    padding: u32,
}

impl Params {
    fn new(shape: Shape, options: Dropout, accumulate: bool) -> Self {
        Self {
            count: shape.vec4s() as u32,
            row: (shape.vec4s() / shape.n.max(1)) as u32,
            threshold: threshold(options.p),
            scale: 1.0 / (1.0 - options.p),
            site: options.site,
            per_row: (options.per == Per::Row).into(),
            accumulate: accumulate.into(),
            padding: 0,
        }
    }
}

fn threshold(p: f32) -> u32 {
    (f64::from(p) * 2f64.powi(32)) as u32
}

/// y = x·m. `key` holds two random words, the number of the first row in its batch, and a word that
/// is not used (u32 each).
///
/// # Errors
/// [`Error::Shape`] for a key that is too short, [`Error::Usage`] for a p out of range.
pub fn dropout(tape: &Tape, x: &Var, key: &Slice, options: Dropout) -> Result<Var> {
    if key.bytes < 16 {
        return Err(Error::shape("dropout", format!("a key of {} bytes, not 16", key.bytes)));
    }
    if !(0.0..1.0).contains(&options.p) {
        return Err(Error::Usage(format!(
            "dropout of {}: it must be 0 or more, below 1",
            options.p
        )));
    }
    let y = Tensor::empty_as(tape.gpu(), x.shape(), x.value().dtype());
    run(tape.gpu(), x.value(), &y, key, options, false);
    let (x_slot, key) = (x.slot(), key.clone());
    Ok(tape.output("dropout", y, &[x], || DropoutBackward { x: x_slot, key, options }))
}

fn run(gpu: &Gpu, x: &Tensor, y: &Tensor, key: &Slice, options: Dropout, accumulate: bool) {
    let params = Params::new(x.shape(), options, accumulate);
    let groups = gpu.groups(x.shape().vec4s().div_ceil(256));
    let kernel = Kernel::new(&DROPOUT).half(x.dtype().is_half());
    gpu.run(kernel, &params, &[key, x.memory(), y.memory()], groups);
}

struct DropoutBackward {
    x: Slot,
    key: Slice,
    options: Dropout,
}

impl Backward for DropoutBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let Some(d_x) = grads.target(self.x) else { return Ok(()) };
        run(grads.gpu(), &d_y, &d_x.tensor, &self.key, self.options, d_x.accumulate);
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    const KEY: [u32; 4] = [0x0123_4567, 0x89ab_cdef, 3, 0];
    let case = |shape: Shape, p: f32, per: Per, fill: Fill| {
        let options = Dropout { p, per, site: 2 };
        Case::new(
            format!("{shape} p {p} per {per:?} {fill}"),
            vec![Input::variable(shape).filled(fill).activation()],
            move |tape, inputs| {
                let key = tape.gpu().lease(16);
                tape.gpu().upload(&key, bytemuck::cast_slice(&KEY))?;
                Ok(vec![dropout(tape, &inputs[0], &key, options)?])
            },
            move |inputs| vec![reference(&inputs[0], KEY, options)],
        )
        .gradient(move |_, d_y| vec![Some(reference(d_y, KEY, options))])
    };
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        case(Shape::matrix(5, 37), 0.5, Per::Element, unit),
        case(Shape::new(3, 7, 5, 6), 0.1, Per::Element, Fill::Extremes),
        case(Shape::matrix(1, 1), 0.75, Per::Element, unit),
        case(Shape::new(37, 3, 5, 6), 0.3, Per::Row, unit),
        case(Shape::matrix(9, 5), 0.0, Per::Row, unit),
        Case { benchmark: true, ..case(Shape::new(16, 56, 56, 64), 0.2, Per::Row, unit) },
    ]
}

/// y; scale and product are rounded.
fn reference(x: &Array, key: [u32; 4], options: Dropout) -> Expected {
    let y = (0..x.data.len()).map(|at| x.data[at] * mask(x.shape, at, key, options)).collect();
    Expected::rounded(Array::new(x.shape, y), 3.0)
}

/// m of the element with index `at`.
fn mask(shape: Shape, at: usize, key: [u32; 4], options: Dropout) -> f64 {
    let (pixel, channel) = (at / shape.c, at % shape.c);
    let (row, pixel) = (pixel / (shape.h * shape.w), pixel % (shape.h * shape.w));
    let row = key[2] + row as u32;
    let site = options.site.wrapping_mul(0x9e37_79b9);
    let word = match options.per {
        Per::Row => pcg4d([key[0] ^ site, key[1], row, 0])[0],
        Per::Element => {
            let column = pixel * shape.c4() + channel / 4;
            pcg4d([key[0] ^ site, key[1], row, column as u32])[channel % 4]
        }
    };
    if word < threshold(options.p) { 0.0 } else { 1.0 / (1.0 - f64::from(options.p)) }
}

/// The hash of Jarzynski and Olano, "Hash Functions for GPU Rendering", 2020.
fn pcg4d(words: [u32; 4]) -> [u32; 4] {
    let stir = |[mut x, mut y, mut z, mut w]: [u32; 4]| {
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
        [x, y, z, w]
    };
    let words = words.map(|word| word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    stir(stir(words).map(|word| word ^ (word >> 16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(shape: Shape, key: [u32; 4], options: Dropout) -> Vec<f64> {
        (0..shape.len()).map(|at| mask(shape, at, key, options)).collect()
    }

    #[test]
    fn the_stated_share_is_dropped() {
        for (p, per) in [(0.3, Per::Element), (0.8, Per::Element), (0.3, Per::Row), (0.8, Per::Row)]
        {
            let shape = Shape::matrix(20_000, 1);
            let masks = masks(shape, [1, 2, 0, 0], Dropout { p, per, site: 0 });
            let dropped = masks.iter().filter(|&&mask| mask == 0.0).count() as f64 / 20_000.0;
            let p = f64::from(p);
            let error = (p * (1.0 - p) / 20_000.0).sqrt();
            assert!((dropped - p).abs() < 4.0 * error, "{dropped}, not {p}");
        }
    }

    #[test]
    fn keys_places_rows_and_channels_drop_otherwise() {
        let shape = Shape::matrix(64, 8);
        let options = Dropout { p: 0.5, per: Per::Element, site: 0 };
        let plain = masks(shape, [1, 2, 0, 0], options);
        // Independent masks agree in half of the elements.
        let apart = |other: Vec<f64>| {
            let same = plain.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((200..312).contains(&same), "{same} of 512");
        };
        apart(masks(shape, [3, 2, 0, 0], options));
        apart(masks(shape, [1, 3, 0, 0], options));
        apart(masks(shape, [1, 2, 64, 0], options));
        apart(masks(shape, [1, 2, 0, 0], Dropout { site: 1, ..options }));
        apart([&plain[8..], &plain[..8]].concat());
        apart([&plain[1..], &plain[..1]].concat());
        // The second half of a batch done in parts is that of the whole.
        assert_eq!(masks(Shape::matrix(32, 8), [1, 2, 32, 0], options), plain[256..]);
    }
}
