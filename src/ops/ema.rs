//! Exponential moving average of an arena, in place, as `torch.optim.swa_utils`' `get_ema_avg_fn`:
//! average += (1 − decay)·(θ − average).

use super::case::{Array, Case, EPSILON, Expected, Fill, Input};
use super::{Op, arena};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::Shape;

static EMA: Shader = shader!("ema");

pub(super) const OP: Op = Op { name: "ema", shaders: &[&EMA], cases };

/// Parameters of `shaders/ema.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers.
    count: u32,
    /// 1 − decay.
    share: f32,
}

/// Moves `average` towards `values`. The arenas are equally long and lie in different buffers.
///
/// # Errors
/// [`crate::Error::Shape`] if the arenas are not equally long multiples of 16 bytes.
pub fn ema(gpu: &Gpu, average: &Slice, values: &Slice, decay: f64) -> Result<()> {
    for [average, values] in arena::parts(gpu, "ema", [average, values])? {
        let count = average.bytes / 16;
        gpu.run(
            Kernel::new(&EMA),
            &Params { count: count as u32, share: (1.0 - decay) as f32 },
            &[&average, &values],
            gpu.groups(count.div_ceil(256) as usize),
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let case = |length: usize, decay: f64| {
        let input = Input::constant(Shape::vector(length), Fill::Uniform(-1.0, 1.0));
        Case::new(
            format!("{length} parameters decay {decay}"),
            vec![input; 2],
            move |tape, inputs| {
                let average = inputs[0].value().duplicate(tape.gpu());
                ema(tape.gpu(), average.memory(), inputs[1].value().memory(), decay)?;
                Ok(vec![tape.constant(average)])
            },
            move |inputs| vec![reference(inputs, decay)],
        )
    };
    // The first are more than one workgroup does.
    vec![case(1100, 0.999), case(5, 0.5), Case { benchmark: true, ..case(11_689_512, 0.999) }]
}

/// `inputs` are the average and θ. A difference, a product and a sum are rounded.
fn reference(inputs: &[Array], decay: f64) -> Expected {
    let share = f64::from((1.0 - decay) as f32);
    let (mut values, mut allowance) = (inputs[0].clone(), Vec::new());
    for (average, value) in values.data.iter_mut().zip(&inputs[1].data) {
        let pull = share * (value - *average);
        *average += pull;
        allowance.push(EPSILON * (2.0 * pull.abs() + average.abs()) * (1.0 + 4.0 * EPSILON));
    }
    Expected::within(values, allowance)
}
