//! `wgrad fuse` from the outside: what it writes, what it says, what it refuses.

#[path = "../common/program.rs"]
mod program;

mod distill;
mod ensemble;
mod exact;
mod held_out;
mod kitchen;
mod refusals;
mod statistics;
