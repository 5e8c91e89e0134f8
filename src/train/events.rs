//! What `--tensorboard` writes after each epoch.

use serde_json::Value;

use super::leg::Leg;
use super::run::Run;
use super::run_dir::read_json;
use crate::data::decode;
use crate::error::Result;
use crate::report::History;
use crate::report::tensorboard::{Events, Summary, last_step};

/// What the loss of a step is called.
const LOSS: &str = "step/loss";
/// The run's pictures that TensorBoard shows too.
const PICTURES: [&str; 3] = ["train_batch0.jpg", "val_predictions.jpg", "confusion_matrix.png"];

impl Run<'_> {
    /// Adds the epoch that has just ended: its steps, what it brought, the pictures, and how weights
    /// and gradients of the layers that were trained are distributed.
    ///
    /// # Errors
    /// What the device or the disk reported.
    pub(super) fn add_events(&mut self, leg: &Leg) -> Result<()> {
        let folder = self.folder.path().to_owned();
        let (events, told) = match &mut self.pictures.events {
            Some(events) => (events, None),
            none => {
                let args: Value = read_json(&self.folder.args())?;
                let place = folder.join("tensorboard");
                // Of an epoch that was cut short, the steps until then.
                let told = last_step(&place, LOSS)?;
                let events = none.insert(Events::create(&place)?);
                let mut summary = Summary::default();
                summary.text("args", &table(&args));
                events.add(self.progress.step, summary)?;
                (events, told)
            }
        };
        let history = History::read(&folder)?;
        let epoch = self.progress.epoch;
        let steps = (0..).zip(&history.steps).filter(|(_, it)| it.epoch + 1 == epoch);
        for (number, step) in steps.filter(|&(number, _)| Some(number) > told) {
            let mut summary = Summary::default();
            summary.scalar(LOSS, step.loss.unwrap_or(f64::NAN));
            for (group, &rate) in step.lr.iter().enumerate() {
                summary.scalar(&format!("lr/pg{group}"), rate);
            }
            events.add(number, summary)?;
        }
        let mut summary = Summary::default();
        if let Some(row) = history.epochs.iter().find(|row| row.epoch == epoch) {
            let values = [
                ("train/loss", row.train_loss),
                ("train/accuracy_top1", row.train_top1),
                ("val/loss", row.val_loss),
                ("metrics/accuracy_top1", row.val_top1),
                ("metrics/accuracy_top5", row.val_top5),
                ("images_per_second", row.images_per_second),
            ];
            for (tag, value) in values.into_iter().filter(|(_, value)| value.is_finite()) {
                summary.scalar(tag, value);
            }
        }
        for name in PICTURES {
            let path = folder.join(name);
            if path.exists() {
                summary.image(name, &decode(&path)?);
            }
        }
        let parameters = leg.network.net.parameters();
        let scaling = leg.optimizer.scaling(self.gpu)?;
        let scale = scaling.map_or(1.0, |scaling| scaling.of_gradients as f32);
        let arenas =
            [("weights", Some(parameters.values())), ("gradients", parameters.gradients())];
        for (kind, arena) in arenas {
            let Some(arena) = arena else { continue };
            let values = parameters.download(self.gpu, arena)?;
            for (parameter, mut values) in parameters.list().iter().zip(values) {
                if parameter.stage >= leg.phase.train_from {
                    if kind == "gradients" {
                        values.iter_mut().for_each(|value| *value /= scale);
                    }
                    summary.histogram(&format!("{kind}/{}", parameter.name), &values);
                }
            }
        }
        events.add(self.progress.step, summary)
    }
}

/// A table of the options, in Markdown.
fn table(args: &Value) -> String {
    let row = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("| {name} | {} |\n", value.replace('|', "\\|").replace('\n', " "))
    };
    let rows: String = args.as_object().into_iter().flatten().map(row).collect();
    format!("| option | value |\n| --- | --- |\n{rows}")
}
