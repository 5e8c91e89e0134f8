//! Maximum over windows: y[n, oh, ow, c] = max over (r, s) of x[n, oh·stride − padding + r, …, c].
//!
//! Outside the image there is −∞. Of equal maxima the first in row-major order counts, and a NaN
//! beats every number, as in PyTorch. The output has ⌊(h + 2·padding − kernel) / stride⌋ + 1 rows.
//!
//! d_x[n, h, w, c] = Σ d_y[n, oh, ow, c] over the windows whose maximum is this pixel.

use super::Op;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static FORWARD: Shader = shader!("max_pool2d_forward");
static BACKWARD: Shader = shader!("max_pool2d_backward");

pub(super) const OP: Op = Op { name: "max_pool2d", shaders: &[&FORWARD, &BACKWARD], cases };

/// Threads of a workgroup; the shaders' `THREADS`.
const THREADS: usize = 128;

/// The windows of [`max_pool2d`]; rows first, columns second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool2d {
    /// Pixels of a window; at most 256 in all. The kernels have code for each: hundreds take seconds to
    /// compile.
    pub kernel: [usize; 2],
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// Pixels of −∞ on each side, at most half the kernel.
    pub padding: [usize; 2],
}

/// Parameters of both shaders.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    c4: u32,
    oh: u32,
    ow: u32,
    padding: [u32; 2],
    /// Backward: whether to add to what `d_x` holds.
    accumulate: u32,
}

impl MaxPool2d {
    /// Shape of the output for an input of shape `x`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such window or it does not fit into the padded image.
    pub fn output_shape(&self, x: Shape) -> Result<Shape> {
        let size = |input: usize, axis: usize| {
            let (kernel, stride, padding) =
                (self.kernel[axis], self.stride[axis], self.padding[axis]);
            if kernel == 0 || stride == 0 || padding > kernel / 2 {
                return Err(Error::shape(
                    "max_pool2d",
                    format!("{self:?}: kernel and stride must be positive, padding at most half"),
                ));
            }
            match (input + 2 * padding).checked_sub(kernel) {
                Some(room) if input > 0 => Ok(room / stride + 1),
                _ => Err(Error::shape("max_pool2d", format!("{self:?} does not fit into {x}"))),
            }
        };
        let (h, w) = (size(x.h, 0)?, size(x.w, 1)?);
        // Kernels do each tap, and backward each place within a stride, in lines of their own.
        if [self.kernel, self.stride].iter().any(|[h, w]| h.saturating_mul(*w) > 256) {
            let what = format!("{self:?}: more than 256 taps, or a stride over more pixels");
            return Err(Error::shape("max_pool2d", what));
        }
        Ok(Shape { h, w, ..x })
    }

    fn params(&self, x: Shape, y: Shape, accumulate: bool) -> Params {
        Params {
            n: x.n as u32,
            h: x.h as u32,
            w: x.w as u32,
            c4: x.c4() as u32,
            oh: y.h as u32,
            ow: y.w as u32,
            padding: self.padding.map(|pixels| pixels as u32),
            accumulate: accumulate.into(),
        }
    }

    /// The shader for these windows.
    fn kernel(&self, shader: &'static Shader) -> Kernel {
        let Self { kernel: [r, s], stride, .. } = *self;
        let kernel = Kernel::new(shader).with("KERNEL_H", r as u32).with("KERNEL_W", s as u32);
        kernel.with("STRIDE_H", stride[0] as u32).with("STRIDE_W", stride[1] as u32)
    }
}

/// Workgroups for so many lines of so many threads; `place_of` in the shaders numbers them.
fn groups(gpu: &Gpu, lines: usize, threads: usize) -> [u32; 3] {
    let [y, z, _] = gpu.groups(lines);
    [threads.div_ceil(THREADS) as u32, y, z]
}

/// The maximum of each window of `x`, channel by channel.
///
/// # Errors
/// [`Error::Shape`] as [`MaxPool2d::output_shape`].
pub fn max_pool2d(tape: &Tape, x: &Var, pool: MaxPool2d) -> Result<Var> {
    let (y, taps) = forward(tape.gpu(), x.value(), pool, None, x.needs_grad())?;
    Ok(match taps {
        Some(taps) => {
            tape.output("max_pool2d", y, &[x], || MaxPool2dBackward { pool, x: x.slot(), taps })
        }
        None => tape.untracked("max_pool2d", y),
    })
}

/// The maxima and, if `keep` asks for them, the winning taps of four channels, a byte each. With the
/// coefficients of a batch norm, those of max(scale·x + shift, 0).
pub(super) fn forward(
    gpu: &Gpu,
    x: &Tensor,
    pool: MaxPool2d,
    coefficients: Option<&Slice>,
    keep: bool,
) -> Result<(Tensor, Option<Slice>)> {
    let shape = pool.output_shape(x.shape())?;
    let y = Tensor::empty_as(gpu, shape, x.dtype());
    let taps = keep.then(|| gpu.lease(shape.vec4s() as u64 * 4));
    let kernel = pool
        .kernel(&FORWARD)
        .with("KEEP_TAPS", keep.into())
        .with("NORM", coefficients.is_some().into())
        .half(x.dtype().is_half());
    let slices = [x.memory(), y.memory()].into_iter().chain(&taps).chain(coefficients);
    gpu.run(
        kernel,
        &pool.params(x.shape(), shape, false),
        &slices.collect::<Vec<_>>(),
        groups(gpu, shape.n * shape.h, shape.w * shape.c4()),
    );
    Ok((y, taps))
}

/// The gradient by the input, from the winning taps.
pub(super) fn backward(
    gpu: &Gpu,
    pool: MaxPool2d,
    taps: &Slice,
    d_y: &Tensor,
    d_x: &Tensor,
    accumulate: bool,
) {
    let shape = d_x.shape();
    // Blocks of as many pixels as windows are apart, from the start of the padding.
    let blocks =
        |pixels: usize, axis: usize| (pool.padding[axis] + pixels).div_ceil(pool.stride[axis]);
    gpu.run(
        pool.kernel(&BACKWARD).half(d_x.dtype().is_half()),
        &pool.params(shape, d_y.shape(), accumulate),
        &[taps, d_y.memory(), d_x.memory()],
        groups(gpu, shape.n * blocks(shape.h, 0), blocks(shape.w, 1) * shape.c4()),
    );
}

struct MaxPool2dBackward {
    pool: MaxPool2d,
    x: Slot,
    taps: Slice,
}

impl Backward for MaxPool2dBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        if let Some(d_x) = grads.target(self.x) {
            let gpu = grads.gpu();
            backward(gpu, self.pool, &self.taps, &d_y, &d_x.tensor, d_x.accumulate);
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: Shape, fill: Fill, pool: MaxPool2d| {
        let MaxPool2d { kernel: [r, s], stride, padding } = pool;
        Case::new(
            format!(
                "{shape} {r}x{s} s{}x{} p{}x{} {fill}",
                stride[0], stride[1], padding[0], padding[1]
            ),
            vec![Input::variable(shape).filled(fill).activation()],
            move |tape, inputs| Ok(vec![max_pool2d(tape, &inputs[0], pool)?]),
            move |inputs| vec![Expected::exact(reference(&inputs[0], pool).0)],
        )
        .gradient(move |inputs, d_y| vec![Some(reference_gradient(&inputs[0], d_y, pool))])
    };
    let pool = |kernel, stride, padding| MaxPool2d { kernel, stride, padding };
    let stem = pool([3, 3], [2, 2], [1, 1]);
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        case(Shape::new(2, 9, 8, 8), Fill::Ties, stem),
        case(Shape::new(2, 7, 7, 13), unit, stem),
        case(Shape::new(1, 1, 1, 3), unit, stem),
        case(Shape::new(2, 7, 6, 8), Fill::Ties, pool([2, 2], [2, 2], [0, 0])),
        case(Shape::new(1, 6, 5, 13), Fill::Ties, pool([3, 3], [1, 1], [1, 1])),
        case(Shape::new(1, 11, 8, 3), Fill::Uniform(-2.0, -1.0), pool([5, 3], [2, 3], [2, 0])),
        case(Shape::new(2, 7, 9, 4), Fill::Extremes, pool([2, 2], [3, 4], [1, 1])),
        // A line for two workgroups; more lines than an adapter need take along one axis.
        case(Shape::new(1, 3, 70, 13), unit, stem),
        case(Shape::new(1, 131_073, 1, 2), unit, stem),
        Case { benchmark: true, ..case(Shape::new(8, 112, 112, 64), unit, stem) },
        Case { benchmark: true, for_gpus: true, ..case(Shape::new(64, 112, 112, 64), unit, stem) },
    ]
}

/// The maxima, and the index into `x` of each.
pub(super) fn reference(x: &Array, pool: MaxPool2d) -> (Array, Vec<usize>) {
    let MaxPool2d { kernel, stride, padding } = pool;
    let shape = pool.output_shape(x.shape).expect("cases have valid windows");
    let (mut y, mut winners) = (Array::zeros(shape), Vec::new());
    for (index, maximum) in y.data.iter_mut().enumerate() {
        let c = index % shape.c;
        let ow = index / shape.c % shape.w;
        let oh = index / shape.c / shape.w % shape.h;
        let n = index / shape.c / shape.w / shape.h;
        let mut winner = None;
        *maximum = f64::NEG_INFINITY;
        for r in 0..kernel[0] {
            for s in 0..kernel[1] {
                let Some(h) = (oh * stride[0] + r).checked_sub(padding[0]) else { continue };
                let Some(w) = (ow * stride[1] + s).checked_sub(padding[1]) else { continue };
                if h < x.shape.h && w < x.shape.w && x.data[x.at(n, h, w, c)] > *maximum {
                    winner = Some(x.at(n, h, w, c));
                    *maximum = x.data[x.at(n, h, w, c)];
                }
            }
        }
        winners.push(winner.expect("every window has a pixel"));
    }
    (y, winners)
}

pub(super) fn reference_gradient(x: &Array, d_y: &Array, pool: MaxPool2d) -> Expected {
    let (mut d_x, mut magnitudes) = (Array::zeros(x.shape), vec![0.0; x.data.len()]);
    for (&winner, d) in reference(x, pool).1.iter().zip(&d_y.data) {
        d_x.data[winner] += d;
        magnitudes[winner] += d.abs();
    }
    let windows = |axis: usize| pool.kernel[axis].div_ceil(pool.stride[axis]);
    Expected::sums(d_x, &magnitudes, windows(0) * windows(1))
}
