//! θ = (1 − α)·θ_A + α·θ_B: the line from a network to its fine-tuned child, as WiSE-FT draws it.

use std::path::PathBuf;

use serde_json::json;

use super::FuseConfig;
use super::kitchen::{Candidate, Kitchen};
use super::score::Score;
use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::report::{Curve, Drawing, Ink, curves, write_charts};
use crate::train::{Console, Interrupt};

/// Walks the line from `a` to `b`, measures at every α, and writes the best by val accuracy (then
/// loss); with `save_all` also every other one.
///
/// # Errors
/// [`Error::Usage`] for an α outside 0 to 1; those of reading, measuring and writing.
pub fn interpolate(
    gpu: &Gpu,
    config: FuseConfig,
    [a, b]: [PathBuf; 2],
    alphas: &[f64],
    save_all: bool,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<()> {
    if let Some(alpha) = alphas.iter().find(|alpha| !(0.0..=1.0).contains(*alpha)) {
        return Err(Error::Usage(format!("--alpha {alpha}: it is a share, from 0 (A) to 1 (B)")));
    }
    let mut alphas = alphas.to_vec();
    alphas.sort_by(f64::total_cmp);
    alphas.dedup();
    let mut kitchen = Kitchen::open(gpu, config, &[a, b], true, console, interrupt)?;
    kitchen.write_args(
        gpu,
        "fuse interpolate",
        json!({ "alpha": alphas, "save_all": save_all }),
    )?;
    if let Some(head) = kitchen.head {
        console.line(format_args!(
            "the classifiers are for other classes: the backbones are interpolated, the classifier \
             is {}'s throughout",
            kitchen.names[head]
        ));
    }
    let mut curve = Vec::new();
    let mut best: Option<(f64, Candidate)> = None;
    for &alpha in &alphas {
        let candidate = kitchen.average(&[(0, 1.0 - alpha), (1, alpha)], true)?;
        kitchen.note("interpolation", &name(alpha), Some(alpha), &candidate)?;
        if save_all {
            let file = format!("weights/alpha-{}.safetensors", share(alpha));
            kitchen.write(kitchen.folder().path().join(file), &candidate, &method(alpha))?;
        }
        curve.push(Point::new(alpha, &candidate));
        let rank = |candidate: &Candidate| candidate.measured.val.score().rank();
        if best.as_ref().is_none_or(|(_, best)| rank(&candidate) > rank(best)) {
            best = Some((alpha, candidate));
        }
    }
    if kitchen.head.is_none()
        && let [first, between @ .., last] = &curve[..]
        && (first.alpha, last.alpha) == (0.0, 1.0)
        && let Some(lowest) = between.iter().min_by(|x, y| x.top1().total_cmp(&y.top1()))
    {
        kitchen.warn_of_barrier(&name(lowest.alpha), lowest.top1(), first.top1().min(last.top1()));
    }
    write_curve(&kitchen.folder().path().join("curve.csv"), &curve)?;
    write_charts(&kitchen.folder().path().join("curve.png"), &charts(&curve))?;
    let (alpha, candidate) = best.ok_or_else(|| Error::Usage("--alpha: name one".into()))?;
    kitchen.serve(&name(alpha), &candidate, &method(alpha))
}

fn name(alpha: f64) -> String {
    format!("alpha {}", share(alpha))
}

/// With three decimals, or with as many as tell it from any other.
fn share(alpha: f64) -> String {
    let short = format!("{alpha:.3}");
    if short.parse() == Ok(alpha) { short } else { format!("{alpha:?}") }
}

fn method(alpha: f64) -> serde_json::Value {
    json!({ "method": "interpolate", "alpha": alpha })
}

/// A point of the curve.
struct Point {
    alpha: f64,
    scores: super::judge::Scores,
    before: Option<super::judge::Scores>,
}

impl Point {
    fn new(alpha: f64, candidate: &Candidate) -> Self {
        let before = candidate.before.as_ref().map(|before| before.scores());
        Self { alpha, scores: candidate.measured.scores(), before }
    }

    fn top1(&self) -> f64 {
        self.scores.val.top1
    }
}

/// Accuracy, loss and calibration over α, faintly where batch norm's statistics are averages.
fn charts(curve: &[Point]) -> Vec<Drawing> {
    let line = |name: &str, ink: usize, faint: bool, value: &dyn Fn(&Point) -> Option<f64>| Curve {
        name: name.into(),
        points: curve.iter().filter_map(|point| Some((point.alpha, value(point)?))).collect(),
        ink: Ink::Series(ink),
        faint,
    };
    let chart = |title: &str, of: fn(&Score) -> f64| {
        let before = |point: &Point| point.before.unwrap_or(point.scores);
        let all = [
            line("val", 0, false, &|point| Some(of(&point.scores.val))),
            line("test", 1, false, &|point| point.scores.test.as_ref().map(of)),
            line("averaged statistics", 0, true, &|point| Some(of(&before(point).val))),
            line("averaged, test", 1, true, &|point| before(point).test.as_ref().map(of)),
        ];
        let told: Vec<_> = all.into_iter().filter(|curve| !curve.points.is_empty()).collect();
        curves(title, "alpha", false, &told)
    };
    vec![
        chart("Accuracy in %", |score| 100.0 * score.top1),
        chart("Loss", |score| score.loss),
        chart("Expected calibration error in %", |score| 100.0 * score.ece),
    ]
}

/// Writes `curve.csv`: a row for each α, with the statistics it ends up with and, where those were
/// recalibrated, with the averaged ones before.
fn write_curve(path: &std::path::Path, curve: &[Point]) -> Result<()> {
    use std::io::Write as _;
    let columns = |prefix: &str| {
        ["accuracy_top1", "loss", "ece"].map(|column| format!("{prefix}/{column}")).join(",")
    };
    write_atomically(path, |file| {
        let splits = ["val", "test", "averaged/val", "averaged/test"];
        writeln!(file, "alpha,{}", splits.map(columns).join(","))?;
        for point in curve {
            let before = point.before.as_ref();
            let scores = [
                Some(point.scores.val),
                point.scores.test,
                before.map(|before| before.val),
                before.and_then(|before| before.test),
            ];
            let cells = scores.map(|score| match score {
                Some(score) => format!("{},{},{}", score.top1, score.loss, score.ece),
                None => ",,".into(),
            });
            writeln!(file, "{},{}", point.alpha, cells.join(","))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_shares_are_called_alike() {
        let next = f64::from_bits(0.1f64.to_bits() + 1);
        let alphas = [0.0, 1e-300, 0.1, next, 0.1001, 0.1004, 0.5, 2.0 / 3.0, 1.0];
        let names: std::collections::BTreeSet<_> = alphas.map(share).into();
        assert_eq!(names.len(), alphas.len(), "{names:?}");
        assert_eq!([0.5, 0.1001, 1e-300].map(share), ["0.500", "0.1001", "1e-300"]);
    }
}
