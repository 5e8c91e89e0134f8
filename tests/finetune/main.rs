//! The trainer from the outside: what a run writes, what each option does to it, what stops it, and
//! that its losses are PyTorch's.

#[path = "../common/program.rs"]
mod program;

mod archives;
mod craft;
mod failures;
mod freezing;
mod kept_images;
mod memory;
mod options;
mod outputs;
mod parity;
mod pictures;
mod pretrain;
mod resume;
mod run;
