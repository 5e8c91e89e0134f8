//! The operations: one file each, holding the formulas, the function that records the kernels, its
//! backward, the reference in f64, and the cases it is checked on.

pub mod case;

mod adam;
mod add;
mod arena;
mod batch_norm;
mod batch_norm_max_pool;
mod cast;
mod conv2d;
mod conv2d_batch_norm;
mod cross_entropy;
mod distillation;
mod dropout;
mod ema;
mod global_avg_pool;
mod grad_norm;
mod l2_sp;
mod linear;
mod loss_scale;
mod max_pool2d;
mod normalize;
mod relu;
mod sgd;

pub use adam::{Adam, AdamHyper, adam};
pub use add::add;
pub use batch_norm::{BatchNorm, BatchNormState, BatchStats, batch_norm};
pub use batch_norm_max_pool::batch_norm_max_pool;
pub use cast::cast;
pub use conv2d::{Conv2d, Operands, Trial, conv2d, conv2d_with_stats};
pub use conv2d_batch_norm::conv2d_batch_norm;
pub use cross_entropy::{
    ClassWeights, CrossEntropy, CrossEntropyOutput, Target, Targets, cross_entropy, labels,
};
pub use distillation::{Distillation, DistillationOutput, distillation, soften};
pub use dropout::{Dropout, Per, dropout};
pub use ema::ema;
pub use global_avg_pool::global_avg_pool;
pub use grad_norm::grad_norm;
pub use l2_sp::l2_sp;
pub use linear::linear;
pub use loss_scale::{Judged, LossScale};
pub use max_pool2d::{MaxPool2d, max_pool2d};
pub use normalize::normalize;
pub use relu::relu;
pub use sgd::{Sgd, SgdHyper, sgd};

use crate::gpu::Shader;
use case::Case;

/// An operation, as the checks see it.
pub struct Op {
    /// Its name, which is the stem of its file.
    pub name: &'static str,
    /// Its shader files.
    pub shaders: &'static [&'static Shader],
    /// What it is checked on, but for what [`Op::cases`] adds.
    pub cases: fn() -> Vec<Case>,
}

impl Op {
    /// What it is checked on: its cases, and those that have activations again in f16.
    pub fn cases(&self) -> Vec<Case> {
        let half = (self.cases)().into_iter().filter(Case::has_activations).map(Case::in_half);
        (self.cases)().into_iter().chain(half).collect()
    }
}

/// Every operation.
pub const OPS: &[Op] = &[
    adam::OP,
    add::OP,
    batch_norm::OP,
    batch_norm_max_pool::OP,
    cast::OP,
    conv2d::OP,
    conv2d_batch_norm::OP,
    cross_entropy::OP,
    distillation::OP,
    dropout::OP,
    ema::OP,
    global_avg_pool::OP,
    grad_norm::OP,
    l2_sp::OP,
    linear::OP,
    loss_scale::OP,
    max_pool2d::OP,
    normalize::OP,
    relu::OP,
    sgd::OP,
];
