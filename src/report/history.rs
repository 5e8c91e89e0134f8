//! What a run has brought so far, read back from its files: so a resumed run's report is whole.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A run so far.
#[derive(Debug, Default)]
pub struct History {
    /// A row of `results.csv` each.
    pub epochs: Vec<Row>,
    /// A line of `steps.jsonl` each.
    pub steps: Vec<Step>,
}

/// An epoch; numbers that were not measured are NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Counts from 1.
    pub epoch: u32,
    /// Seconds since the run began.
    pub time: f64,
    /// Mean loss of the training images.
    pub train_loss: f64,
    /// Share of the training images that were right.
    pub train_top1: f64,
    /// Mean loss of the validation images.
    pub val_loss: f64,
    /// Share of the validation images that were right.
    pub val_top1: f64,
    /// Share of them whose class was among the five likeliest.
    pub val_top5: f64,
    /// Training images a second.
    pub images_per_second: f64,
}

/// A training step.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// Counts from 0.
    pub epoch: u32,
    /// Before the update; none if it was not finite.
    pub loss: Option<f64>,
    /// The learning rate of each group.
    pub lr: Vec<f64>,
    /// Images in the batch.
    pub images: usize,
}

impl History {
    /// Of the run in `folder`; nothing where a file is missing.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("results.csv");
        let table = match fs::read_to_string(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(&path)(error));
            }
            table => table.unwrap_or_default(),
        };
        Ok(Self { epochs: rows(&table), steps: steps(&folder.join("steps.jsonl"))? })
    }

    /// When each step was, in epochs: the end of the first is 1 where epochs are whole.
    pub fn step_times(&self) -> Vec<f64> {
        let epochs = self.steps.iter().map(|step| step.epoch).max().unwrap_or(0) as usize + 1;
        let mut lengths = vec![0.0; epochs];
        self.steps.iter().for_each(|step| lengths[step.epoch as usize] += 1.0);
        let longest = lengths.iter().copied().fold(0.0, f64::max);
        let mut done = vec![0.0; epochs];
        let time = |step: &Step| {
            let epoch = step.epoch as usize;
            done[epoch] += 1.0;
            // The latest epoch may be under way still, or cut short.
            let length = if epoch + 1 == epochs { longest } else { lengths[epoch] };
            epoch as f64 + done[epoch] / length
        };
        self.steps.iter().map(time).collect()
    }
}

fn rows(table: &str) -> Vec<Row> {
    let mut lines = table.lines();
    let Some(header) = lines.next() else { return Vec::new() };
    let columns: Vec<&str> = header.split(',').collect();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |name: &str| {
            let column = columns.iter().position(|&column| column == name);
            let cell = column.and_then(|column| cells.get(column));
            cell.and_then(|cell| cell.parse().ok()).unwrap_or(f64::NAN)
        };
        Row {
            epoch: number("epoch") as u32,
            time: number("time"),
            train_loss: number("train/loss"),
            train_top1: number("train/accuracy_top1"),
            val_loss: number("val/loss"),
            val_top1: number("metrics/accuracy_top1"),
            val_top5: number("metrics/accuracy_top5"),
            images_per_second: number("images_per_second"),
        }
    };
    lines.map(row).collect()
}

fn steps(path: &Path) -> Result<Vec<Step>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(Error::io(path))?,
    };
    let mut steps = Vec::new();
    for line in BufReader::new(file).lines() {
        // A line that a crash cut short is no step.
        steps.extend(serde_json::from_str::<Step>(&line.map_err(Error::io(path))?));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_may_be_empty() {
        let table = "epoch,time,train/loss,val/loss,lr/pg0,images_per_second\n1,2.5,0.5,,0.1,80\n";
        let rows = rows(table);
        assert_eq!((rows[0].epoch, rows[0].time, rows[0].images_per_second), (1, 2.5, 80.0));
        assert!(rows[0].val_loss.is_nan() && rows[0].val_top1.is_nan());
        assert!(super::rows("").is_empty());
    }

    #[test]
    fn steps_are_placed_within_their_epochs() {
        let step = |epoch| Step { epoch, loss: Some(1.0), lr: vec![0.1], images: 2 };
        let history = History { epochs: vec![], steps: [0, 0, 1, 1, 2].map(step).into() };
        assert_eq!(history.step_times(), [0.5, 1.0, 1.5, 2.0, 2.5]);
        assert!(History::default().step_times().is_empty());
    }
}
