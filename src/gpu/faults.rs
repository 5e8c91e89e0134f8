//! What went wrong on the device.

use std::sync::{Arc, Mutex};

use crate::{Error, Result};

/// The first thing that went wrong on the device since it was last asked; its loss for good.
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
        let Ok(mut first) = self.0.lock() else { return };
        // A loss counts more than what came before it.
        if first.is_none() || matches!(fault, Fault::Lost(_)) {
            *first = Some(fault);
        }
    }

    pub fn check(&self) -> Result<()> {
        let Ok(mut first) = self.0.lock() else { return Ok(()) };
        let fault = match &*first {
            // Nothing else will tell those who ask next.
            Some(Fault::Lost(text)) => Some(Fault::Lost(text.clone())),
            _ => first.take(),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_a_loss_to_all_who_ask() {
        let faults = Faults::default();
        faults.set(Fault::OutOfMemory);
        faults.set(Fault::Other("later".into()));
        assert!(matches!(faults.check(), Err(Error::OutOfMemory(_))));
        assert!(faults.check().is_ok());
        faults.set(Fault::Other("first".into()));
        faults.set(Fault::Lost("reset".into()));
        faults.set(Fault::OutOfMemory);
        for _ in 0..2 {
            assert!(
                faults.check().unwrap_err().to_string().contains("the device was lost (reset)")
            );
        }
    }
}
