//! What was measured: a table for people, `results.jsonl` for programs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::judge::Scores;
use crate::error::{Context, Error, Result};
use crate::train::Console;

/// Which batch-norm statistics a network was measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistics {
    /// Those it came with.
    Own,
    /// The average of its parents'.
    Averaged,
    /// Computed anew on the training images.
    Recalibrated,
}

/// A network, or several together, and how they did: a line of `results.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// `ingredient`, `ensemble`, `interpolation`, `candidate` (of a greedy soup) or `soup`.
    pub kind: &'static str,
    /// What the table calls it.
    pub name: String,
    /// The coefficient of the second network of an interpolation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The files that went into it.
    pub members: Vec<String>,
    /// Which batch-norm statistics it had.
    pub batch_norm: Statistics,
    /// How it did.
    #[serde(flatten)]
    pub scores: Scores,
}

/// A table on the console and a file of lines, growing together.
pub struct Journal<'a> {
    console: &'a Console,
    path: PathBuf,
    file: File,
    /// Of the first column.
    width: usize,
}

impl<'a> Journal<'a> {
    /// Starts `results.jsonl` in `folder`, and a table with room for the names given.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn start<'n>(
        console: &'a Console,
        folder: &Path,
        names: impl Iterator<Item = &'n str>,
        with_test: bool,
    ) -> Result<Self> {
        let path = folder.join("results.jsonl");
        let file = File::create_new(&path).map_err(Error::io(&path)).context(doing)?;
        // A greedy soup puts "+ " before a name.
        let width = names.map(|name| name.chars().count() + 2).max().unwrap_or(0).max(24);
        let columns =
            |split: &str| format!("{:>11}  {:>6}  {:>5}", format!("{split} Acc@1"), "loss", "ECE");
        let mut header = format!("{:width$}  {:12}{}", "", "batch norm", columns("val"));
        if with_test {
            header += &columns("test");
        }
        console.line(header);
        Ok(Self { console, path, file, width })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        let statistics = match entry.batch_norm {
            Statistics::Own => "its own",
            Statistics::Averaged => "averaged",
            Statistics::Recalibrated => "recalibrated",
        };
        let statistics = if entry.kind == "ensemble" { "" } else { statistics };
        let Scores { val, test } = entry.scores;
        let mut row = format!("{:1$}  {statistics:12}     {val}", entry.name, self.width);
        if let Some(test) = test {
            write!(row, "     {test}").unwrap_or_default();
        }
        self.console.line(row);
        self.console.event(&serde_json::json!({ "event": "measured", "result": entry }));
        let line = serde_json::to_string(entry).map_err(std::io::Error::from);
        let write = |line: String| self.file.write_all(format!("{line}\n").as_bytes());
        line.and_then(write).map_err(Error::io(&self.path)).context(doing)
    }
}

fn doing() -> &'static str {
    "noting what was measured"
}

/// What the table calls a checkpoint: a run's best weights by the run's folder, others by their path.
pub fn short_name(path: &Path) -> String {
    let run = path.ends_with("weights/best.safetensors").then(|| path.ancestors().nth(2)).flatten();
    run.filter(|run| !run.as_os_str().is_empty()).unwrap_or(path).display().to_string()
}
