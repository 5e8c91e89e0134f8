//! Optimisation: how the learning rate changes over a run.

pub mod schedule;
