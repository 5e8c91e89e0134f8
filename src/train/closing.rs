//! After the last step: the best weights judged again from their file, and where everything is.

use serde_json::json;

use super::metrics::Metrics;
use super::network::Network;
use super::pictures::Answers;
use super::run::{Images, Run};
use super::validate::judge;
use crate::error::{Context, Result};

impl Run<'_> {
    /// Judges the best weights again, from their file, and says where everything is.
    ///
    /// # Errors
    /// Those of reading and judging them.
    pub(super) fn conclude(self, images: &Images) -> Result<()> {
        self.finish_profile();
        self.gpu.trim();
        let judged = self.judge_best(images);
        let metrics = judged.inspect_err(|error| self.illustrate_stop(images, error))?;
        let best = self.progress.best.as_ref().filter(|_| metrics.is_some());
        self.console.event(&json!({
            "event": "end",
            "best_epoch": best.map(|best| best.epoch),
            "top1": metrics.as_ref().map(|metrics| metrics.top1),
            "top5": metrics.as_ref().map(|metrics| metrics.top5),
            "loss": metrics.as_ref().map(|metrics| metrics.loss),
            "output_dir": self.folder.path().to_string_lossy(),
        }));
        let memory = match self.progress.memory_bytes {
            0 => String::new(),
            bytes => format!("device memory {:.0} MB; ", bytes as f64 / 1e6),
        };
        let folder = self.folder.path().display();
        self.console.line(format_args!("{memory}everything is in {folder}"));
        Ok(())
    }

    /// Tells and writes where the time of the steps went, if that was asked for.
    pub(super) fn finish_profile(&self) {
        if let Some(profile) = &self.profile
            && let Err(error) = profile.finish(self.console)
        {
            self.console.warning(format_args!("no profile was written: {error}"));
        }
    }

    /// What the best weights do on the validation images; none without such.
    fn judge_best(&self, images: &Images) -> Result<Option<Metrics>> {
        let Self { gpu, config, console, .. } = self;
        let Some(best) = &self.progress.best else {
            self.illustrate_end(images, None);
            return Ok(None);
        };
        let network = Network::load(gpu, &self.folder.best(), None)
            .context(|| "reading the best weights back")?;
        let (batch, workers) = (config.batch_size, config.workers);
        let metrics = judge(gpu, &network, &images.val, batch, workers, self.interrupt)?.metrics;
        console.line(format_args!(
            "best: epoch {}, val Acc@1 {:.1}  Acc@5 {:.1}  loss {:.3} from the written file",
            best.epoch,
            100.0 * metrics.top1,
            100.0 * metrics.top5,
            metrics.loss
        ));
        let name = |class: usize| &network.classes[class];
        let confused: Vec<_> = metrics
            .most_confused(3)
            .iter()
            .map(|c| format!("{} taken for {} ({})", name(c.actual), name(c.predicted), c.images))
            .collect();
        if !confused.is_empty() {
            console.line(format_args!("most confused: {}", confused.join(", ")));
        }
        let (epoch, network) = (best.epoch, &network);
        self.illustrate_end(images, Some(Answers { epoch, network, metrics: &metrics }));
        Ok(Some(metrics))
    }
}
