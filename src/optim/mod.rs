//! Optimisation: how parameters follow their gradients, and how the learning rate changes.

pub mod schedule;

mod optimizer;

pub use optimizer::{Algorithm, Optimizer, Settings};
