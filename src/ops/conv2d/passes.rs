//! The three passes, recorded: which kernel, what it binds, and how many workgroups.

use super::epilogue::Epilogue;
use super::estimate::{LongSums, most_parts};
use super::geometry::{FEW_PLACES, Geometry, Params};
use super::kernels::{self, Method};
use super::sharing::{BUSY, Parts, Sharing, sum};
use super::tiling::{Operand, Tiling};
use super::winograd::Winograd;
use super::{BACKWARD_BIAS, BACKWARD_DATA, BACKWARD_WEIGHT, FORWARD, PEAKS};
use crate::autograd::Target;
use crate::gpu::{AdapterClass, Gpu, Kernel, Slice};
use crate::tensor::Tensor;

/// Records the forward pass.
pub fn forward(
    gpu: &Gpu,
    geometry: &Geometry,
    method: Method,
    operands: [&Operand; 2],
    epilogue: Epilogue<'_>,
) -> Tensor {
    let (y, parts) = forward_in_parts(gpu, geometry, method, operands, epilogue);
    if let Some(parts) = parts {
        sum(gpu, &parts, &y, epilogue);
    }
    y
}

/// Records the forward pass but for adding up parts: where there are any, the output is yet to be written
/// and the epilogue yet to be done.
pub fn forward_in_parts(
    gpu: &Gpu,
    geometry: &Geometry,
    method: Method,
    operands @ [x, weight]: [&Operand; 2],
    epilogue: Epilogue<'_>,
) -> (Tensor, Option<Parts>) {
    let y = Tensor::empty_as(gpu, geometry.y, geometry.dtype);
    let tiling = match method {
        Method::Winograd(tiling) => {
            let winograd = Winograd::forward(geometry).expect("offered where it applies");
            winograd.run(gpu, tiling, x.tensor(), weight.tensor(), &y, epilogue);
            return (y, None);
        }
        Method::Direct(tiling) => tiling,
    };
    let sharing = forward_sharing(geometry, tiling);
    let parts = sharing.memory(gpu, geometry.y);
    let kernel = tiling.kernel_for(&FORWARD, geometry).half(geometry.dtype.is_half());
    let mut slices = vec![x.read_by(tiling, gpu), weight.read_by(tiling, gpu)];
    slices.push(parts.as_ref().unwrap_or(y.memory()));
    let kernel = match &parts {
        Some(_) => kernel.with("SHARED", 1),
        None => epilogue.attach(kernel, &mut slices),
    };
    let peaks = peaks(gpu, tiling, operands);
    slices.extend(&peaks);
    let params = Params { epsilon: epilogue.epsilon(), ..sharing.params(&tiling.seen(geometry)) };
    let tiles = tiling.count_of(geometry.y);
    gpu.run(kernel, &params, &slices, gpu.groups(tiles * sharing.parts));
    (y, parts.map(|memory| Parts { memory, count: sharing.parts }))
}

/// How workgroups share the sums of the forward pass.
pub fn forward_sharing(geometry: &Geometry, tiling: Tiling) -> Sharing {
    let Geometry { x, weight, y, .. } = tiling.seen(geometry);
    tiling.share(tiling.count_of(y), weight.n * weight.h * x.c4())
}

/// Finds what a kernel that splits numbers must know of the sizes of both operands' numbers; nothing for
/// other kernels.
fn peaks(gpu: &Gpu, tiling: Tiling, operands: [&Operand; 2]) -> Option<Slice> {
    /// The shader's `PEAKS`, of each operand.
    const PEAKS_OF_EACH: u32 = 256;
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct PeaksParams {
        a: u32,
        b: u32,
    }
    if !tiling.is_split() {
        return None;
    }
    let [a, b] = operands.map(Operand::tensor);
    let [of_a, of_b] = [a, b].map(|tensor| tensor.shape().vec4s() as u32);
    let peaks = gpu.lease(2 * u64::from(PEAKS_OF_EACH) * 4);
    let params = PeaksParams { a: of_a, b: of_b };
    let slices = [a.memory(), b.memory(), &peaks];
    gpu.run(Kernel::new(&PEAKS), &params, &slices, [PEAKS_OF_EACH, 2, 1]);
    Some(peaks)
}

/// Records the gradient by the bias.
pub fn backward_bias(gpu: &Gpu, d_y: &Tensor, Target { tensor: d_b, accumulate }: &Target) {
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
        accumulate: (*accumulate).into(),
    };
    let slices = [d_y.memory(), d_b.memory()];
    let kernel = Kernel::new(&BACKWARD_BIAS).half(d_y.dtype().is_half());
    gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
}

/// Records the gradient by the input but for adding up parts.
#[must_use]
pub fn backward_data(
    gpu: &Gpu,
    geometry: &Geometry,
    operands @ [d_y, weight]: [&Operand; 2],
    Target { tensor: d_x, accumulate }: &Target,
) -> Option<Parts> {
    let (Geometry { x, conv, .. }, accumulate) = (geometry, *accumulate);
    let [stride_h, stride_w] = conv.stride;
    // The largest class of input pixels that share their taps.
    let rows = x.n * x.h.div_ceil(stride_h) * x.w.div_ceil(stride_w);
    let tiling = match kernels::backward_data(gpu, geometry, rows) {
        Method::Winograd(tiling) => {
            let winograd = Winograd::backward_data(geometry).expect("offered where it applies");
            let epilogue = if accumulate { Epilogue::Accumulate } else { Epilogue::None };
            winograd.run(gpu, tiling, d_y.tensor(), weight.tensor(), d_x, epilogue);
            return None;
        }
        Method::Direct(tiling) => tiling,
    };
    let kernel = tiling.kernel(&BACKWARD_DATA).half(geometry.dtype.is_half());
    if tiling.has_places() {
        let kernel = kernel.with("DATA", 1).with("ACCUMULATE", accumulate.into());
        let groups = gpu.groups(tiling.count_of(*x));
        let slices = [d_y.tensor().memory(), weight.tensor().memory(), d_x.memory()];
        gpu.run(kernel, &geometry.turned().params(), &slices, groups);
        return None;
    }
    let classes = stride_h * stride_w;
    let taps = geometry.weight.n.div_ceil(stride_h) * geometry.weight.h.div_ceil(stride_w);
    let tiles = tiling.count(rows, x.c);
    let sharing = tiling.share(classes * tiles, taps * geometry.y.c4());
    let parts = sharing.memory(gpu, *x);
    let params = Params {
        accumulate: (accumulate && parts.is_none()).into(),
        images_first: (rows <= FEW_PLACES * x.n).into(),
        ..sharing.params(geometry)
    };
    // Windows of one pixel stand on pixels of the first class alone.
    let of_one_pixel = geometry.weight.n * geometry.weight.h == 1 && conv.padding == [0, 0];
    let classes = if of_one_pixel && parts.is_none() { 1 } else { classes };
    if classes < stride_h * stride_w && !accumulate {
        gpu.clear(d_x.memory());
    }
    let [groups_x, groups_y, _] = gpu.groups(tiles * sharing.parts);
    let groups = [groups_x, groups_y, classes as u32];
    let peaks = peaks(gpu, tiling, operands);
    let mut slices = vec![d_y.read_by(tiling, gpu), weight.read_by(tiling, gpu)];
    slices.push(parts.as_ref().unwrap_or(d_x.memory()));
    slices.extend(&peaks);
    let kernel = match tiling.is_on_units() {
        true => kernel.with("ACCUMULATE", (accumulate && parts.is_none()).into()),
        false => kernel,
    };
    gpu.run(kernel.with("SHARED", parts.is_some().into()), &params, &slices, groups);
    parts.map(|memory| Parts { memory, count: sharing.parts })
}

/// Records the gradient by the weight but for adding up parts.
#[must_use]
pub fn backward_weight(
    gpu: &Gpu,
    geometry: &Geometry,
    operands: [&Operand; 2],
    Target { tensor: d_w, accumulate }: &Target,
) -> Option<Parts> {
    let (Geometry { weight, y, .. }, accumulate) = (geometry, *accumulate);
    let quads = weight.n * weight.h * geometry.x.c4();
    let image_rows = y.n * y.h;
    let tiling = kernels::backward_weight(gpu, geometry, quads);
    let kernel = tiling.kernel_for(&BACKWARD_WEIGHT, geometry).half(geometry.dtype.is_half());
    let kernel = tiling.storing(gpu, y.c, kernel);
    let seen = tiling.seen(geometry);
    let tiles = tiling.count(seen.weight.n * seen.weight.h * seen.weight.w, y.c);
    // Enough workgroups to keep the adapter busy: processors seldom have more than 32 cores, and every part costs
    // them stores.
    let splits = match gpu.class() {
        AdapterClass::Software => 32_usize.div_ceil(tiles),
        _ if tiling.is_on_units() => LongSums::of(&seen).estimate(tiling).parts,
        // Not more workgroups than fill a GPU evenly, but two parts even of large products.
        _ => (2 * BUSY / tiles).max((2 * BUSY).div_ceil(tiles).min(2)),
    };
    let splits = splits.min(most_parts(geometry));
    let chunk = image_rows.div_ceil(splits);
    let splits = image_rows.div_ceil(chunk);
    let params = Params { splits: splits as u32, chunk: chunk as u32, ..seen.params() };
    let groups = gpu.groups(tiles * splits);
    let peaks = peaks(gpu, tiling, operands);
    let [left, right] = operands.map(|operand| operand.read_by(tiling, gpu));
    let run = |into: &Slice| {
        let slices: Vec<_> = [left, right, into].into_iter().chain(&peaks).collect();
        gpu.run(kernel, &params, &slices, groups);
    };
    if splits == 1 && !accumulate {
        run(d_w.memory());
        return None;
    }
    let memory = gpu.lease(weight.bytes() * splits as u64);
    run(&memory);
    Some(Parts { memory, count: splits })
}
