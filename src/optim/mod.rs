//! Optimisation: how the learning rate changes over a run.

pub mod schedule;

mod optimizer;

pub use optimizer::{Algorithm, Optimizer, Settings};
