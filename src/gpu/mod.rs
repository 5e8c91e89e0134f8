//! The device: adapters, memory, kernels, and the recording of work. The only folder that names
//! `wgpu`.

mod adapter;
mod again;
mod ahead;
mod buffer;
mod choice;
mod device;
mod disk_cache;
mod download;
mod faults;
mod matrix_units;
mod open;
mod pipeline;
mod plan;
mod profile;
mod recorder;
mod shader;
mod upload;

pub use adapter::{AdapterChoice, AdapterClass, AdapterReport, FoundAdapter, adapters, choose};
pub use again::Again;
pub use buffer::{Buffer, Place, Slice};
pub use choice::{Problem, Sizes};
pub use device::Gpu;
pub use download::Download;
pub use matrix_units::MatrixUnits;
pub use open::GpuOptions;
pub use plan::Plan;
pub use profile::Timing;
pub use recorder::Recording;
pub use shader::{Kernel, Shader};
