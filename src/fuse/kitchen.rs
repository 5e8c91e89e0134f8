//! What averaging needs in one place: the ingredients in line, the images, the judge, the folder.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::FuseConfig;
use super::average::{Tensors, is_backbone, same_backbone, weighted_sum};
use super::ingredient::{Ingredient, ONE_SIZE, common_image_size};
use super::journal::{Entry, Journal, Statistics, short_name};
use super::judge::{Images, Judge, Measured, Recalibration};
use super::lineage;
use crate::checkpoint::{Checkpoint, Dtype, Meta, copy_atomically};
use crate::data::ScanOptions;
use crate::error::{Context, Result};
use crate::gpu::Gpu;
use crate::train::config::DataSource;
use crate::train::run_dir::write_json;
use crate::train::{Console, HeldOut, Interrupt, RunDir};

/// Accuracy lost on the way from two networks to their average that tells of a barrier between them.
const BARRIER: f64 = 0.1;

/// Ingredients that can be averaged, and what their averages are judged with.
pub struct Kitchen<'a> {
    pub ingredients: Vec<Ingredient>,
    /// What the table calls them.
    pub names: Vec<String>,
    pub images: Images,
    pub judge: Judge<'a>,
    pub journal: Journal<'a>,
    pub console: &'a Console,
    /// The ingredient whose classifier every average has, where others' are for other classes.
    pub head: Option<usize>,
    config: FuseConfig,
    folder: RunDir,
}

/// An average, measured.
pub struct Candidate {
    pub tensors: Tensors,
    /// The ingredients and their coefficients.
    pub parts: Vec<(usize, f64)>,
    /// What its statistics were computed from, if they were.
    pub recalibration: Option<Recalibration>,
    /// With the statistics that averaging gave, where those were replaced and it was asked for.
    pub before: Option<Measured>,
    /// As it is.
    pub measured: Measured,
    pub statistics: Statistics,
}

impl<'a> Kitchen<'a> {
    /// Reads the ingredients and everything else, and makes the folder for the output.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming an ingredient that cannot be read or does not go with the first,
    /// and those of scanning the images; nothing has been written then.
    pub fn open(
        gpu: &'a Gpu,
        config: FuseConfig,
        paths: &[PathBuf],
        heads_may_differ: bool,
        console: &'a Console,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        config.check()?;
        let ingredients = paths.iter().map(|path| Ingredient::read(path));
        let mut ingredients = ingredients.collect::<Result<Vec<_>>>()?;
        for ingredient in &ingredients[1..] {
            ingredient.check_same_network(&ingredients[0])?;
        }
        let image_size = common_image_size(&ingredients, config.image_size, ONE_SIZE)?;
        let mut images = Images::scan(&config, console)?;
        for ingredient in &mut ingredients {
            ingredient.checkpoint.call_classes_like(&images.classes);
        }
        let fitting = |ingredient: &Ingredient| ingredient.checkpoint.is_for(&images.classes);
        let fit: Vec<usize> =
            (0..ingredients.len()).filter(|&at| fitting(&ingredients[at])).collect();
        let mut head = None;
        if heads_may_differ
            && let [only] = fit[..]
            && ingredients.len() > 1
        {
            head = Some(only);
        }
        // Its class order is everybody's, so that its rows stay where they are.
        let leader = match head {
            None if heads_may_differ && fit.is_empty() => ingredients.len() - 1,
            head => head.unwrap_or(0),
        };
        let data = config.data.to_string();
        ingredients[leader].check_classes(&images.classes, &data)?;
        if let Some(classes) = ingredients[leader].checkpoint.meta.classes.clone() {
            images.order_classes(&classes);
        }
        for (at, ingredient) in ingredients.iter_mut().enumerate() {
            if head.is_none_or(|head| head == at) {
                ingredient.order_classes(&images.classes, &data)?;
            }
        }
        warn_of_seeds(&ingredients, &images, &config.data, console);
        for ingredient in &ingredients[1..] {
            if let Some(warning) = ingredient.stranger(&ingredients[0]) {
                console.warning(warning);
            }
        }
        let leader = &ingredients[leader].checkpoint;
        let judge = Judge::new(gpu, &config, leader, image_size, console, interrupt)?;
        let folder = RunDir::create(config.output_dir.as_deref(), "fuse")?;
        let names: Vec<String> =
            ingredients.iter().map(|ingredient| short_name(&ingredient.path)).collect();
        let with_test = !images.test.is_empty();
        let journal =
            Journal::start(console, folder.path(), names.iter().map(String::as_str), with_test)?;
        Ok(Self { ingredients, names, images, judge, journal, console, head, config, folder })
    }

    /// Writes `args.json`: the options as resolved, and what ran them.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn write_args(&self, gpu: &Gpu, command: &str, options: Value) -> Result<()> {
        write_args(&self.folder, gpu, command, &self.ingredients, &self.config, options)
    }

    /// The folder for the output.
    pub fn folder(&self) -> &RunDir {
        &self.folder
    }

    /// Averages ingredients. If what comes out is one of them to the bit, it keeps that one's
    /// statistics; else they are computed anew, unless that was not asked for.
    ///
    /// # Errors
    /// Those of recalibrating and measuring.
    pub fn average(&self, parts: &[(usize, f64)], measure_before: bool) -> Result<Candidate> {
        let mut tensors = self.weights(parts);
        let is_parent = self.ingredients.iter().any(|one| same_backbone(&tensors, one.tensors()));
        let (mut before, mut recalibration) = (None, None);
        let mut statistics = if is_parent { Statistics::Own } else { Statistics::Averaged };
        if self.config.recalibrate && !is_parent {
            if measure_before {
                before = Some(self.judge.measure(&tensors, &self.images)?);
            }
            recalibration = Some(self.judge.recalibrate(&mut tensors, &self.images)?);
            statistics = Statistics::Recalibrated;
        }
        let measured = self.judge.measure(&tensors, &self.images)?;
        let parts = parts.to_vec();
        Ok(Candidate { tensors, parts, recalibration, before, measured, statistics })
    }

    fn weights(&self, parts: &[(usize, f64)]) -> Tensors {
        let Some(head) = self.head else {
            let parts: Vec<(f64, &Tensors)> =
                parts.iter().map(|&(at, share)| (share, self.ingredients[at].tensors())).collect();
            return weighted_sum(&parts);
        };
        let backbone = |at: usize| -> Tensors {
            let tensors = self.ingredients[at].tensors().iter();
            let tensors = tensors.filter(|(name, _)| is_backbone(name));
            tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
        };
        let backbones: Vec<(f64, Tensors)> =
            parts.iter().map(|&(at, share)| (share, backbone(at))).collect();
        let parts: Vec<(f64, &Tensors)> =
            backbones.iter().map(|(share, tensors)| (*share, tensors)).collect();
        let mut tensors = weighted_sum(&parts);
        let kept = self.ingredients[head].tensors().iter();
        let kept = kept.filter(|(name, _)| !is_backbone(name));
        tensors.extend(kept.map(|(name, tensor)| (name.clone(), tensor.clone())));
        tensors
    }

    /// Notes a candidate: one line, or two if it was measured before and after.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn note(
        &mut self,
        kind: &'static str,
        name: &str,
        alpha: Option<f64>,
        candidate: &Candidate,
    ) -> Result<()> {
        let members: Vec<usize> = candidate.parts.iter().map(|(at, _)| *at).collect();
        if let Some(before) = &candidate.before {
            self.enter(kind, name, alpha, &members, Statistics::Averaged, before)?;
        }
        self.enter(kind, name, alpha, &members, candidate.statistics, &candidate.measured)
    }

    /// Notes what was measured.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn enter(
        &mut self,
        kind: &'static str,
        name: &str,
        alpha: Option<f64>,
        members: &[usize],
        batch_norm: Statistics,
        measured: &Measured,
    ) -> Result<()> {
        let path = |&at: &usize| self.ingredients[at].path.to_string_lossy().into_owned();
        self.journal.add(&Entry {
            kind,
            name: name.to_owned(),
            alpha,
            members: members.iter().map(path).collect(),
            batch_norm,
            scores: measured.scores(),
        })
    }

    /// Warns of an average that is far worse than everything that went into it.
    pub fn warn_of_barrier(&self, name: &str, average: f64, worst_parent: f64) {
        if average < worst_parent - BARRIER {
            self.console.warning(format_args!(
                "{name}: val Acc@1 {:.1}, where no parent has less than {:.1}: there is a barrier \
                 between these networks, as between ones trained apart; an ensemble (`wgrad fuse \
                 ensemble`) or a student (`wgrad fuse distill`) joins them better",
                100.0 * average,
                100.0 * worst_parent
            ));
        }
    }

    /// Writes an average to `path`, its lineage included.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn write(&self, path: PathBuf, candidate: &Candidate, method: &Value) -> Result<()> {
        let first = &self.ingredients[self.head.unwrap_or(0)].checkpoint;
        let parents = candidate.parts.iter();
        let mut provenance = json!({
            "tool": concat!("wgrad ", env!("CARGO_PKG_VERSION")),
            "fuse": method,
            "data": self.config.data.to_string(),
            "batch_norm": {
                "statistics": candidate.statistics,
                "recalibration": candidate.recalibration,
            },
            "parents": parents
                .map(|&(at, share)| lineage::parent(&self.ingredients[at], share))
                .collect::<Vec<_>>(),
        });
        if let Some(ScanOptions { val_fraction, seed }) = self.images.held_out {
            provenance["val_fraction"] = val_fraction.into();
            provenance["seed"] = seed.into();
            provenance["images_sha256"] = self.images.held_out_of.clone().into();
        }
        if let Some(head) = self.head {
            provenance["classifier_of"] = self.ingredients[head].path.to_string_lossy().into();
        }
        let checkpoint = Checkpoint {
            arch: first.arch,
            tensors: candidate.tensors.clone(),
            meta: Meta {
                classes: Some(self.images.classes.clone()),
                image_size: Some(self.judge.image_size()),
                provenance: Some(provenance),
                extra: Default::default(),
                ..first.meta.clone()
            },
            dtype: Dtype::F32,
            missing: Vec::new(),
            unexpected: Vec::new(),
        };
        checkpoint.write(path, Dtype::F32).context(|| "saving the fused network")
    }

    /// Writes the fused network, and says where everything is.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn serve(&self, name: &str, candidate: &Candidate, method: &Value) -> Result<()> {
        let fused = self.folder.fused();
        self.write(fused.clone(), candidate, method)?;
        // `predict` and `evaluate` look for the best weights of the newest run.
        let best = self.folder.best();
        std::fs::hard_link(&fused, &best).or_else(|_| copy_atomically(&fused, &best))?;
        self.console.event(&json!({
            "event": "end",
            "name": name,
            "result": candidate.measured.scores(),
            "output_dir": self.folder.path().to_string_lossy(),
            "weights": fused.to_string_lossy(),
        }));
        self.console.line(format_args!(
            "{name} is in {}, what was measured in {}",
            fused.display(),
            self.folder.path().display()
        ));
        Ok(())
    }
}

/// Writes `args.json`: the options as resolved, and what ran them.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn write_args(
    folder: &RunDir,
    gpu: &Gpu,
    command: &str,
    ingredients: &[Ingredient],
    config: &FuseConfig,
    options: Value,
) -> Result<()> {
    let path = |one: &Ingredient| one.path.to_string_lossy().into_owned();
    let args = json!({
        "command": command,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("WGRAD_COMMIT"),
        "adapter": gpu.report(),
        "networks": ingredients.iter().map(path).collect::<Vec<_>>(),
        "options": options,
        "config": config,
        "output_dir": folder.path().to_string_lossy(),
    });
    write_json(&folder.args(), &args)
}

/// Where the validation images are drawn by a seed, networks trained with other seeds have seen some, and
/// so have those of which fewer were held out: the first of the same ones.
pub fn warn_of_seeds(
    ingredients: &[Ingredient],
    images: &Images,
    data: &DataSource,
    console: &Console,
) {
    let Some(ScanOptions { val_fraction, seed }) = images.held_out else { return };
    for ingredient in ingredients {
        let Some(provenance) = &ingredient.checkpoint.meta.provenance else { continue };
        // Older networks do not tell which images they were trained on: they are taken for these.
        if let Some(own) = HeldOut::of(Some(provenance)).filter(|own| own.images.is_some()) {
            let now = ScanOptions { val_fraction, seed };
            if let Some(doubt) = own.doubt(now, images.held_out_of.as_deref(), &images.root) {
                console.warning(format_args!("{}: {doubt}", ingredient.name()));
            }
            continue;
        }
        let own_seed = provenance["seed"].as_u64().filter(|&own| own != seed);
        let own_fraction = provenance["val_fraction"].as_f64().filter(|&own| own < val_fraction);
        let (own, here) = match (own_seed, own_fraction) {
            (None, None) => continue,
            (Some(own), _) => (format!("--seed {own}"), format!("--seed {seed}")),
            (None, Some(own)) => {
                (format!("--val-fraction {own}"), format!("--val-fraction {val_fraction}"))
            }
        };
        console.warning(format_args!(
            "{} was trained with {own}, which held out other images of {data} than {here} does: it has \
             seen some that it is judged on; put val/ beside train/, or train all alike",
            ingredient.name(),
        ));
    }
}
