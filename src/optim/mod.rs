//! Optimisation: how parameters follow their gradients, and how the learning rate changes.

pub mod schedule;

mod ema;
mod optimizer;

pub use ema::Ema;
pub use optimizer::{Algorithm, Optimizer, Scaling, Settings};
