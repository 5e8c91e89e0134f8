//! Ctrl-C, SIGTERM, SIGHUP: the first asks to stop, the second stops.

use std::io::{Write, stderr};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};

/// Whether the user has asked to stop. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Whether the user has asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks to stop, as the first signal does. Returns whether that had been asked before.
    pub fn set(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Stops where nothing needs to be finished first.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the user has asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

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
