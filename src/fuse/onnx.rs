//! An ensemble as one ONNX graph: its networks side by side on the same images, and what joins their
//! answers.

use std::path::Path;

use serde_json::json;

use super::ensemble::Ingredients;
use super::ingredient::{Ingredient, common_image_size};
use super::lineage;
use super::score::Average;
use crate::checkpoint::onnx::{self, Builder, Graph, INPUT, LOGITS, int};
use crate::checkpoint::{ARCH, Meta};
use crate::error::{Error, Result};

/// Writes the ensemble that the file `manifest` names as an ONNX file, atomically, and returns what its
/// networks are.
///
/// Images are normalised as for the first network; the answer, `logits`, is the logarithm of the joint
/// probabilities, as `wgrad predict` has it. What a network adds to the graph bears torchvision's names
/// after its number and a slash.
///
/// # Errors
/// Those of [`super::Ensemble::load`], and [`Error::Io`] where the file cannot be written.
pub fn export_ensemble(manifest: &Path, path: &Path) -> Result<String> {
    let Ingredients { members, average, image_size } = Ingredients::read(manifest)?;
    let size = common_image_size(
        &members,
        image_size,
        "make it again with `wgrad fuse ensemble --image-size N`",
    )?;
    let archs: Vec<_> = members.iter().map(|one| one.checkpoint.arch.to_string()).collect();
    let name = format!("ensemble of {}", archs.join(", "));
    let cannot = |what| Error::checkpoint(path, what);
    let graph = graph(&members, average, name.clone()).map_err(cannot)?;

    let first = &members[0].checkpoint;
    let share = 1.0 / members.len() as f64;
    let parents: Vec<_> = members.iter().map(|one| lineage::parent(one, share)).collect();
    let provenance = json!({
        "tool": concat!("wgrad ", env!("CARGO_PKG_VERSION")),
        "fuse": { "method": "ensemble", "average": average },
        "parents": parents,
    });
    let meta = Meta { image_size: Some(size), provenance: Some(provenance), ..first.meta.clone() };
    let mut metadata = meta.strings(&first.arch).map_err(cannot)?;
    metadata.insert(ARCH.into(), name.clone());
    onnx::write(path, graph, metadata)?;
    Ok(name)
}

fn graph(
    members: &[Ingredient],
    average: Average,
    name: String,
) -> std::result::Result<Graph, String> {
    let mut graph = Builder::default();
    let first = &members[0].checkpoint.meta;
    let mut answers = Vec::with_capacity(members.len());
    let mut classes = 0;
    for (number, member) in members.iter().enumerate() {
        graph.set_prefix(format!("{number}/"));
        let images = normalised_alike(&mut graph, first, &member.checkpoint.meta);
        let (logits, size) = graph.network(&member.checkpoint, &images)?;
        classes = size;
        answers.push(graph.add("log_softmax", "LogSoftmax", &[&logits], [int("axis", 1)]));
    }
    match average {
        Average::Probabilities => mean_of_exponentials(&mut graph, &answers),
        Average::Logits => {
            graph.set_prefix("");
            let answers: Vec<_> = answers.iter().map(String::as_str).collect();
            let mean = graph.add("mean", "Mean", &answers, []);
            graph.add("log_softmax", "LogSoftmax", &[&mean], [int("axis", 1)]);
        }
    }
    Ok(graph.finish(name, LOGITS, classes))
}

/// Adds what makes images normalised as `first` says into such as `own` says, and returns their name.
fn normalised_alike(graph: &mut Builder, first: &Meta, own: &Meta) -> String {
    if (first.mean, first.std) == (own.mean, own.std) {
        return INPUT.into();
    }
    let each = |of: &dyn Fn(usize) -> f64| [0, 1, 2].map(|c| of(c) as f32);
    let of = |values: &[f32; 3], c: usize| f64::from(values[c]);
    let scale = each(&|c| of(&first.std, c) / of(&own.std, c));
    let shift = each(&|c| (of(&first.mean, c) - of(&own.mean, c)) / of(&own.std, c));
    let scale = graph.constant("scale", &[1, 3, 1, 1], &scale);
    let shift = graph.constant("shift", &[1, 3, 1, 1], &shift);
    let scaled = graph.add("rescaled", "Mul", &[INPUT, &scale], []);
    graph.add("shifted", "Add", &[&scaled, &shift], [])
}

/// Adds the logarithm of the mean of exponentials, each divided by the largest so that not all vanish.
fn mean_of_exponentials(graph: &mut Builder, answers: &[String]) {
    graph.set_prefix("");
    let all: Vec<_> = answers.iter().map(String::as_str).collect();
    let largest = graph.add("largest", "Max", &all, []);
    let mut exponentials = Vec::with_capacity(answers.len());
    for (number, answer) in answers.iter().enumerate() {
        graph.set_prefix(format!("{number}/"));
        let below = graph.add("below", "Sub", &[answer, &largest], []);
        exponentials.push(graph.add("exp", "Exp", &[&below], []));
    }
    graph.set_prefix("");
    let all: Vec<_> = exponentials.iter().map(String::as_str).collect();
    let mean = graph.add("mean", "Mean", &all, []);
    let log = graph.add("log", "Log", &[&mean], []);
    graph.add("joint", "Add", &[&log, &largest], []);
}
