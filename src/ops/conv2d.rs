//! Two-dimensional convolution (cross-correlation, as PyTorch's), channels last.
//!
//! y[n, oh, ow, co] = b[co] + Σ_(r, s, ci) x[n, oh·stride + r − pad, ow·stride + s − pad, ci] · w[r, s, ci, co]
//!
//! d_x[n, h, w, ci]  = Σ d_y · w over the (r, s, co) whose output pixel read (h, w);
//! d_w[r, s, ci, co] = Σ_(n, oh, ow) x · d_y;  d_b[co] = Σ_(n, oh, ow) d_y.
//!
//! All three are matrix products whose left operand is gathered on the fly (implicit GEMM). A weight
//! has the shape `(r, s, c_in, c_out)` with c_in a multiple of four; rows beyond the input's channels
//! meet zeros.

use super::Op;
use super::batch_norm::BatchStats;
use super::case::{Array, Case, Expected, Fill, Input};
use crate::autograd::{Backward, Grads, Slot, Tape, Var};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};
use crate::{Error, Result};

static FORWARD_LANES: Shader = shader!("conv2d_forward_lanes");
static FORWARD_TILED: Shader = shader!("conv2d_forward_tiled");
static BACKWARD_DATA_LANES: Shader = shader!("conv2d_backward_data_lanes");
static BACKWARD_DATA_TILED: Shader = shader!("conv2d_backward_data_tiled");
static BACKWARD_WEIGHT_LANES: Shader = shader!("conv2d_backward_weight_lanes");
static BACKWARD_WEIGHT_TILED: Shader = shader!("conv2d_backward_weight_tiled");
static BACKWARD_WEIGHT_SUM: Shader = shader!("conv2d_backward_weight_sum");
static BACKWARD_BIAS: Shader = shader!("conv2d_backward_bias");

pub(super) const OP: Op = Op {
    name: "conv2d",
    shaders: &[
        &FORWARD_LANES,
        &FORWARD_TILED,
        &BACKWARD_DATA_LANES,
        &BACKWARD_DATA_TILED,
        &BACKWARD_WEIGHT_LANES,
        &BACKWARD_WEIGHT_TILED,
        &BACKWARD_WEIGHT_SUM,
        &BACKWARD_BIAS,
    ],
    cases,
};

/// The passes whose kernel is chosen.
pub(super) const PASSES: &[&str] =
    &["conv2d_forward", "conv2d_backward_data", "conv2d_backward_weight"];

/// Stride and padding of a convolution, height first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// Zeros around the image.
    pub padding: [usize; 2],
}

/// Parameters of the convolution kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    /// Input channels over four.
    ci4: u32,
    oh: u32,
    ow: u32,
    /// Output channels over four.
    co4: u32,
    r: u32,
    s: u32,
    stride: [u32; 2],
    padding: [u32; 2],
    /// Backward by data: whether to add to what the output holds.
    accumulate: u32,
    /// Backward by weight: parts the sum over output image rows is split into, and rows of each.
    splits: u32,
    chunk: u32,
}

/// Sizes of one convolution, checked.
#[derive(Clone, Copy)]
struct Geometry {
    x: Shape,
    weight: Shape,
    y: Shape,
    conv: Conv2d,
}

impl Geometry {
    fn new(x: Shape, weight: Shape, conv: Conv2d) -> Result<Self> {
        let Shape { n: r, h: s, w: c_in, c: c_out } = weight;
        let error = |what: String| Err(Error::shape("conv2d", what));
        if c_in != x.c.next_multiple_of(4) {
            return error(format!("an input {x} does not meet a weight {weight} (r, s, in, out)"));
        }
        if conv.stride.contains(&0) {
            return error("a stride of 0".into());
        }
        let reach = [x.h + 2 * conv.padding[0], x.w + 2 * conv.padding[1]];
        if reach[0] < r || reach[1] < s {
            return error(format!("a window {r}x{s} is larger than the padded input {x}"));
        }
        let y = Shape::new(
            x.n,
            (reach[0] - r) / conv.stride[0] + 1,
            (reach[1] - s) / conv.stride[1] + 1,
            c_out,
        );
        Ok(Self { x, weight, y, conv })
    }

    fn params(&self) -> Params {
        let Self { x, weight, y, conv } = self;
        Params {
            n: x.n as u32,
            h: x.h as u32,
            w: x.w as u32,
            ci4: x.c4() as u32,
            oh: y.h as u32,
            ow: y.w as u32,
            co4: y.c4() as u32,
            r: weight.n as u32,
            s: weight.h as u32,
            stride: conv.stride.map(|s| s as u32),
            padding: conv.padding.map(|p| p as u32),
            accumulate: 0,
            splits: 1,
            chunk: (x.n * y.h) as u32,
        }
    }

    /// Multiplications and additions of each of the three passes.
    fn flops(&self) -> f64 {
        2.0 * self.y.len() as f64 * (self.weight.n * self.weight.h * self.x.c) as f64
    }
}

/// A kernel and the tile of the product that one workgroup (or eight lanes) computes.
#[derive(Clone, Copy)]
enum Tiling {
    /// Registers alone: rows × vec4 columns a lane, loads shared by `lanes` lanes.
    Lanes { lanes: u32, rows: u32, columns: u32 },
    /// Workgroup memory: rows × columns of a workgroup.
    Tiled { rows: u32, columns: u32 },
}

const TILED_64: (&str, Tiling) = ("tiled 64x64", Tiling::Tiled { rows: 64, columns: 64 });
const TILED_128: (&str, Tiling) = ("tiled 128x128", Tiling::Tiled { rows: 128, columns: 128 });
const TILED_128_64: (&str, Tiling) = ("tiled 128x64", Tiling::Tiled { rows: 128, columns: 64 });

/// Workgroups below which a smaller tile keeps more of a GPU busy than a larger one.
const BUSY: usize = 256;

/// Tilings for a product of `rows` × `columns`, the best for this adapter first.
fn tilings(
    gpu: &Gpu,
    rows: usize,
    columns: usize,
    lanes: &[(&'static str, Tiling)],
    registers: (&'static str, Tiling),
) -> Vec<(&'static str, Tiling)> {
    let shared = if gpu.subgroup_size() == Some(8) { lanes } else { &[] };
    let count = |tile: usize, width: usize| rows.div_ceil(tile) * columns.div_ceil(width);
    let mut tiled = vec![TILED_64];
    if count(128, 64) >= BUSY {
        tiled.insert(0, TILED_128_64);
    }
    if columns > 64 && count(128, 128) >= BUSY {
        tiled.insert(0, TILED_128);
    }
    let all = [TILED_128, TILED_128_64].into_iter().filter(|t| !tiled.iter().any(|u| u.0 == t.0));
    let all: Vec<_> = tiled.iter().copied().chain(all).collect();
    match gpu.class() {
        AdapterClass::Software => [shared, &[registers], &all].concat(),
        _ => [&all[..], &[registers], shared].concat(),
    }
}

const LANES_16X2: (&str, Tiling) = ("lanes 16x2", Tiling::Lanes { lanes: 8, rows: 16, columns: 2 });
const LANES_32X1: (&str, Tiling) = ("lanes 32x1", Tiling::Lanes { lanes: 8, rows: 32, columns: 1 });
const FORWARD_TILINGS: &[(&str, Tiling)] = &[LANES_16X2, LANES_32X1];
const DATA_TILINGS: &[(&str, Tiling)] = &[LANES_32X1, LANES_16X2];
const REGISTERS: (&str, Tiling) =
    ("registers 8x2", Tiling::Lanes { lanes: 1, rows: 8, columns: 2 });
// Here rows are groups of four rows a lane.
const WEIGHT_TILINGS: &[(&str, Tiling)] = &[
    ("lanes 1x2", Tiling::Lanes { lanes: 8, rows: 1, columns: 2 }),
    ("lanes 1x1", Tiling::Lanes { lanes: 8, rows: 1, columns: 1 }),
];
const WEIGHT_REGISTERS: (&str, Tiling) =
    ("registers 2x2", Tiling::Lanes { lanes: 1, rows: 2, columns: 2 });

/// y = x ∗ weight + bias.
///
/// `weight` is `(r, s, c_in, c_out)`, `bias` a vector of c_out.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit together or the window exceeds the padded input.
pub fn conv2d(tape: &Tape, x: &Var, weight: &Var, bias: Option<&Var>, conv: Conv2d) -> Result<Var> {
    let geometry = Geometry::new(x.shape(), weight.shape(), conv)?;
    if let Some(bias) = bias
        && bias.shape() != Shape::vector(geometry.y.c)
    {
        let what = format!("a bias {} for an output {}", bias.shape(), geometry.y);
        return Err(Error::shape("conv2d", what));
    }
    let epilogue = bias.map_or(Epilogue::None, |bias| Epilogue::Bias(bias.value()));
    let y = forward(tape.gpu(), &geometry, x, weight, epilogue);
    Ok(attach(tape, geometry, x, weight, bias, y))
}

/// [`conv2d`] without bias, with the statistics of each channel that [`super::batch_norm`] needs in
/// training gathered on the way.
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_with_stats(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
) -> Result<(Var, BatchStats)> {
    let geometry = Geometry::new(x.shape(), weight.shape(), conv)?;
    let gpu = tape.gpu();
    let (_, tile) = forward_kernel(gpu, &geometry);
    let stats = BatchStats::empty(gpu, geometry.y, tile);
    let y = forward(gpu, &geometry, x, weight, Epilogue::Stats(&stats));
    Ok((attach(tape, geometry, x, weight, None, y), stats))
}

fn attach(
    tape: &Tape,
    geometry: Geometry,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    y: Tensor,
) -> Var {
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    tape.output("conv2d", y, &inputs, || Conv2dBackward {
        geometry,
        x: (x.slot(), weight.needs_grad().then(|| x.value().clone())),
        weight: (weight.slot(), weight.value().clone()),
        bias: bias.map(Var::slot),
    })
}

/// x ∗ weight, then scale·y + shift by a batch norm's coefficients, the residual added, rectified.
///
/// # Errors
/// Those of [`conv2d`].
pub(super) fn conv2d_affine(
    gpu: &Gpu,
    x: &Var,
    weight: &Var,
    conv: Conv2d,
    affine: Affine<'_>,
) -> Result<Tensor> {
    let geometry = Geometry::new(x.shape(), weight.shape(), conv)?;
    if let Some(residual) = affine.residual
        && residual.shape() != geometry.y
    {
        let what = format!("a residual {} joins {}", residual.shape(), geometry.y);
        return Err(Error::shape("conv2d", what));
    }
    Ok(forward(gpu, &geometry, x, weight, Epilogue::Affine(affine)))
}

/// What follows a convolution in evaluation.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    /// Scale and shift of each channel.
    pub coefficients: &'a Slice,
    /// Added after them.
    pub residual: Option<&'a Tensor>,
    /// Whether max(·, 0) comes last.
    pub relu: bool,
}

/// What a forward kernel does with the sums before it writes them.
#[derive(Clone, Copy)]
enum Epilogue<'a> {
    None,
    Bias(&'a Tensor),
    Stats(&'a BatchStats),
    Affine(Affine<'a>),
}

/// The kernel of a forward pass without its epilogue, and the output pixels of its tile.
fn forward_kernel(gpu: &Gpu, geometry: &Geometry) -> ((Kernel, usize), usize) {
    let (rows, columns) = (geometry.y.pixels(), geometry.y.c);
    let candidates = tilings(gpu, rows, columns, FORWARD_TILINGS, REGISTERS);
    match gpu.choose_kernel(PASSES[0], &candidates) {
        Tiling::Lanes { lanes, rows: tile, columns: width } => {
            let kernel = Kernel::new(&FORWARD_LANES)
                .with("LANES", lanes)
                .with("ROWS", tile)
                .with("COLS", width);
            ((kernel, lane_groups(rows, tile, geometry.y.c4(), width)), tile as usize)
        }
        Tiling::Tiled { rows: tile, columns: width } => {
            let kernel = Kernel::new(&FORWARD_TILED).with("BM", tile).with("BN", width);
            let groups = rows.div_ceil(tile as usize) * columns.div_ceil(width as usize);
            ((kernel, groups), tile as usize)
        }
    }
}

fn forward(
    gpu: &Gpu,
    geometry: &Geometry,
    x: &Var,
    weight: &Var,
    epilogue: Epilogue<'_>,
) -> Tensor {
    let ((kernel, groups), _) = forward_kernel(gpu, geometry);
    let y = Tensor::empty(gpu, geometry.y);
    let mut slices = vec![x.value().memory(), weight.value().memory(), y.memory()];
    let kernel = match epilogue {
        Epilogue::None => kernel,
        Epilogue::Bias(bias) => {
            slices.push(bias.memory());
            kernel.with("BIAS", 1)
        }
        Epilogue::Stats(stats) => {
            slices.push(stats.memory());
            kernel.with("STATS", 1)
        }
        Epilogue::Affine(Affine { coefficients, residual, relu }) => {
            slices.push(coefficients);
            slices.extend(residual.map(Tensor::memory));
            kernel
                .with("AFFINE", 1)
                .with("RESIDUAL", residual.is_some().into())
                .with("RELU", relu.into())
        }
    };
    gpu.run(kernel, &geometry.params(), &slices, gpu.groups(groups));
    y
}

/// Workgroups of 64 threads for tiles that eight lanes compute.
fn lane_groups(rows: usize, tile: u32, c4: usize, width: u32) -> usize {
    (rows.div_ceil(tile as usize) * c4.div_ceil(8 * width as usize)).div_ceil(8)
}

struct Conv2dBackward {
    geometry: Geometry,
    /// The input's value is kept only if the weight needs it.
    x: (Slot, Option<Tensor>),
    weight: (Slot, Tensor),
    bias: Option<Slot>,
}

impl Backward for Conv2dBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        if let Some(target) = self.bias.and_then(|bias| grads.target(bias)) {
            backward_bias(grads.gpu(), &d_y, &target.tensor, target.accumulate);
        }
        if let (Some(x), Some(target)) = (&self.x.1, grads.target(self.weight.0)) {
            backward_weight(
                grads.gpu(),
                &self.geometry,
                x,
                &d_y,
                &target.tensor,
                target.accumulate,
            );
        }
        if let Some(target) = grads.target(self.x.0) {
            let (gpu, weight) = (grads.gpu(), &self.weight.1);
            backward_data(gpu, &self.geometry, weight, &d_y, &target.tensor, target.accumulate);
        }
        Ok(())
    }
}

fn backward_bias(gpu: &Gpu, d_y: &Tensor, d_b: &Tensor, accumulate: bool) {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct BiasParams {
        rows: u32,
        co4: u32,
        accumulate: u32,
    }
    let shape = d_y.shape();
    let params = BiasParams {
        rows: shape.pixels() as u32,
        co4: shape.c4() as u32,
        accumulate: accumulate.into(),
    };
    let slices = [d_y.memory(), d_b.memory()];
    gpu.run(Kernel::new(&BACKWARD_BIAS), &params, &slices, gpu.groups(shape.c4()));
}

fn backward_data(
    gpu: &Gpu,
    geometry: &Geometry,
    weight: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
    accumulate: bool,
) {
    let Geometry { x, conv, .. } = geometry;
    let [stride_h, stride_w] = conv.stride;
    // The largest class of input pixels that share their taps.
    let rows = x.n * x.h.div_ceil(stride_h) * x.w.div_ceil(stride_w);
    let candidates = tilings(gpu, rows, x.c, DATA_TILINGS, REGISTERS);
    let (kernel, groups) = match gpu.choose_kernel(PASSES[1], &candidates) {
        Tiling::Lanes { lanes, rows: tile, columns: width } => (
            Kernel::new(&BACKWARD_DATA_LANES)
                .with("LANES", lanes)
                .with("ROWS", tile)
                .with("COLS", width),
            lane_groups(rows, tile, x.c4(), width),
        ),
        Tiling::Tiled { rows: tile, columns: width } => (
            Kernel::new(&BACKWARD_DATA_TILED).with("BM", tile).with("BN", width),
            rows.div_ceil(tile as usize) * x.c.div_ceil(width as usize),
        ),
    };
    let params = Params { accumulate: accumulate.into(), ..geometry.params() };
    let [groups_x, groups_y, _] = gpu.groups(groups);
    let groups = [groups_x, groups_y, (stride_h * stride_w) as u32];
    gpu.run(kernel, &params, &[d_y.memory(), weight.memory(), d_x.memory()], groups);
}

fn backward_weight(
    gpu: &Gpu,
    geometry: &Geometry,
    x: &Tensor,
    d_y: &Tensor,
    d_w: &Tensor,
    accumulate: bool,
) {
    let Geometry { weight, y, .. } = geometry;
    let quads = weight.n * weight.h * geometry.x.c4();
    let candidates = tilings(gpu, quads * 4, y.c, WEIGHT_TILINGS, WEIGHT_REGISTERS);
    let (kernel, tiles, tiles_a_group) = match gpu.choose_kernel(PASSES[2], &candidates) {
        Tiling::Lanes { lanes, rows, columns } => (
            Kernel::new(&BACKWARD_WEIGHT_LANES)
                .with("LANES", lanes)
                .with("ROWQ", rows)
                .with("COLS", columns),
            quads.div_ceil((lanes * rows) as usize) * y.c4().div_ceil(8 * columns as usize),
            8,
        ),
        Tiling::Tiled { rows, columns } => (
            Kernel::new(&BACKWARD_WEIGHT_TILED).with("BM", rows).with("BN", columns),
            (quads * 4).div_ceil(rows as usize) * y.c.div_ceil(columns as usize),
            1,
        ),
    };
    // Enough workgroups to keep the adapter busy, as long as a split still sums a few dozen pixels.
    let wanted = match gpu.class() {
        AdapterClass::Software => 16 * tiles_a_group,
        _ => 2 * BUSY,
    };
    let image_rows = y.n * y.h;
    let most = (y.pixels() / 64).clamp(1, image_rows);
    let splits = wanted.div_ceil(tiles).min(most);
    let chunk = image_rows.div_ceil(splits);
    let splits = image_rows.div_ceil(chunk);
    let params = Params { splits: splits as u32, chunk: chunk as u32, ..geometry.params() };
    let groups = gpu.groups((tiles * splits).div_ceil(tiles_a_group));
    if splits == 1 && !accumulate {
        gpu.run(kernel, &params, &[x.memory(), d_y.memory(), d_w.memory()], groups);
        return;
    }
    let part = gpu.lease(weight.bytes() * splits as u64);
    gpu.run(kernel, &params, &[x.memory(), d_y.memory(), &part], groups);

    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct SumParams {
        count: u32,
        splits: u32,
        accumulate: u32,
    }
    let count = weight.vec4s();
    let params =
        SumParams { count: count as u32, splits: splits as u32, accumulate: accumulate.into() };
    let kernel = Kernel::new(&BACKWARD_WEIGHT_SUM);
    gpu.run(kernel, &params, &[&part, d_w.memory()], gpu.groups(count.div_ceil(256)));
}

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
pub(super) fn reference(x: &Array, w: &Array, bias: Option<&Array>, conv: Conv2d) -> Expected {
    let geometry = Geometry::new(x.shape, w.shape, conv).expect("a case's shapes fit together");
    let mut y = Array::zeros(geometry.y);
    if let Some(bias) = bias {
        for row in y.data.chunks_exact_mut(bias.data.len()) {
            row.copy_from_slice(&bias.data);
        }
    }
    let mut magnitudes = y.map(f64::abs).data;
    let empty = Array::zeros(geometry.y);
    for_each_product(x, w, &empty, conv, |i, j, k| {
        y.data[k] += x.data[i] * w.data[j];
        magnitudes[k] += (x.data[i] * w.data[j]).abs();
    });
    Expected::sums(y, &magnitudes, w.shape.n * w.shape.h * x.shape.c)
}

/// The gradient by the input, naively.
pub(super) fn reference_data(x: &Array, w: &Array, d_y: &Array, conv: Conv2d) -> Expected {
    let mut d_x = Array::zeros(x.shape);
    let mut magnitudes = vec![0.0; d_x.data.len()];
    for_each_product(x, w, d_y, conv, |i, j, k| {
        d_x.data[i] += w.data[j] * d_y.data[k];
        magnitudes[i] += (w.data[j] * d_y.data[k]).abs();
    });
    Expected::sums(d_x, &magnitudes, w.shape.n * w.shape.h * d_y.shape.c)
}

/// The gradient by the weight, naively.
pub(super) fn reference_weight(x: &Array, w: &Array, d_y: &Array, conv: Conv2d) -> Expected {
    let mut d_w = Array::zeros(w.shape);
    let mut magnitudes = vec![0.0; d_w.data.len()];
    for_each_product(x, w, d_y, conv, |i, j, k| {
        d_w.data[j] += x.data[i] * d_y.data[k];
        magnitudes[j] += (x.data[i] * d_y.data[k]).abs();
    });
    Expected::sums(d_w, &magnitudes, d_y.shape.pixels())
}

/// The gradient by the bias, naively.
pub(super) fn reference_bias(d_y: &Array) -> Expected {
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

fn cases() -> Vec<Case> {
    let small = [
        // (x, window, c_out, stride, padding): odd sizes, tails in every dimension, batch 1.
        (Shape::new(2, 9, 7, 16), [3, 3], 24, [1, 1], [1, 1]),
        (Shape::new(1, 8, 8, 64), [3, 3], 64, [1, 1], [1, 1]),
        (Shape::new(2, 9, 11, 8), [3, 3], 20, [2, 2], [1, 1]),
        (Shape::new(3, 8, 8, 32), [3, 3], 40, [2, 2], [1, 1]),
        (Shape::new(2, 17, 15, 3), [7, 7], 8, [2, 2], [3, 3]),
        (Shape::new(2, 7, 6, 20), [1, 1], 36, [2, 2], [0, 0]),
        (Shape::new(5, 1, 1, 13), [1, 1], 10, [1, 1], [0, 0]),
        (Shape::new(1, 5, 9, 5), [2, 3], 6, [3, 1], [0, 2]),
        (Shape::new(1, 1, 1, 1), [3, 3], 1, [1, 1], [1, 1]),
        (Shape::new(1, 6, 6, 140), [1, 1], 136, [1, 1], [0, 0]),
        (Shape::new(4, 2, 2, 8), [3, 3], 8, [3, 3], [1, 1]),
    ];
    let small = small.into_iter().map(|(x, window, c_out, stride, padding)| {
        case(x, window, c_out, Conv2d { stride, padding }, false)
    });
    let with_bias =
        case(Shape::new(2, 6, 5, 9), [3, 3], 11, Conv2d { stride: [1, 1], padding: [1, 1] }, true);
    let mut extremes =
        case(Shape::new(1, 5, 5, 8), [3, 3], 8, Conv2d { stride: [1, 1], padding: [1, 1] }, false);
    extremes.inputs[0].fill = Fill::Extremes;
    extremes.name += " extremes";
    // ResNet-18 at 64 px, batch 16, as the benchmark runs it.
    let large = [
        (64, 3, 7, 64, 2),
        (16, 64, 3, 64, 1),
        (16, 64, 3, 128, 2),
        (16, 64, 1, 128, 2),
        (8, 128, 3, 128, 1),
        (8, 128, 3, 256, 2),
        (4, 256, 3, 256, 1),
        (4, 256, 3, 512, 2),
        (2, 512, 3, 512, 1),
    ];
    let large = large.into_iter().map(|(size, c_in, window, c_out, stride)| {
        let conv = Conv2d { stride: [stride; 2], padding: [window / 2; 2] };
        let x = Shape::new(16, size, size, c_in);
        Case { benchmark: true, ..case(x, [window; 2], c_out, conv, false) }
    });
    small.chain([with_bias, extremes]).chain(large).collect()
}

fn case(x: Shape, window: [usize; 2], c_out: usize, conv: Conv2d, bias: bool) -> Case {
    let weight = Shape::new(window[0], window[1], x.c.next_multiple_of(4), c_out);
    let mut inputs = vec![Input::variable(x), Input::variable(weight).filled(Fill::Channels(x.c))];
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
