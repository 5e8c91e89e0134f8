//! Before the first step: the images, what people are told, and `args.json`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::config::Config;
use super::console::Console;
use super::identity::check_options;
use super::network::Network;
use super::run_dir::RunDir;
use super::teachers::{Lessons, Teachers};
use crate::checkpoint::LoadReport;
use crate::data::{Archives, Dataset, Item, ScanOptions, Skipped};
use crate::error::{Context, Error, Result};
use crate::gpu::{AdapterReport, Gpu, Plan};
use crate::nn::{BnPolicy, Stage};
use crate::tune::digest;

/// Finds the images and tells of them.
///
/// # Errors
/// Those of [`Dataset::scan`], and [`Error::Data`] if there is no image to train on.
pub fn scan(config: &Config, console: &Console) -> Result<Dataset> {
    let root = config.data.root()?;
    let options = ScanOptions { val_fraction: config.val_fraction, seed: config.seed };
    let hint = match &config.resume {
        Some(_) if root.is_relative() => {
            " below the current folder; if the run was begun elsewhere, --data says where they are"
        }
        _ => "",
    };
    let dataset = Dataset::scan(&root, &options)
        .context(|| format!("looking for images in {}{hint}", root.display()))?;
    let counts = |items: &[Item]| {
        let classes = dataset.classes.len();
        let shown = if classes > 12 { 8 } else { classes };
        let counted = dataset.classes.iter().zip(dataset.per_class(items)).take(shown);
        let listed: Vec<_> = counted.map(|(class, count)| format!("{class} {count}")).collect();
        let more = match classes - shown {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{} ({}{more})", items.len(), listed.join(", "))
    };
    console.line(format_args!("data: {} classes in {}", dataset.classes.len(), root.display()));
    let Archives { count: archives, bytes_in_memory: bytes } = dataset.archives;
    if archives > 0 {
        let kept = match bytes {
            0 => "read in place".to_owned(),
            bytes => format!("{:.0} MB of images kept in memory", bytes as f64 / 1e6),
        };
        console.line(format_args!("  archives {archives} ({kept})"));
    }
    console.line(format_args!("  train {}", counts(&dataset.train)));
    console.line(format_args!("  val {}", counts(&dataset.val)));
    if let Some(warning) = dataset.left_out_warning() {
        console.warning(warning);
    }
    if !dataset.others.is_empty() {
        console.line(format_args!("  left out {}", dataset.others));
    }
    if dataset.val.is_empty() && config.val_fraction > 0.0 {
        console.warning(
            "no class has an image to spare for validation, so the last epoch counts as the best; add \
             images, or val/",
        );
    }
    if dataset.train.is_empty() {
        return Err(Error::data(&root, "there is no image to train on"));
    }
    if let (true, Some(patience)) = (dataset.val.is_empty(), config.patience) {
        console.warning(format_args!(
            "--patience {patience} does nothing without images to validate with; add val/, or raise \
             --val-fraction"
        ));
    }
    Ok(dataset)
}

/// Images found to be unreadable, each told of once.
#[derive(Default)]
pub struct Unreadable(BTreeSet<PathBuf>);

impl Unreadable {
    /// Warns of those that are new.
    pub fn tell(&mut self, console: &Console, skipped: &[Skipped]) {
        for Skipped { path, reason } in skipped {
            if self.0.insert(path.clone()) {
                console.warning(format_args!("left out {}: {reason}", path.display()));
            }
        }
    }
}

/// Tells what is trained, and what stays as it is.
pub fn tell_network(console: &Console, config: &Config, network: &Network) {
    console.line(format_args!(
        "network: {} with {} classes, {} px",
        network.net.arch(),
        network.classes.len(),
        network.image_size
    ));
    let bn = match config.bn {
        BnPolicy::Train => "trained where layers are, frozen elsewhere",
        BnPolicy::Frozen => "frozen everywhere",
    };
    console.line(format_args!(
        "batch norm: {bn}; frozen layers: {}",
        match config.freeze.train_from() {
            Stage::Stem => "none".into(),
            stage => format!("everything before {}", stage.name()),
        }
    ));
}

/// Tells what the network starts from: what became of the weights, or that they are random.
pub fn tell_weights(console: &Console, config: &Config, report: Option<&LoadReport>) {
    match report {
        Some(report) => {
            let report = report.to_string().replace('\n', "\n  ");
            console.line(format_args!("weights: {}, {report}", config.weights));
        }
        None => console.line("weights: random"),
    }
}

/// Tells what a step takes, and warns if a batch has to be done in parts.
pub fn tell_plan(
    console: &Console,
    config: &Config,
    plan: &Plan,
    micro_batch: usize,
    batch: usize,
) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    console.line(format_args!(
        "memory: {:.0} MB on the device; the largest binding takes {:.1} of the {:.0} MB that can be \
         bound; {} kernels a step",
        mb(plan.peak_bytes),
        mb(plan.largest_bytes),
        mb(plan.binding_limit),
        plan.dispatches
    ));
    let statistics = match config.bn {
        BnPolicy::Train => ", and batch norm sees each part by itself",
        BnPolicy::Frozen => "",
    };
    let in_parts = format!("{micro_batch} at a time; gradients add up{statistics}");
    if micro_batch < batch.min(config.batch_size) {
        console.warning(format_args!("a batch of {batch} does not fit and is done {in_parts}"));
    } else if micro_batch < batch {
        console.line(format_args!("a step of {batch} images is done {in_parts}"));
    }
}

/// What `args.json` holds: the options as resolved, and what ran them.
#[derive(Serialize)]
pub struct Args<'a> {
    command: &'a str,
    version: &'static str,
    commit: &'static str,
    host: Host,
    adapter: &'a AdapterReport,
    /// How activations are stored: `f32` or `mixed`.
    precision: &'static str,
    /// The choices of kernels by an earlier `--tune`, as [`digest`] has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuned: Option<String>,
    /// Whether kernels keep the shader compiler's bounds checks.
    checked: bool,
    classes: &'a [String],
    #[serde(flatten)]
    config: Config,
}

#[derive(Serialize)]
struct Host {
    os: &'static str,
    cpu: &'static str,
    threads: usize,
}

impl<'a> Args<'a> {
    /// Of a run of `command`.
    pub fn new(gpu: &'a Gpu, config: &Config, classes: &'a [String], command: &'a str) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            command,
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("WGRAD_COMMIT"),
            host: Host { os: std::env::consts::OS, cpu: std::env::consts::ARCH, threads },
            adapter: gpu.report(),
            precision: if gpu.mixed() { "mixed" } else { "f32" },
            tuned: digest(gpu),
            checked: gpu.checked(),
            classes,
            config: Config {
                head_lr: Some(config.head_lr()),
                lr_mult: Some(config.lr_mult.unwrap_or(1.0)),
                workers: if config.workers == 0 { threads } else { config.workers },
                ..config.clone()
            },
        }
    }

    /// Checks that a run that goes on is the one that was begun in `folder`, with `then`, the content of
    /// its `args.json`; warns if something else than options might change its numbers.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option that differs.
    pub fn check(&self, folder: &RunDir, then: &Value, console: &Console) -> Result<()> {
        let now = serde_json::to_value(self).map_err(std::io::Error::from);
        let now = now.map_err(Error::io("args.json"))?;
        // Other images are found by looking at them, and told class by class; other kernels, before a
        // step goes by them.
        let besides = ["version", "commit", "host", "adapter", "tuned", "checked", "classes"];
        check_options(
            &now,
            &resolved(then, &now),
            &[&besides, Config::MAY_CHANGE].concat(),
            folder,
        )?;
        for what in ["commit", "adapter"] {
            if then[what] != now[what] {
                console.warning(format_args!(
                    "the run was begun with another {what}: what follows may differ in the last \
                     bits from what would have followed without a stop"
                ));
            }
        }
        Ok(())
    }
}

/// The content of an `args.json` with what earlier versions left to be worked out, or had elsewhere; `now` is
/// that of this version.
fn resolved(args: &Value, now: &Value) -> Value {
    let mut args = args.clone();
    let options = args.as_object_mut();
    if let Some((options, Value::Object(mut lessons))) =
        options.and_then(|options| options.remove("lessons").map(|lessons| (options, lessons)))
    {
        options.append(&mut lessons);
        if options["teachers"] == now["teachers"] {
            options.insert("teacher_sha256".into(), now["teacher_sha256"].clone());
        }
    }
    if let (Value::Null, Some(factor), Some(lr)) =
        (&args["head_lr"], args["head_over_lr"].as_f64(), args["lr"].as_f64())
    {
        args["head_lr"] = (factor * lr).into();
    }
    if args["lr_mult"].is_null() {
        args["lr_mult"] = 1.0.into();
    }
    args
}

/// Tells whom the network learns from.
pub fn tell_teachers(console: &Console, teachers: &Teachers) {
    let names: Vec<_> =
        teachers.networks().iter().map(|teacher| teacher.net.arch().to_string()).collect();
    let Lessons { temperature, task_loss_weight, distill_loss_weight, .. } = teachers.lessons();
    console.line(format_args!(
        "teachers: {}; loss {task_loss_weight} × by the labels + {distill_loss_weight} × by the \
         teachers at temperature {temperature}",
        names.join(", ")
    ));
}
