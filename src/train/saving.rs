//! What a run leaves behind to go on from, at any time.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::config::DataSource;
use super::identity::command_to_resume;
use super::leg::Leg;
use super::network::Network;
use super::run::Run;
use super::state::{Named, State};
use crate::data::{Dataset, ScanOptions};
use crate::error::Result;

impl Run<'_> {
    /// Saves what a run that is asked to stop can go on from.
    pub(super) fn stop(&mut self, leg: &Leg) -> Result<()> {
        let last = self.folder.last();
        leg.network.save(self.gpu, &last, self.provenance(self.progress.epoch + 1))?;
        self.console.line(format_args!("the weights so far are in {}", last.display()));
        if let Some(command) = command_to_resume(self.name, self.folder.path()) {
            self.console.line(format_args!("`{command}` goes on"));
        }
        self.console.event(&json!({
            "event": "interrupted",
            "step": self.progress.step,
            "output_dir": self.folder.path().to_string_lossy(),
        }));
        self.save_state(leg)
    }

    /// Saves what the run can go on from.
    pub(super) fn save_state(&mut self, leg: &Leg) -> Result<()> {
        let started = Instant::now();
        self.progress.seconds = self.seconds();
        let mut memory = self.memory(leg.network);
        if self.progress.phase_step > 0 {
            memory.extend(leg.optimizer.state());
        }
        let state = State::take(self.gpu, leg.network, &memory, &self.progress)?;
        // What the state says is logged must be on the disk before it.
        self.steps.sync()?;
        self.results.sync()?;
        state.write(&self.folder.state())?;
        self.saver.saved(started);
        Ok(())
    }

    /// The device memory that lasts as long as the run.
    pub(super) fn memory(&self, network: &Network) -> Vec<Named> {
        let mut memory = vec![
            ("parameters".to_owned(), network.net.parameters().values().clone()),
            ("statistics".to_owned(), network.net.statistics().clone()),
        ];
        memory.extend(self.start.clone().map(|start| ("start".to_owned(), start)));
        if let Some(ema) = &self.ema {
            let names = ["ema.parameters", "ema.statistics"].map(str::to_owned);
            memory.extend(names.into_iter().zip(ema.averages().cloned()));
        }
        memory
    }

    /// What the weights' file says of where they come from.
    pub(super) fn provenance(&self, epoch: u32) -> Value {
        let config = self.config;
        let mut provenance = json!({
            "tool": concat!("wgrad ", env!("CARGO_PKG_VERSION")),
            "weights": config.weights.to_string(),
            "data": config.data.to_string(),
            "epoch": epoch,
            "seed": config.seed,
        });
        if let Some(ScanOptions { val_fraction, .. }) = self.held_out {
            provenance["val_fraction"] = val_fraction.into();
            provenance["images_sha256"] = self.held_out_of.clone().into();
        }
        if let Some(teachers) = self.teachers {
            let lessons = teachers.lessons();
            provenance["fuse"] = json!({
                "method": "distill",
                "temperature": lessons.temperature,
                "task_loss_weight": lessons.task_loss_weight,
                "distill_loss_weight": lessons.distill_loss_weight,
            });
            provenance["parents"] = teachers.lineage().into();
        }
        provenance
    }
}

/// How images were held out of a network's training.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// Of which, as `--data` had it.
    pub data: String,
    /// How.
    pub options: ScanOptions,
    /// Of which images, as [`Dataset::undivided`] has it; older networks do not tell.
    pub images: Option<String>,
}

impl HeldOut {
    /// What a weights' file says of the training it comes from; none if it does not, or there were no such
    /// images.
    pub fn of(provenance: Option<&Value>) -> Option<Self> {
        let provenance = provenance?;
        let val_fraction = provenance["val_fraction"].as_f64()?;
        let seed = provenance["seed"].as_u64()?;
        let data = provenance["data"].as_str().unwrap_or_default().to_owned();
        let is_share = val_fraction > 0.0 && val_fraction < 1.0;
        let images = provenance["images_sha256"].as_str().map(str::to_owned);
        is_share.then_some(Self { data, options: ScanOptions { val_fraction, seed }, images })
    }

    /// Whether it was of the images at `root`: by what they are called there, else by where they lie.
    pub fn is_of(&self, root: &Path) -> bool {
        match &self.images {
            Some(images) => {
                Dataset::undivided(root).is_ok_and(|here| here.as_ref() == Some(images))
            }
            None => self.is_at(root),
        }
    }

    /// Why the network may have seen some of what `now` holds out of these `images` at `root`; none if, as far
    /// as is known, it has not.
    pub fn doubt(&self, now: ScanOptions, images: Option<&str>, root: &Path) -> Option<String> {
        let ScanOptions { val_fraction, seed } = self.options;
        let reason = match &self.images {
            Some(own) if Some(own.as_str()) != images => {
                let changed = "images have come, gone or been renamed since it was trained";
                self.is_at(root).then(|| changed.to_owned())?
            }
            None if !self.is_at(root) => return None,
            _ if seed != now.seed => {
                format!("it was trained with --seed {seed}, which held out others of these images")
            }
            _ if val_fraction < now.val_fraction => {
                format!("it was trained with --val-fraction {val_fraction}, which held out fewer")
            }
            _ => return None,
        };
        Some(format!("{reason}: it has seen some that are held out now; put val/ beside train/"))
    }

    /// Whether that is where the images were.
    pub fn is_at(&self, root: &Path) -> bool {
        let Ok(data) = self.data.parse::<DataSource>();
        let own = data.root().ok().and_then(|own| own.canonicalize().ok());
        own.is_some() && own == root.canonicalize().ok()
    }
}
