//! Residual networks: their description, their layers, their parameters.

pub mod arch;
