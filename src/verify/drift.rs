//! How far adapters are off, in a file, to be laid side by side.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{NETWORK, Row, Verdict};
use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::gpu::AdapterReport;
use crate::provenance::Provenance;

/// The errors of every adapter that was checked.
#[derive(Default, Serialize)]
pub struct Drift {
    #[serde(flatten)]
    provenance: Provenance,
    adapters: Vec<Value>,
}

impl Drift {
    /// Adds what was found on an adapter.
    pub fn add(&mut self, report: &AdapterReport, rows: &[Row]) {
        let rows_of = |network: bool| rows.iter().filter(move |row| (row.op == NETWORK) == network);
        let losses = losses(rows);
        let (found, torch): (Vec<_>, Vec<_>) = losses.into_iter().unzip();
        self.adapters.push(json!({
            "adapter": report,
            "losses": { "found": found, "torch": torch },
            "network": rows_of(true).map(Row::record).collect::<Vec<_>>(),
            "operations": rows_of(false).map(Row::record).collect::<Vec<_>>(),
        }));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the disk reported.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
        write_atomically(path, |file| std::io::Write::write_all(file, &text))
    }
}

/// The network's losses among `rows`, step by step, each with PyTorch's in f64.
pub fn losses(rows: &[Row]) -> Vec<(f64, f64)> {
    let is_loss = |row: &&Row| row.op == NETWORK && row.case.ends_with("losses");
    let both = |row: &Row| match &row.verdict {
        Verdict::Compared(worst) if row.what != "how many" => Some((worst.found, worst.expected)),
        _ => None,
    };
    rows.iter().filter(is_loss).filter_map(both).collect()
}
