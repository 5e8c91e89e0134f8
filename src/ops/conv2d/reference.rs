//! The three passes in f64, naively, and what rounding may do to them.

use super::geometry::Geometry;
use super::{Conv2d, PASSES};
use crate::ops::case::{Array, Expected, Looser};
use crate::tensor::Shape;

/// Calls `visit` with the indices into x, w and y of every product of the convolution.
fn for_each_product(
    x: &Array,
    w: &Array,
    y: &Array,
    conv: Conv2d,
    mut visit: impl FnMut(usize, usize, usize),
) {
    for n in 0..y.shape.n {
        for oh in 0..y.shape.h {
            for ow in 0..y.shape.w {
                for r in 0..w.shape.n {
                    for s in 0..w.shape.h {
                        let h = (oh * conv.stride[0] + r).checked_sub(conv.padding[0]);
                        let v = (ow * conv.stride[1] + s).checked_sub(conv.padding[1]);
                        let (Some(h), Some(v)) = (h, v) else { continue };
                        if h >= x.shape.h || v >= x.shape.w {
                            continue;
                        }
                        for ci in 0..x.shape.c {
                            for co in 0..y.shape.c {
                                visit(x.at(n, h, v, ci), w.at(r, s, ci, co), y.at(n, oh, ow, co));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The output, naively.
pub(in crate::ops) fn reference(
    x: &Array,
    w: &Array,
    bias: Option<&Array>,
    conv: Conv2d,
) -> Expected {
    let geometry = Geometry::new(x.shape, w.shape, conv).expect("a case's shapes fit together");
    let mut y = Array::zeros(geometry.y);
    if let Some(bias) = bias {
        for row in y.data.chunks_exact_mut(bias.data.len()) {
            row.copy_from_slice(&bias.data);
        }
    }
    let mut magnitudes = y.map(f64::abs).data;
    let mut split = SplitErrors::new(x, w, y.data.len());
    let empty = Array::zeros(geometry.y);
    for_each_product(x, w, &empty, conv, |i, j, k| {
        y.data[k] += x.data[i] * w.data[j];
        magnitudes[k] += (x.data[i] * w.data[j]).abs();
        split.add(k, x.data[i], w.data[j]);
    });
    let expected = Expected::sums(y, &magnitudes, w.shape.n * w.shape.h * x.shape.c);
    let expected = split.allowed(expected, PASSES[0]);
    let mut bias_magnitude = bias.map_or_else(Vec::new, |bias| bias.map(f64::abs).data);
    bias_magnitude.resize(geometry.y.c, 0.0);
    match winograd_magnitudes(x, w, conv, &bias_magnitude) {
        Some(magnitudes) => expected.or_by(winograd(PASSES[0], &magnitudes, x.shape.c)),
        None => expected,
    }
}

/// The gradient by the input, naively.
pub(in crate::ops) fn reference_data(x: &Array, w: &Array, d_y: &Array, conv: Conv2d) -> Expected {
    let mut d_x = Array::zeros(x.shape);
    let mut magnitudes = vec![0.0; d_x.data.len()];
    let mut split = SplitErrors::new(w, d_y, d_x.data.len());
    for_each_product(x, w, d_y, conv, |i, j, k| {
        d_x.data[i] += w.data[j] * d_y.data[k];
        magnitudes[i] += (w.data[j] * d_y.data[k]).abs();
        split.add(i, w.data[j], d_y.data[k]);
    });
    let expected = Expected::sums(d_x, &magnitudes, w.shape.n * w.shape.h * d_y.shape.c);
    let expected = split.allowed(expected, PASSES[1]);
    // The convolution of d_y by the weight turned by half a circle, channels exchanged.
    let [r, s] = [w.shape.n, w.shape.h];
    let mut turned = Array::zeros(Shape::new(r, s, d_y.shape.c, x.shape.c));
    for (i, j) in (0..r).flat_map(|i| (0..s).map(move |j| (i, j))) {
        for (ci, co) in (0..x.shape.c).flat_map(|ci| (0..d_y.shape.c).map(move |co| (ci, co))) {
            let at = turned.at(r - 1 - i, s - 1 - j, co, ci);
            turned.data[at] = w.data[w.at(i, j, ci, co)];
        }
    }
    let padding = [(r - 1).checked_sub(conv.padding[0]), (s - 1).checked_sub(conv.padding[1])];
    let [Some(top), Some(left)] = padding else { return expected };
    let conv = Conv2d { padding: [top, left], ..conv };
    match winograd_magnitudes(d_y, &turned, conv, &vec![0.0; x.shape.c]) {
        Some(magnitudes) => expected.or_by(winograd(PASSES[1], &magnitudes, d_y.shape.c)),
        None => expected,
    }
}

/// The gradient by the weight, naively.
pub(in crate::ops) fn reference_weight(
    x: &Array,
    w: &Array,
    d_y: &Array,
    conv: Conv2d,
) -> Expected {
    let mut d_w = Array::zeros(w.shape);
    let mut magnitudes = vec![0.0; d_w.data.len()];
    let mut split = SplitErrors::new(x, d_y, d_w.data.len());
    for_each_product(x, w, d_y, conv, |i, j, k| {
        d_w.data[j] += x.data[i] * d_y.data[k];
        magnitudes[j] += (x.data[i] * d_y.data[k]).abs();
        split.add(j, x.data[i], d_y.data[k]);
    });
    split.allowed(Expected::sums(d_w, &magnitudes, d_y.shape.pixels()), PASSES[2])
}

/// The gradient by the bias, naively.
pub(in crate::ops) fn reference_bias(d_y: &Array) -> Expected {
    let mut d_b = Array::zeros(Shape::vector(d_y.shape.c));
    let mut magnitudes = vec![0.0; d_y.shape.c];
    for row in d_y.data.chunks_exact(d_y.shape.c) {
        for (c, d) in row.iter().enumerate() {
            d_b.data[c] += d;
            magnitudes[c] += d.abs();
        }
    }
    Expected::sums(d_b, &magnitudes, d_y.shape.pixels())
}

/// How far off sums of products are whose factors are split into two numbers of f16 each, as
/// `shaders/cooperative_tiles.wgsl` says.
struct SplitErrors {
    /// The largest number of either operand.
    largest: [f64; 2],
    /// Of each sum.
    errors: Vec<f64>,
}

impl SplitErrors {
    fn new(a: &Array, b: &Array, sums: usize) -> Self {
        let largest = |array: &Array| array.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        Self { largest: [largest(a), largest(b)], errors: vec![0.0; sums] }
    }

    /// Counts a product.
    fn add(&mut self, sum: usize, a: f64, b: f64) {
        let [largest_a, largest_b] = self.largest;
        let flushed = largest_a * b.abs() + a.abs() * largest_b;
        self.errors[sum] += 3.0 * 2f64.powi(-22) * (a * b).abs() + 2f64.powi(-28) * flushed;
    }

    /// Allows kernels of `pass` that split numbers what was counted, besides what is expected.
    fn allowed(self, expected: Expected, pass: &'static str) -> Expected {
        let pairs = expected.allowance.iter().zip(&self.errors);
        let allowance = pairs.map(|(allowance, error)| allowance + error).collect();
        expected.or_by(Looser { pass, kernels: "split", allowance })
    }
}

/// What the kernels of `pass` that go by Winograd's algorithm may be off by: sums over the channels of
/// products of transformed numbers, a dozen roundings before and after.
fn winograd(pass: &'static str, magnitudes: &[f64], channels: usize) -> Looser {
    let terms = channels + 16;
    Looser { pass, kernels: "winograd", allowance: Expected::allowances(magnitudes, terms) }
}

/// What Winograd's F(2×2, 3×3) would give if every number and every coefficient were positive: the
/// size of what it adds up to each output. None where it does not apply.
///
/// An output depends on all 16 inputs of its patch there, not on its own nine alone.
fn winograd_magnitudes(
    x: &Array,
    w: &Array,
    conv: Conv2d,
    bias_magnitude: &[f64],
) -> Option<Vec<f64>> {
    const B: [[f64; 4]; 4] =
        [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]];
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5; 3], [0.5; 3], [0.0, 0.0, 1.0]];
    const A: [[f64; 4]; 2] = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]];
    let [r, s] = [w.shape.n, w.shape.h];
    if [r, s] != [3, 3] || conv.stride != [1, 1] {
        return None;
    }
    let [top, left] = conv.padding;
    let [oh, ow] = [(x.shape.h + 2 * top).checked_sub(2)?, (x.shape.w + 2 * left).checked_sub(2)?];
    let (c_in, c_out) = (x.shape.c, w.shape.c);
    let y = Array::zeros(Shape::new(x.shape.n, oh, ow, c_out));
    let mut sizes: Vec<f64> = bias_magnitude.iter().copied().cycle().take(y.data.len()).collect();
    let mut u = vec![0.0; 16 * c_in * c_out];
    for (position, u) in u.chunks_exact_mut(c_in * c_out).enumerate() {
        let [down, across] = [G[position / 4], G[position % 4]];
        for (index, u) in u.iter_mut().enumerate() {
            let (ci, co) = (index / c_out, index % c_out);
            let taps = (0..9).map(|tap| (tap / 3, tap % 3));
            *u = taps.map(|(i, j)| down[i] * across[j] * w.data[w.at(i, j, ci, co)].abs()).sum();
        }
    }
    for (n, th) in (0..x.shape.n).flat_map(|n| (0..oh.div_ceil(2)).map(move |th| (n, th))) {
        for tw in 0..ow.div_ceil(2) {
            let size = |i: usize, j: usize, ci: usize| {
                let at = ((2 * th + i).checked_sub(top), (2 * tw + j).checked_sub(left));
                let (Some(h), Some(v)) = at else { return 0.0 };
                let inside = h < x.shape.h && v < x.shape.w;
                if inside { x.data[x.at(n, h, v, ci)].abs() } else { 0.0 }
            };
            for position in 0..16 {
                let [down, across] = [B[position / 4], B[position % 4]];
                for ci in 0..c_in {
                    let patch = (0..16).map(|at| (at / 4, at % 4));
                    let v: f64 = patch.map(|(i, j)| down[i] * across[j] * size(i, j, ci)).sum();
                    for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        let (h, v_at) = (2 * th + a, 2 * tw + b);
                        let factor = A[a][position / 4] * A[b][position % 4];
                        if factor == 0.0 || h >= oh || v_at >= ow {
                            continue;
                        }
                        let row = y.at(n, h, v_at, 0);
                        let weights = &u[(position * c_in + ci) * c_out..][..c_out];
                        for (size, u) in sizes[row..row + c_out].iter_mut().zip(weights) {
                            *size += factor * v * u;
                        }
                    }
                }
            }
        }
    }
    Some(sizes)
}
