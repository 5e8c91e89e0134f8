//! wgrad fine-tunes residual networks on any GPU that WebGPU reaches.
#![warn(missing_docs)]

pub mod autograd;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod error;
pub mod gpu;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod provenance;
pub mod tensor;
pub mod train;
pub mod verify;

pub use autograd::{Grads, Tape, Var};
pub use error::{Error, Result};
pub use tensor::{Shape, Tensor};
