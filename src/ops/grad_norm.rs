//! Norm of the gradients of all parameters, and what to multiply them by so that it does not exceed
//! a bound, as `torch.nn.utils.clip_grad_norm_`:
//!
//! norm = √Σ g², scale = min(1, max_norm / (norm + 1e-6)).

use super::case::{Array, Case, EPSILON, Expected, Fill, Input, given};
use super::{Op, arena};
use crate::Result;
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Shape, Tensor};

static PARTIAL: Shader = shader!("grad_norm_partial");
static FINISH: Shader = shader!("grad_norm_finish");

pub(super) const OP: Op = Op { name: "grad_norm", shaders: &[&PARTIAL, &FINISH], cases };

/// Workgroups that share a slice at most: enough to fill a large device, few enough that one
/// workgroup adds up what they leave.
const MAX_GROUPS: usize = 512;

/// Parameters of `shaders/grad_norm_partial.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PartialParams {
    /// Groups of four numbers or eight.
    count: u32,
    /// Such groups of a workgroup.
    chunk: u32,
    /// Where the first workgroup's sum goes.
    first: u32,
}

/// Parameters of `shaders/grad_norm_finish.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct FinishParams {
    /// Number of partial sums.
    partials: u32,
    /// Whether there is a bound.
    clip: u32,
    max_norm: f32,
}

/// Two numbers: the scale that keeps the norm of `gradients`, taken together, within `max_norm`
/// (1 without a bound), and that norm. [`super::sgd`] and [`super::adam`] take the tensor's memory
/// as their scale.
///
/// # Errors
/// [`crate::Error::Shape`] if a slice is no multiple of 16 bytes long.
pub fn grad_norm(gpu: &Gpu, gradients: &[&Slice], max_norm: Option<f32>) -> Result<Tensor> {
    let (partials, count) = partials(gpu, gradients)?;
    let result = Tensor::empty(gpu, Shape::vector(2));
    let params = FinishParams {
        partials: count,
        clip: max_norm.is_some().into(),
        max_norm: max_norm.unwrap_or_default(),
    };
    gpu.run(Kernel::new(&FINISH), &params, &[&partials, result.memory()], [1, 1, 1]);
    Ok(result)
}

/// Sums of squares that add up to the norm's square, and how many they are.
pub(super) fn partials(gpu: &Gpu, gradients: &[&Slice]) -> Result<(Slice, u32)> {
    let mut parts = Vec::new();
    for &slice in gradients {
        parts.extend(arena::parts(gpu, "grad_norm", [slice])?);
    }
    // A processor that plays GPU does one subgroup after the other.
    let threads = if gpu.class() == AdapterClass::Software { 8 } else { 256 };
    let share = |[part]: [Slice; 1]| {
        let (count, words) = arena::threads(gpu, &part);
        let chunk = count.div_ceil(MAX_GROUPS).next_multiple_of(threads);
        (part, count, words, chunk)
    };
    let parts: Vec<_> = parts.into_iter().map(share).collect();
    let groups: usize = parts.iter().map(|(_, count, _, chunk)| count.div_ceil(*chunk)).sum();
    let partials = gpu.lease(groups as u64 * 4);
    let mut first = 0;
    for (part, count, words, chunk) in &parts {
        let groups = count.div_ceil(*chunk) as u32;
        gpu.run(
            Kernel::new(&PARTIAL).with("THREADS", threads as u32).with("WORDS", (*words).into()),
            &PartialParams { count: *count as u32, chunk: *chunk as u32, first },
            &[part, &partials],
            [groups, 1, 1],
        );
        first += groups;
    }
    Ok((partials, first))
}

fn cases() -> Vec<Case> {
    let case_of = |lengths: &[usize], max_norm: Option<f32>, largest: f64| {
        let fill = Fill::Uniform(-largest, largest);
        let input = |&length| Input::constant(Shape::vector(length), fill);
        Case::new(
            format!("slices of {lengths:?} {fill}{}", given("max_norm", max_norm)),
            lengths.iter().map(input).collect(),
            move |tape, inputs| {
                let slices: Vec<_> = inputs.iter().map(|input| input.value().memory()).collect();
                Ok(vec![tape.constant(grad_norm(tape.gpu(), &slices, max_norm)?)])
            },
            move |inputs| vec![reference(inputs, max_norm)],
        )
    };
    let case = |lengths: &[usize], max_norm| case_of(lengths, max_norm, 1.0);
    vec![
        case(&[13], Some(0.5)),
        // So short that what keeps the divisor from zero counts.
        case_of(&[13], Some(1e-7), 1e-6),
        case(&[5000], Some(1e4)),
        case(&[1, 1_000_003, 77], Some(1.0)),
        case(&[300], None),
        Case { benchmark: true, ..case(&[11_689_512], Some(1.0)) },
    ]
}

fn reference(inputs: &[Array], max_norm: Option<f32>) -> Expected {
    let squares = || inputs.iter().flat_map(|input| &input.data).map(|g| g * g);
    let norm = squares().sum::<f64>().sqrt();
    // The root halves the sum's error. WGSL grants it 4.5 units in the last place, the division
    // 2.5, which are two roundings each.
    let norm_roundings = (4.0 + 2.0 * (squares().count() as f64).sqrt()) / 2.0 + 9.0;
    let clipped = max_norm.map(|max_norm| f64::from(max_norm) / (norm + 1e-6));
    let (scale, scale_roundings) = match clipped {
        Some(clipped) if clipped < 1.0 => (clipped, norm_roundings + 6.0),
        _ => (1.0, 0.0),
    };
    Expected::within(
        Array::new(Shape::vector(2), vec![scale, norm]),
        vec![EPSILON * scale * scale_roundings, EPSILON * norm * norm_roundings],
    )
}
