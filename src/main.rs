//! Parse, run, print the error chain, exit.

use std::error::Error as _;
use std::io::{ErrorKind, Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use wgrad::Error;
use wgrad::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(stderr(), "error: {}", chain(&error)).unwrap_or_default();
            ExitCode::from(error.exit_code())
        }
    }
}

/// What was being done, down to what went wrong, on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some texts already end with their cause's.
        if !text.ends_with(&cause_text) {
            text += ": ";
            text += &cause_text;
        }
        source = cause.source();
    }
    text
}

/// Whether whoever read the output has seen enough, as `head` does.
fn reader_left(error: &Error) -> bool {
    match error {
        Error::Context { source, .. } => reader_left(source),
        Error::Io { source, .. } => source.kind() == ErrorKind::BrokenPipe,
        _ => false,
    }
}
