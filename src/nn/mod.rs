//! Residual networks: their description, their layers, their parameters.

pub mod arch;
mod init;
mod parameters;
mod resnet;

pub use arch::Arch;
pub use init::initial;
pub use parameters::{Group, Parameter, Parameters, Stage};
pub use resnet::{BN_EPSILON, BnPolicy, Mode, Noise, ResNet};
