//! Training: what to do, how it went, and where that is written.

pub mod config;
pub mod console;
mod interrupt;
pub mod metrics;
mod network;
mod phase;
mod profile;
mod run;
pub mod run_dir;
mod step;
mod validate;

pub use config::Config;
pub use console::Console;
pub use interrupt::Interrupt;
pub use network::{Answer, Network};
pub use phase::Batch;
pub use run::run;
pub use run_dir::RunDir;
pub use step::{Done, Inputs, Pending, Pipeline, Stepper};
pub use validate::{Judged, judge};
