//! The folder a run writes to, and the files in it that are neither weights nor pictures.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::metrics::{Epoch, Validation};
use crate::checkpoint::{is_temporary, write_atomically};
use crate::error::{Context, Error, Result};

/// Where runs go that are not told where to.
const RUNS: &str = "runs";
/// The options of a run, within its folder.
const ARGS: &str = "args.json";
/// The folder of the weights, within a run's.
const WEIGHTS: &str = "weights";
/// The folder of what a run goes on from, within a run's.
const STATE: &str = "state";
/// The best weights of a run, within its folder.
const BEST: &str = "weights/best.safetensors";

/// What a process at work on a run keeps locked, within the run's folder. The system unlocks it, however the
/// process ends.
const LOCK: &str = "state/lock";

/// The folder a run writes to, and nobody else as long as this lives.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// None where the file system has no locks.
    _lock: Option<Arc<File>>,
}

impl RunDir {
    /// Makes `output_dir`, which must not exist or be empty; without it, the first of
    /// `runs/NAME`, `runs/NAME-2`, `runs/NAME-3`, … that does not exist.
    ///
    /// # Errors
    /// [`Error::Usage`] if `output_dir` holds something, [`Error::Io`] if it cannot be made.
    pub fn create(output_dir: Option<&Path>, name: &str) -> Result<Self> {
        let folder = match output_dir {
            Some(folder) => {
                check_empty(folder)?;
                fs::create_dir_all(folder).map_err(Error::io(folder)).context(|| MAKING)?;
                folder.to_owned()
            }
            None => next_folder(Path::new(RUNS), name).context(|| MAKING)?,
        };
        Self::take(folder)
    }

    /// Where [`RunDir::create`] makes a folder, if nobody is faster.
    pub fn next(output_dir: Option<&Path>, name: &str) -> PathBuf {
        let free = || numbered(Path::new(RUNS), name).find(|folder| !folder.exists());
        output_dir.map(Path::to_owned).or_else(free).expect("there is always another number")
    }

    /// A folder that a run has written to, without the files that it was in the middle of writing.
    ///
    /// # Errors
    /// [`Error::Usage`] if no run has, or another process is at it; [`Error::Io`] if it cannot be read.
    pub fn reopen(path: &Path) -> Result<Self> {
        Self::args_of(path)?;
        let folder = Self::take(path.to_owned())?;
        for room in [path.to_owned(), path.join(WEIGHTS), path.join(STATE)] {
            for entry in fs::read_dir(&room).map_err(Error::io(&room))?.flatten() {
                if is_temporary(&entry.path()) {
                    fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
                }
            }
        }
        Ok(folder)
    }

    /// Whether a run has begun in a folder.
    pub fn is_at(path: &Path) -> bool {
        path.join(ARGS).is_file()
    }

    /// Where the options of the run that was begun in a folder are.
    ///
    /// # Errors
    /// [`Error::Usage`] if none was.
    pub fn args_of(path: &Path) -> Result<PathBuf> {
        if Self::is_at(path) {
            return Ok(path.join(ARGS));
        }
        Err(Error::Usage(format!(
            "--resume {}: no run was begun there, for it has no {ARGS}",
            path.display()
        )))
    }

    /// Makes the rooms of a folder and keeps other processes out.
    fn take(path: PathBuf) -> Result<Self> {
        for room in [WEIGHTS, STATE] {
            let room = path.join(room);
            fs::create_dir_all(&room).map_err(Error::io(&room))?;
        }
        let name = path.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(&name);
        let file = file.map_err(Error::io(&name))?;
        let lock = match file.try_lock() {
            Ok(()) => Some(Arc::new(file)),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Usage(format!(
                    "--resume {}: another process is at work on this run",
                    path.display()
                )));
            }
            Err(TryLockError::Error(_)) => None,
        };
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the best weights go.
    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// Where the weights of a fused network go.
    pub fn fused(&self) -> PathBuf {
        self.path.join("weights/fused.safetensors")
    }

    /// Where the latest weights go.
    pub fn last(&self) -> PathBuf {
        self.path.join(WEIGHTS).join("last.safetensors")
    }

    /// Where the latest average of the weights goes.
    pub fn ema(&self) -> PathBuf {
        self.path.join(WEIGHTS).join("ema.safetensors")
    }

    /// Where what the run goes on from goes.
    pub fn state(&self) -> PathBuf {
        self.path.join(STATE).join("state.safetensors")
    }

    /// Where the list of the run's images goes.
    pub fn images(&self) -> PathBuf {
        self.path.join(STATE).join("images.json")
    }

    /// Where the options go.
    pub fn args(&self) -> PathBuf {
        self.path.join(ARGS)
    }

    /// Opens `steps.jsonl` behind its first `steps` lines; what comes after them is cut off.
    ///
    /// # Errors
    /// [`Error::Io`] with the path, [`Error::Data`] if there are fewer lines.
    pub fn step_log(&self, steps: u64) -> Result<StepLog> {
        Ok(StepLog(Log::open(self.path.join("steps.jsonl"), steps)?))
    }

    /// Opens `results.csv`, for `groups` learning rates and perhaps an average of the weights, behind the rows of its first
    /// `epochs` epochs; what comes after them is cut off.
    ///
    /// # Errors
    /// [`Error::Io`] with the path, [`Error::Data`] if there are fewer rows.
    pub fn results(&self, groups: usize, ema: bool, epochs: u32) -> Result<Results> {
        let header = u64::from(epochs > 0);
        let mut log = Log::open(self.path.join("results.csv"), header + u64::from(epochs))?;
        let rates: String = (0..groups).map(|group| format!("lr/pg{group},")).collect();
        let average = if ema { ",ema/loss,ema/accuracy_top1,ema/accuracy_top5" } else { "" };
        if epochs == 0 {
            log.line(&format!(
                "epoch,time,train/loss,train/accuracy_top1,val/loss,metrics/accuracy_top1,\
                 metrics/accuracy_top5,{rates}images_per_second{average}"
            ))?;
        }
        Ok(Results { log, groups, ema })
    }
}

/// Writes an object to a file of its own.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn write_json(path: &Path, object: &impl Serialize) -> Result<()> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, object)?;
        writeln!(file)
    })
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(Error::io(path))
}

/// The best weights of the newest run under `runs/`, by the time they were written.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none, [`Error::Io`] if `runs/` cannot be read.
pub fn newest_best() -> Result<PathBuf> {
    newest_best_in(Path::new(RUNS))
}

fn newest_best_in(runs: &Path) -> Result<PathBuf> {
    let entries = match fs::read_dir(runs) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(runs)(error)),
        entries => entries.into_iter().flatten().flatten(),
    };
    let written = |path: PathBuf| -> Option<(SystemTime, PathBuf)> {
        Some((path.metadata().ok()?.modified().ok()?, path))
    };
    let newest = entries.filter_map(|entry| written(entry.path().join(BEST))).max();
    newest.map(|(_, path)| path).ok_or_else(|| {
        Error::checkpoint(
            runs.join("*").join(BEST),
            "there is no run here yet; give --weights FILE, or train one with `wgrad finetune`",
        )
    })
}

/// What is being done when a folder cannot be had.
const MAKING: &str = "making the output folder";

/// Sees that a run may have a folder to itself: it holds nothing, or is not there yet. To be told before
/// images are read.
///
/// # Errors
/// [`Error::Usage`] if it holds something, [`Error::Io`] if it cannot be read.
pub fn check_empty(folder: &Path) -> Result<()> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(folder)(error)).context(|| MAKING)
        }
        Ok(false) => Err(Error::Usage(format!(
            "--output-dir {} is not empty, and a run overwrites nothing; name a new folder",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// `runs/NAME`, `runs/NAME-2`, `runs/NAME-3`, …
fn numbered(runs: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let more = (2..).map(move |number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(more).map(|name| runs.join(name))
}

fn next_folder(runs: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(runs).map_err(Error::io(runs))?;
    for folder in numbered(runs, name) {
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&folder)(error)),
        }
    }
    unreachable!("there is always another number")
}

/// `steps.jsonl`: what each step did.
#[derive(Debug)]
pub struct StepLog(Log);

/// A line of `steps.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Counts from 0, over both phases.
    pub step: u64,
    /// Counts from 0, over both phases.
    pub epoch: u32,
    /// Before the step's update.
    pub loss: f64,
    /// The learning rate of each group.
    pub lr: Vec<f64>,
    /// Images in the batch.
    pub images: usize,
    /// What the step took.
    pub seconds: f64,
}

impl StepLog {
    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn append(&mut self, step: &Step) -> Result<()> {
        let line = serde_json::to_string(step).map_err(std::io::Error::from);
        self.0.line(&line.map_err(Error::io(&self.0.path))?)
    }

    /// Waits until every line is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn sync(&self) -> Result<()> {
        self.0.sync()
    }
}

/// `results.csv`: what each epoch brought.
#[derive(Debug)]
pub struct Results {
    log: Log,
    groups: usize,
    ema: bool,
}

impl Results {
    /// Appends a row; accuracies are shares, 0 to 1, and learning rates of groups that a phase does
    /// not train are 0.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn append(&mut self, epoch: &Epoch) -> Result<()> {
        let cell = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let measures = |validation: Option<Validation>| {
            let val = validation.as_ref();
            [
                cell(val.map(|val| val.loss)),
                cell(val.map(|val| val.top1)),
                cell(val.map(|val| val.top5)),
            ]
        };
        let mut cells = vec![
            epoch.epoch.to_string(),
            format!("{:.3}", epoch.seconds),
            epoch.train_loss.to_string(),
            epoch.train_top1.to_string(),
        ];
        cells.extend(measures(epoch.val));
        let rates = epoch.lr.iter().copied().chain(std::iter::repeat(0.0));
        cells.extend(rates.take(self.groups).map(|lr| lr.to_string()));
        cells.push(format!("{:.1}", epoch.images_per_second));
        if self.ema {
            cells.extend(measures(epoch.val_ema));
        }
        self.log.line(&cells.join(","))
    }

    /// Waits until every row is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn sync(&self) -> Result<()> {
        self.log.sync()
    }
}

fn doing() -> &'static str {
    "noting what was measured"
}

/// A text file that grows by whole lines, each on its way to the disk when `line` returns.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the file behind its first `lines` lines, which must be there, and cuts off the rest.
    fn open(path: PathBuf, lines: u64) -> Result<Self> {
        // Not to append, which on Windows may write only at the end, and cut nothing off.
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(Error::io(&path)).context(doing)?;
        let mut reader = BufReader::new(&file);
        let (mut kept, mut line) = (0, Vec::new());
        for _ in 0..lines {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(Error::io(&path)).context(doing)?;
            if !line.ends_with(b"\n") {
                return Err(Error::data(&path, format!("it has not {lines} whole lines any more")));
            }
            kept += line.len() as u64;
        }
        file.set_len(kept).map_err(Error::io(&path)).context(doing)?;
        file.seek(SeekFrom::Start(kept)).map_err(Error::io(&path)).context(doing)?;
        Ok(Self { path, file })
    }

    /// Waits until every line is on the disk.
    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path)).context(doing)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(Error::io(&self.path)).context(doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_and_never_shared() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        let names: Vec<_> = (0..3).map(|_| next_folder(&runs, "finetune").unwrap()).collect();
        assert_eq!(names, ["finetune", "finetune-2", "finetune-3"].map(|name| runs.join(name)));
    }

    #[test]
    fn a_folder_with_anything_in_it_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let run = RunDir::create(Some(&folder), "finetune").unwrap();
        assert_eq!(run.path(), folder);
        let error = RunDir::create(Some(&folder), "finetune").unwrap_err();
        assert_eq!(error.exit_code(), 2);

        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RunDir::create(Some(&file), "finetune").unwrap_err();
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_run_is_one_processs_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(&root.path().join("run")), "finetune").unwrap();
        fs::write(run.args(), "{}").unwrap();
        let copy = run.clone();
        drop(run);
        let error = RunDir::reopen(copy.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("another process is at work on this run"), "{error}");
        let path = copy.path().to_owned();
        drop(copy);
        let again = RunDir::reopen(&path).unwrap();
        assert_eq!(again.path(), path);
    }

    #[test]
    fn the_newest_weights_win() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        let error = newest_best_in(&runs).unwrap_err().to_string();
        assert!(error.contains("wgrad finetune"), "{error}");

        let write = |name: &str, seconds: u64| {
            let best = runs.join(name).join(BEST);
            fs::create_dir_all(best.parent().unwrap()).unwrap();
            let file = File::create(&best).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
                .unwrap();
            best
        };
        let newest = write("finetune", 20);
        write("finetune-2", 10);
        fs::create_dir(runs.join("unfinished")).unwrap();
        assert_eq!(newest_best_in(&runs).unwrap(), newest);
    }

    #[test]
    fn logs_have_the_columns_that_scripts_read() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(&root.path().join("run")), "finetune").unwrap();
        let mut results = run.results(2, false, 0).unwrap();
        let mut epoch = Epoch {
            epoch: 1,
            epochs: 6,
            seconds: 1.25,
            train_loss: 0.5,
            train_top1: 0.75,
            val: Some(Validation { loss: 0.25, top1: 0.875, top5: 1.0 }),
            val_ema: None,
            lr: vec![0.01],
            images_per_second: 812.04,
        };
        results.append(&epoch).unwrap();
        epoch.val = None;
        results.append(&epoch).unwrap();
        assert_eq!(
            fs::read_to_string(run.path().join("results.csv")).unwrap(),
            "epoch,time,train/loss,train/accuracy_top1,val/loss,metrics/accuracy_top1,\
             metrics/accuracy_top5,lr/pg0,lr/pg1,images_per_second\n\
             1,1.250,0.5,0.75,0.25,0.875,1,0.01,0,812.0\n\
             1,1.250,0.5,0.75,,,,0.01,0,812.0\n"
        );

        let mut steps = run.step_log(0).unwrap();
        let step = Step { step: 0, epoch: 0, loss: 2.5, lr: vec![0.05], images: 16, seconds: 0.5 };
        steps.append(&step).unwrap();
        assert_eq!(
            fs::read_to_string(run.path().join("steps.jsonl")).unwrap(),
            "{\"step\":0,\"epoch\":0,\"loss\":2.5,\"lr\":[0.05],\"images\":16,\"seconds\":0.5}\n"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_with_the_path() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let error = Log { path: "results.csv".into(), file }.line("epoch").unwrap_err();
        assert_eq!(error.to_string(), "noting what was measured");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("results.csv: "), "{cause}");
    }
}
