//! Whole networks: against what PyTorch computed (`tests/fixtures/network`), and against
//! themselves where two ways must give the same.

#[path = "../common/mod.rs"]
mod common;

mod again;
mod formulas;
mod invariants;
mod logits;
mod training;

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use wgrad::gpu::Gpu;

fn package(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of `tests/fixtures/network`.
fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = package("tests/fixtures/network").join(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn name(gpu: &Gpu) -> String {
    format!("{} ({})", gpu.report().name, gpu.report().backend)
}
