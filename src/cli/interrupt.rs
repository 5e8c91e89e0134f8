//! Ctrl-C, SIGTERM, SIGHUP: the first asks to stop, the second stops.

use std::io::{Write, stderr};
use std::process::exit;
use std::sync::OnceLock;

use crate::train::Interrupt;

/// From now on the first signal sets what this returns, the same for every call, and the second
/// ends the process with exit code 130.
pub fn install() -> Interrupt {
    static INSTALLED: OnceLock<Interrupt> = OnceLock::new();
    let install = || {
        let interrupt = Interrupt::default();
        let signalled = interrupt.clone();
        let handler = move || {
            if signalled.set() {
                exit(130);
            }
            let text = "\ninterrupted: finishing the step; once more to stop at once";
            writeln!(stderr(), "{text}").unwrap_or_default();
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            writeln!(stderr(), "warning: a signal will stop without saving: {error}")
                .unwrap_or_default();
        }
        interrupt
    };
    INSTALLED.get_or_init(install).clone()
}
