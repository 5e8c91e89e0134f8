//! Averages of many fine-tunes of one network: model soups (Wortsman et al., 2022).

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::FuseConfig;
use super::journal::Statistics;
use super::judge::Measured;
use super::kitchen::{Candidate, Kitchen};
use super::score::Average;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::train::{Console, Interrupt};

/// Which networks go into a soup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// All.
    Uniform,
    /// From the best by val accuracy downwards, each that strictly improves it.
    #[default]
    Greedy,
}

/// Measures every network, averages those that `recipe` takes, and writes the average.
///
/// # Errors
/// Those of reading, measuring and writing.
pub fn soup(
    gpu: &Gpu,
    config: FuseConfig,
    paths: &[PathBuf],
    recipe: Recipe,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut kitchen = Kitchen::open(gpu, config, paths, false, console, interrupt)?;
    kitchen.write_args(gpu, "fuse soup", json!({ "recipe": recipe }))?;
    let count = kitchen.ingredients.len();
    let mut singles = Vec::with_capacity(count);
    for at in 0..count {
        let measured = kitchen.judge.measure(kitchen.ingredients[at].tensors(), &kitchen.images)?;
        let name = kitchen.names[at].clone();
        kitchen.enter("ingredient", &name, None, &[at], Statistics::Own, &measured)?;
        singles.push(measured);
    }
    let all: Vec<usize> = (0..count).collect();
    let ensemble = Measured::joined(&singles.iter().collect::<Vec<_>>(), Average::Probabilities);
    let name = format!("ensemble of {count}");
    kitchen.enter("ensemble", &name, None, &all, Statistics::Own, &ensemble)?;
    let (name, soup) = match recipe {
        Recipe::Uniform => {
            let soup = kitchen.average(&equal_parts(&all), true)?;
            let name = format!("uniform soup of {count}");
            kitchen.note("soup", &name, None, &soup)?;
            let top1 = |measured: &Measured| measured.val.score().top1;
            let worst = singles.iter().map(top1).fold(f64::INFINITY, f64::min);
            kitchen.warn_of_barrier(&name, top1(&soup.measured), worst);
            (name, soup)
        }
        Recipe::Greedy => greedy(&mut kitchen, &singles)?,
    };
    let method = json!({ "method": "soup", "recipe": recipe, "candidates": count });
    kitchen.serve(&name, &soup, &method)
}

fn greedy(kitchen: &mut Kitchen<'_>, singles: &[Measured]) -> Result<(String, Candidate)> {
    let mut order: Vec<usize> = (0..singles.len()).collect();
    let rank = |&at: &usize| singles[at].val.score().rank();
    // Equal ones stay in the order given.
    order.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
    let mut members = vec![order[0]];
    let mut soup = kitchen.average(&equal_parts(&members), false)?;
    for &next in &order[1..] {
        members.push(next);
        let candidate = kitchen.average(&equal_parts(&members), true)?;
        let name = format!("+ {}", kitchen.names[next]);
        kitchen.note("candidate", &name, None, &candidate)?;
        if candidate.measured.val.score().top1 > soup.measured.val.score().top1 {
            soup = candidate;
        } else {
            members.pop();
        }
    }
    let name = format!("greedy soup of {}", members.len());
    kitchen.note("soup", &name, None, &soup)?;
    Ok((name, soup))
}

fn equal_parts(members: &[usize]) -> Vec<(usize, f64)> {
    members.iter().map(|&at| (at, 1.0 / members.len() as f64)).collect()
}
