//! Networks that answer together: the strong baseline that every fusion of weights is compared with,
//! at the cost of running them all.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::FuseConfig;
use super::ingredient::{Ingredient, ONE_SIZE, common_image_size};
use super::journal::{Entry, Journal, Statistics, short_name};
use super::judge::{Images, Judge, Measured};
use super::kitchen::{warn_of_seeds, write_args};
use super::score::{Average, join, log_softmax};
use crate::checkpoint::write_atomically;
use crate::error::{Context, Error, Result};
use crate::gpu::Gpu;
use crate::train::config::check_image_size;
use crate::train::{Classifier, Console, HeldOut, Interrupt, Network, Reply, RunDir};

/// What `ensemble.json` holds.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// How answers are joined.
    #[serde(default)]
    pub average: Average,
    /// Side of the square input in pixels; none for the networks' own, which then must be one.
    #[serde(default)]
    pub image_size: Option<u32>,
    pub members: Vec<Member>,
}

/// A network of an ensemble.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// Its file; a relative path starts at the manifest's folder.
    pub path: PathBuf,
    /// Of the file, in hexadecimal digits; checked when there is one.
    #[serde(default)]
    pub sha256: Option<String>,
}

impl Manifest {
    /// Reads the file at `path`; paths in it then start where others do.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is no ensemble's, names no networks or one that is missing,
    /// [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut manifest: Self = serde_json::from_str(&text)
            .map_err(|error| Error::checkpoint(path, format!("is no ensemble: {error}")))?;
        if manifest.members.is_empty() {
            return Err(Error::checkpoint(path, "names no networks"));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        for member in &mut manifest.members {
            member.path = folder.join(&member.path);
            if !member.path.exists() {
                let missing = member.path.display();
                let what = format!(
                    "the ensemble's member {missing} is missing; put it back, or write in this list \
                     where it is now"
                );
                return Err(Error::checkpoint(path, what));
            }
        }
        Ok(manifest)
    }
}

/// Networks on a device that answer together.
pub struct Ensemble {
    members: Vec<Network>,
    average: Average,
}

impl Ensemble {
    /// Whether the file at `path` is an ensemble's rather than a network's.
    pub fn is_manifest(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "json")
    }

    /// Loads the networks that a file written by [`ensemble`] names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file that is damaged, has changed, or has other classes than
    /// the first; [`Error::Usage`] if the networks take inputs of different sizes and none is given.
    pub fn load(gpu: &Gpu, path: &Path, image_size: Option<u32>) -> Result<Self> {
        let doing = || format!("loading the ensemble {}", path.display());
        Self::load_members(gpu, path, image_size).context(doing)
    }

    /// The networks.
    pub fn members(&self) -> &[Network] {
        &self.members
    }

    fn load_members(gpu: &Gpu, path: &Path, image_size: Option<u32>) -> Result<Self> {
        let Ingredients { members, average, image_size: own_size } = Ingredients::read(path)?;
        let image_size = common_image_size(&members, image_size.or(own_size), ONE_SIZE)?;
        let load = |member: &Ingredient| {
            Network::from_checkpoint(gpu, &member.checkpoint, Some(image_size))
        };
        Ok(Self { members: members.iter().map(load).collect::<Result<_>>()?, average })
    }
}

/// What a file written by [`ensemble`] names.
pub(super) struct Ingredients {
    /// The networks, with their classes in the order of the first's.
    pub members: Vec<Ingredient>,
    /// How their answers are joined.
    pub average: Average,
    /// Side of the square input in pixels, if the file says.
    pub image_size: Option<u32>,
}

impl Ingredients {
    /// Reads the file at `path`, and those that it names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file that is damaged, has changed, or has other classes than
    /// the first.
    pub fn read(path: &Path) -> Result<Self> {
        let Manifest { average, image_size, members } = Manifest::read(path)?;
        image_size
            .map_or(Ok(()), check_image_size)
            .map_err(|error| Error::checkpoint(path, error.to_string()))?;
        let mut ingredients = Vec::with_capacity(members.len());
        for Member { path, sha256 } in members {
            let ingredient = Ingredient::read(&path)?;
            if sha256.is_some_and(|sha256| sha256 != ingredient.sha256) {
                return Err(ingredient.error(
                    "has changed since the ensemble was made; make it again with `wgrad fuse \
                     ensemble`",
                ));
            }
            ingredients.push(ingredient);
        }
        align(&mut ingredients)?;
        Ok(Self { members: ingredients, average, image_size })
    }
}

/// Brings the classifiers' rows into the order of the first network's classes.
fn align(ingredients: &mut [Ingredient]) -> Result<()> {
    let (first, others) = ingredients.split_first_mut().expect("an ensemble has members");
    let Some(count) = first.checkpoint.num_classes() else {
        return Err(first.error("it has no classifier (fc); fine-tune it first"));
    };
    // A first network without names takes those of the first that has some; where others know the classes
    // by their ids alone, so do all.
    let mut named = others.iter().filter_map(|other| other.checkpoint.meta.classes.as_ref());
    named.clone().for_each(|classes| first.checkpoint.call_classes_like(classes));
    let classes = match (first.checkpoint.meta.classes.as_ref(), named.next()) {
        (Some(classes), _) | (None, Some(classes)) => classes.clone(),
        (None, None) => (0..count).map(|class| class.to_string()).collect(),
    };
    let whose = first.path.display().to_string();
    for ingredient in ingredients {
        ingredient.checkpoint.call_classes_like(&classes);
        ingredient.order_classes(&classes, &whose)?;
    }
    Ok(())
}

impl Classifier for Ensemble {
    fn classes(&self) -> &[String] {
        &self.members[0].classes
    }

    fn class_ids(&self) -> &[String] {
        &self.members[0].class_ids
    }

    fn held_out(&self) -> Vec<HeldOut> {
        let mut different: Vec<HeldOut> = Vec::new();
        for held_out in self.members.iter().filter_map(|member| member.held_out.as_ref()) {
            if !different.contains(held_out) {
                different.push(held_out.clone());
            }
        }
        different
    }

    fn image_size(&self) -> u32 {
        self.members[0].image_size
    }

    fn images_at_a_time(&self, gpu: &Gpu, images: usize) -> usize {
        let of = |member: &Network| member.images_at_a_time(gpu, images);
        self.members.iter().map(of).min().unwrap_or(1)
    }

    /// The logarithms of the joint probabilities.
    fn answer(&self, gpu: &Gpu, pixels: &[u8], count: usize) -> Result<Reply> {
        let ask = |member: &Network| member.evaluate(gpu, pixels, count);
        let answers = self.members.iter().map(ask).collect::<Result<Vec<_>>>()?;
        let (average, classes) = (self.average, self.classes().len());
        Ok(Box::new(move || {
            let logits = answers.into_iter().map(|answer| answer.wait());
            let logits = logits.collect::<Result<Vec<_>>>()?;
            let image = |at: usize| {
                let rows: Vec<Vec<f64>> =
                    logits.iter().map(|all| log_softmax(&all[at..at + classes])).collect();
                join(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), average)
            };
            let images = (0..count * classes).step_by(classes);
            Ok(images.flat_map(image).map(|value| value as f32).collect())
        }))
    }
}

/// Measures networks by themselves and together, and writes a file that `evaluate`, `predict`
/// and `export` take for weights.
///
/// # Errors
/// Those of reading, measuring and writing.
pub fn ensemble(
    gpu: &Gpu,
    config: FuseConfig,
    paths: &[PathBuf],
    average: Average,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<()> {
    config.check()?;
    let ingredients = paths.iter().map(|path| Ingredient::read(path));
    let mut ingredients = ingredients.collect::<Result<Vec<_>>>()?;
    let image_size = common_image_size(&ingredients, config.image_size, ONE_SIZE)?;
    let mut images = Images::scan(&config, console)?;
    for ingredient in &mut ingredients {
        ingredient.checkpoint.call_classes_like(&images.classes);
    }
    let data = config.data.to_string();
    ingredients[0].check_classes(&images.classes, &data)?;
    if let Some(classes) = ingredients[0].checkpoint.meta.classes.clone() {
        images.order_classes(&classes);
    }
    for ingredient in &mut ingredients {
        ingredient.order_classes(&images.classes, &data)?;
    }
    warn_of_seeds(&ingredients, &images, &config.data, console);
    let folder = RunDir::create(config.output_dir.as_deref(), "fuse")?;
    let options = json!({ "average": average });
    write_args(&folder, gpu, "fuse ensemble", &ingredients, &config, options)?;
    let names: Vec<String> = ingredients.iter().map(|one| short_name(&one.path)).collect();
    let with_test = !images.test.is_empty();
    let names_of = names.iter().map(String::as_str);
    let mut journal = Journal::start(console, folder.path(), names_of, with_test)?;
    let mut singles = Vec::new();
    for (ingredient, name) in ingredients.iter().zip(&names) {
        let judge =
            Judge::new(gpu, &config, &ingredient.checkpoint, image_size, console, interrupt)?;
        let measured = judge.measure(ingredient.tensors(), &images)?;
        journal.add(&Entry {
            kind: "ingredient",
            name: name.clone(),
            alpha: None,
            members: vec![ingredient.path.to_string_lossy().into_owned()],
            batch_norm: Statistics::Own,
            scores: measured.scores(),
        })?;
        singles.push(measured);
    }
    let joined = Measured::joined(&singles.iter().collect::<Vec<_>>(), average);
    journal.add(&Entry {
        kind: "ensemble",
        name: format!("ensemble of {}", singles.len()),
        alpha: None,
        members: ingredients.iter().map(|one| one.path.to_string_lossy().into_owned()).collect(),
        batch_norm: Statistics::Own,
        scores: joined.scores(),
    })?;
    let manifest = folder.path().join("ensemble.json");
    write_manifest(&manifest, &ingredients, average, image_size)?;
    console.event(&json!({
        "event": "end",
        "name": format!("ensemble of {}", singles.len()),
        "result": joined.scores(),
        "output_dir": folder.path().to_string_lossy(),
        "weights": manifest.to_string_lossy(),
    }));
    console.line(format_args!("use it with --weights {}", manifest.display()));
    Ok(())
}

fn write_manifest(
    path: &Path,
    ingredients: &[Ingredient],
    average: Average,
    image_size: u32,
) -> Result<()> {
    let member = |one: &Ingredient| -> Result<Member> {
        let path = std::path::absolute(&one.path).map_err(Error::io(&one.path))?;
        Ok(Member { path, sha256: Some(one.sha256.clone()) })
    };
    let members = ingredients.iter().map(member).collect::<Result<_>>()?;
    let manifest = Manifest { average, image_size: Some(image_size), members };
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, &manifest)?;
        writeln!(file)
    })
}
