//! Rounding of an arena to f16: y = f16(x), as mixed precision keeps weights for convolutions.

use super::case::{Case, Expected, Fill, Input};
use super::{Op, arena};
use crate::Result;
use crate::gpu::{Gpu, Kernel, Shader, Slice};
use crate::shader;
use crate::tensor::{Dtype, Shape, Tensor};

static CAST: Shader = shader!("cast");

pub(super) const OP: Op = Op { name: "cast", shaders: &[&CAST], cases };

/// Parameters of `shaders/cast.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    /// Groups of four numbers.
    count: u32,
}

/// Records y = f16(x); `y` is half as long as `x`.
///
/// # Errors
/// [`crate::Error::Shape`] if it is not, or `x` is no multiple of 16 bytes long.
pub fn cast(gpu: &Gpu, x: &Slice, y: &Slice) -> Result<()> {
    for ([x], y) in arena::parts_with_shadow(gpu, "cast", [x], Some(y))? {
        let count = x.bytes / 16;
        let y = y.expect("there is a shadow");
        gpu.run(
            Kernel::new(&CAST).half(true),
            &Params { count: count as u32 },
            &[&x, &y],
            gpu.groups(count.div_ceil(256) as usize),
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let case = |length: usize, fill: Fill| {
        let input = Input::constant(Shape::vector(length), fill);
        Case::new(
            format!("{length} numbers {fill}"),
            vec![input],
            |tape, inputs| {
                let y = Tensor::empty_as(tape.gpu(), inputs[0].shape(), Dtype::F16);
                cast(tape.gpu(), inputs[0].value().memory(), y.memory())?;
                Ok(vec![tape.constant(y)])
            },
            |inputs| vec![Expected::exact(inputs[0].clone())],
        )
        .in_half()
    };
    let unit = Fill::Uniform(-1.0, 1.0);
    vec![
        // More than one workgroup does.
        case(1100, unit),
        case(5, Fill::Uniform(-60_000.0, 60_000.0)),
        case(64, Fill::Uniform(-1e-5, 1e-5)),
        Case { benchmark: true, ..case(11_689_512, unit) },
    ]
}
