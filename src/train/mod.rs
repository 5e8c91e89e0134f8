//! Training: what to do, how it went, and where that is written.

mod closing;
pub mod config;
pub mod console;
mod epoch;
mod features;
mod identity;
mod interrupt;
pub mod metrics;
mod network;
mod opening;
mod phase;
mod profile;
mod progress;
mod run;
pub mod run_dir;
mod source;
mod state;
mod step;
mod teachers;
mod validate;

pub use config::Config;
pub use console::Console;
pub use interrupt::Interrupt;
pub use network::{Answer, Network, read_finite};
pub use run::run;
pub use run_dir::RunDir;
pub use source::Batch;
pub use step::{Done, Inputs, Pending, Pipeline, Stepper};
pub use teachers::{Lessons, Teachers};
pub use validate::{Classifier, Judged, Reply, judge};
