//! wgrad fine-tunes residual networks on any GPU that WebGPU reaches.
#![warn(missing_docs)]

pub mod error;
pub mod gpu;

pub use error::{Error, Result};
