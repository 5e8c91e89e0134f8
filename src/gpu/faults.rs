//! What went wrong on the device.

use std::sync::{Arc, Mutex};

use crate::{Error, Result};

/// The first thing that went wrong on the device since it was last asked.
///
/// The native backends report errors while the call that causes them runs, so a handler for
/// errors outside any scope sees everything, and one check after each submission suffices.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Option<Fault>>>);

enum Fault {
    OutOfMemory,
    Lost(String),
    Other(String),
}

impl Faults {
    pub fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let errors = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            errors.set(match error {
                wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
                error => Fault::Other(error.to_string()),
            });
        }));
        let losses = faults.clone();
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                losses.set(Fault::Lost(text));
            }
        });
        faults
    }

    fn set(&self, fault: Fault) {
        if let Ok(mut first) = self.0.lock() {
            first.get_or_insert(fault);
        }
    }

    pub fn check(&self) -> Result<()> {
        let fault = self.0.lock().ok().and_then(|mut first| first.take());
        Err(match fault {
            None => return Ok(()),
            Some(Fault::OutOfMemory) => Error::OutOfMemory("(device memory)".into()),
            Some(Fault::Lost(text)) => Error::Gpu(format!(
                "the device was lost ({text}); the driver may have reset it because a submission \
                 took too long: try a smaller --batch-size, or another --adapter"
            )),
            Some(Fault::Other(text)) => {
                Error::Gpu(format!("the device refused a command; this is a bug in wgrad: {text}"))
            }
        })
    }
}
