//! Training: what to do, how it went, and where that is written.

mod closing;
pub mod config;
pub mod console;
mod epoch;
mod events;
mod features;
mod grad_cam;
mod identity;
mod interrupt;
mod network;
mod opening;
mod phase;
mod pictures;
mod profile;
mod progress;
mod run;
pub mod run_dir;
mod source;
mod state;
mod step;
mod teachers;
mod validate;

pub use crate::metrics;
pub use config::Config;
pub use console::Console;
pub use grad_cam::{Activations, HeatMap, layer_for};
pub use interrupt::Interrupt;
pub use network::{Answer, Network, read_finite};
pub use run::run;
pub use run_dir::RunDir;
pub use source::Batch;
pub use step::{Done, Inputs, Pending, Pipeline, Stepper};
pub use teachers::{Lessons, Teachers};
pub use validate::{Asking, Classifier, Judged, Reply, ask, judge};
