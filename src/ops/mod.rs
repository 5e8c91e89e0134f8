//! The operations: one file each, holding the formulas, the function that records the kernels, its
//! backward, the reference in f64, and the cases it is checked on.

pub mod case;

mod add;
mod batch_norm;
mod conv2d;
mod linear;
mod relu;

pub use add::add;
pub use batch_norm::{BatchNorm, BatchNormState, BatchStats, batch_norm};
pub use conv2d::{Conv2d, conv2d, conv2d_with_stats};
pub use linear::linear;
pub use relu::relu;

use crate::gpu::Shader;
use case::Case;

/// An operation, as the checks see it.
pub struct Op {
    /// Its name, which is the stem of its file.
    pub name: &'static str,
    /// Its shader files.
    pub shaders: &'static [&'static Shader],
    /// What it is checked on.
    pub cases: fn() -> Vec<Case>,
}

/// Every operation.
pub const OPS: &[Op] = &[add::OP, batch_norm::OP, conv2d::OP, linear::OP, relu::OP];
