//! What a measurement was made by and on, apart from the adapter.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gpu::Kernel;
use crate::ops::OPS;

/// The program and the machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Provenance {
    /// Of wgrad.
    pub version: String,
    /// Commit that wgrad was built from.
    pub commit: String,
    /// Of every operation's shaders, the first 16 digits of a SHA-256.
    pub shaders: String,
    /// linux, macos, windows, …
    pub os: String,
    /// The processor's name, or its architecture where the system does not tell.
    pub cpu: String,
    /// Threads it runs at once.
    pub threads: usize,
}

impl Default for Provenance {
    /// Of this process.
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("WGRAD_COMMIT").into(),
            shaders: shaders(),
            os: std::env::consts::OS.into(),
            cpu: cpu().unwrap_or_else(|| std::env::consts::ARCH.into()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Of every operation's shaders, the first 16 digits of a SHA-256.
pub fn shaders() -> String {
    let mut hash = Sha256::new();
    for shader in OPS.iter().flat_map(|op| op.shaders) {
        hash.update(shader.name);
        hash.update(Kernel::new(shader).wgsl().unwrap_or_default());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn cpu() -> Option<String> {
    let name = match std::env::consts::OS {
        "linux" => {
            let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            line.split_once(':')?.1.to_owned()
        }
        "macos" => {
            let mut command = std::process::Command::new("sysctl");
            let output = command.args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
            String::from_utf8(output.stdout).ok()?
        }
        _ => std::env::var("PROCESSOR_IDENTIFIER").ok()?,
    };
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
