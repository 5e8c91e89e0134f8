//! What the forward pass does with its sums before it writes them.

use crate::gpu::{Kernel, Slice};
use crate::ops::batch_norm::{BatchNormState, BatchStats};
use crate::tensor::Tensor;

/// What follows a convolution in evaluation.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// The batch norm, whose running statistics count.
    pub state: BatchNormState<'a>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Added after it.
    pub residual: Option<&'a Tensor>,
    /// Whether max(·, 0) comes last.
    pub relu: bool,
}

/// What a forward kernel does with the sums before it writes them.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    None,
    /// Not in the kernels of the forward pass itself: adds to what the output holds.
    Accumulate,
    Bias(&'a Tensor),
    Stats(&'a BatchStats),
    Affine(Affine<'a>),
}

impl<'a> Epilogue<'a> {
    /// The kernel with this epilogue, whose memory is added to what it binds.
    pub fn attach(self, kernel: Kernel, slices: &mut Vec<&'a Slice>) -> Kernel {
        match self {
            Self::None | Self::Accumulate => kernel,
            Self::Bias(bias) => {
                slices.push(bias.memory());
                kernel.with("BIAS", 1)
            }
            Self::Stats(stats) => {
                slices.push(stats.memory());
                kernel.with("STATS", 1)
            }
            Self::Affine(Affine { state, residual, relu, .. }) => {
                slices.extend([state.gamma.value().memory(), state.beta.value().memory()]);
                slices.push(state.running.memory());
                slices.extend(residual.map(Tensor::memory));
                kernel
                    .with("AFFINE", 1)
                    .with("RESIDUAL", residual.is_some().into())
                    .with("RELU", relu.into())
            }
        }
    }

    /// What the kernel must be told to add to a variance.
    pub fn epsilon(self) -> f32 {
        if let Self::Affine(affine) = self { affine.epsilon } else { 0.0 }
    }
}
