//! What a run tells: lines for people, objects for programs, a bar an epoch.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{MAIN_SEPARATOR, Path};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::metrics::Epoch;
use crate::checkpoint::hub;
use crate::error::{Error, Result};

/// A path as a word of a command to copy: in single quotes where a shell would not take it as it is.
pub fn shell_word(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || c == MAIN_SEPARATOR || "/._-+=:@%,".contains(c);
    match !path.is_empty() && path.chars().all(plain) {
        true => path.into_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// Standard output and error, and who reads them.
///
/// Only [`Console::answer`] fails: hours of training do not end because a terminal was closed.
#[derive(Debug)]
pub struct Console {
    quiet: bool,
    verbose: bool,
    json: bool,
    bars: MultiProgress,
}

impl Console {
    /// `quiet` leaves lines out, `verbose` adds details, `json` keeps standard output for objects.
    /// Bars appear only when standard output is a terminal that neither is asked of.
    pub fn new(quiet: bool, verbose: bool, json: bool) -> Self {
        let target = match io::stdout().is_terminal() && !quiet && !json {
            true => ProgressDrawTarget::stdout(),
            false => ProgressDrawTarget::hidden(),
        };
        Self { quiet, verbose, json, bars: MultiProgress::with_draw_target(target) }
    }

    /// Whether standard output is kept for objects.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A line of what is going on, on standard output, or on standard error when that is for objects.
    pub fn line(&self, line: impl fmt::Display) {
        match self.json {
            _ if self.quiet => {}
            true => self.note(line),
            false => self.bars.suspend(|| writeln!(io::stdout(), "{line}").unwrap_or_default()),
        }
    }

    /// A line of what is going on, always on standard error, for commands whose answer is on
    /// standard output.
    pub fn note(&self, line: impl fmt::Display) {
        if !self.quiet {
            self.to_stderr(line);
        }
    }

    /// A [`Console::note`] that only `-v` shows.
    pub fn detail(&self, line: impl fmt::Display) {
        if self.verbose {
            self.note(line);
        }
    }

    /// Something the user must know, on standard error whatever was asked for.
    pub fn warning(&self, line: impl fmt::Display) {
        self.to_stderr(format_args!("warning: {line}"));
    }

    /// An object for programs; nothing unless they asked.
    pub fn event(&self, event: &impl Serialize) {
        if self.json
            && let Ok(event) = serde_json::to_string(event)
        {
            writeln!(io::stdout(), "{event}").unwrap_or_default();
        }
    }

    /// What a command was asked for, on standard output whatever else is quiet.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, as when the reader has gone.
    pub fn answer(&self, answer: impl fmt::Display) -> Result<()> {
        self.bars
            .suspend(|| writeln!(io::stdout(), "{answer}"))
            .map_err(Error::io("standard output"))
    }

    /// [`Console::answer`] with an object.
    ///
    /// # Errors
    /// Those of [`Console::answer`], and [`Error::Io`] for a path in it that is no Unicode.
    pub fn answer_json(&self, answer: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(answer).map_err(io::Error::from);
        self.answer(text.map_err(Error::io("standard output"))?)
    }

    /// A bar for an epoch of `images` images; it goes when dropped.
    pub fn epoch_bar(&self, title: impl fmt::Display, images: usize) -> EpochBar {
        let bar = ProgressBar::new(images as u64).with_prefix(title.to_string());
        let template = "{prefix}  {bar:24} {pos}/{len}  {msg}  {rate} img/s  {eta} left";
        let bar = self.bars.add(bar.with_style(style(template)));
        bar.enable_steady_tick(Duration::from_millis(500));
        EpochBar(bar)
    }

    /// The line and the object of an epoch that has ended.
    pub fn epoch(&self, epoch: &Epoch) {
        self.line(epoch);
        self.event(&serde_json::json!({ "event": "epoch", "epoch": epoch }));
    }

    /// Follows a download of `what`: a line when it starts, a bar while it lasts.
    pub fn download(&self, what: impl fmt::Display) -> impl FnMut(hub::Progress) {
        let mut bar: Option<ProgressBar> = None;
        move |progress| {
            let bar = bar.get_or_insert_with(|| {
                self.line(format_args!(
                    "downloading {what}: {:.1} MB",
                    progress.total as f64 / 1e6
                ));
                let template = "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
                self.bars.add(ProgressBar::new(progress.total).with_style(style(template)))
            });
            bar.set_position(progress.downloaded);
            if progress.downloaded >= progress.total {
                bar.finish_and_clear();
            }
        }
    }

    fn to_stderr(&self, line: impl fmt::Display) {
        self.bars.suspend(|| writeln!(io::stderr(), "{line}").unwrap_or_default());
    }
}

/// A bar that shows how far an epoch is.
#[derive(Debug)]
pub struct EpochBar(ProgressBar);

impl EpochBar {
    /// `images` more are done; the epoch's mean loss and accuracy (0 to 1) so far.
    pub fn advance(&self, images: usize, loss: f64, top1: f64) {
        self.0.set_message(format!("loss {loss:.3}  acc {:.1}", 100.0 * top1));
        self.0.inc(images as u64);
    }
}

impl Drop for EpochBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, to: &mut dyn fmt::Write| {
        write!(to, "{:.0}", state.per_sec()).unwrap_or_default();
    };
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    style.with_key("rate", rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_would_read_something_else() {
        for (path, word) in [
            ("runs/fine-tune_2.a", "runs/fine-tune_2.a"),
            ("Läufe x", "'Läufe x'"),
            ("it's", r"'it'\''s'"),
            ("~", "'~'"),
            ("$HOME;ls", "'$HOME;ls'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
