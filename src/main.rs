//! Parse, run, print the error chain, exit.

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
            writeln!(stderr(), "error: {}", error.chain()).unwrap_or_default();
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether whoever read the output has seen enough, as `head` does.
fn reader_left(error: &Error) -> bool {
    match error {
        Error::Context { source, .. } => reader_left(source),
        Error::Io { source, .. } => source.kind() == ErrorKind::BrokenPipe,
        _ => false,
    }
}
