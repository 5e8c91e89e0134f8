//! What transfer buys: accuracy against images per class, for a ResNet-18
//!
//! - from scratch;
//! - pretrained, of which only the classifier is trained;
//! - fine-tuned: the same, trained further as a whole;
//! - fused: the mean of the last two's weights, batch-norm statistics computed anew.
//!
//!     cargo run --release --example learning_curve [STEPS]
//!
//! Draws `learning_curve.png`: the mean of three seeds, each with its own choice of training images, and
//! lines from the worst to the best. All trainings have as many steps, 40 if not told otherwise. On a
//! software adapter whose two cores had other work too that took twenty minutes.

mod common;

use std::path::Path;

use common::{
    Clipart, IN_ORDER, Images, Recipe, Residual, accuracy, argument, bundled, mean, train,
};
use wgrad::checkpoint::Checkpoint;
use wgrad::data::{Augment, Item, Order};
use wgrad::fuse::weighted_sum;
use wgrad::gpu::Gpu;
use wgrad::nn::{Mode, Stage};
use wgrad::optim::Algorithm;
use wgrad::optim::schedule::Schedule;
use wgrad::report::{Curve, Ink, curves_over, write_charts};
use wgrad::{Result, Tape};

/// Side of the images in pixels.
const SIZE: u32 = 64;
const SEEDS: u64 = 3;
/// Images per class, and what the picture calls them.
const SIZES: [(usize, &str); 5] = [(1, "1"), (2, "2"), (5, "5"), (10, "10"), (usize::MAX, "all")];
const WAYS: [&str; 4] = ["scratch", "head only", "fine-tuned", "fused"];

fn main() {
    common::main(|gpu| study(gpu, argument(40)?));
}

fn study(gpu: &Gpu, steps: usize) -> Result<()> {
    let weights = bundled()?;
    let clipart = Clipart::scan(SIZE, &weights)?;
    println!("images per class  seed  right in %: {}", WAYS.join(", "));
    // By size, then way, then seed.
    let mut results = Vec::new();
    for (size, name) in SIZES {
        let mut found = [const { Vec::new() }; WAYS.len()];
        for seed in 0..SEEDS {
            let few = Images {
                items: few(&clipart.train.items, size, seed).into(),
                ..clipart.train.clone()
            };
            let right = compare(gpu, &weights, &clipart, &few, steps, seed)?;
            println!("{name:>16}  {seed:>4}  {right:.1?}");
            found.iter_mut().zip(right).for_each(|(all, right)| all.push(right));
        }
        results.push(found);
    }
    let path = Path::new("learning_curve.png");
    write_charts(path, &[drawn(&results)])?;
    println!("drawn in {}", path.display());
    Ok(())
}

/// Up to `count` images of each class, chosen by `seed`.
fn few(items: &[Item], count: usize, seed: u64) -> Vec<Item> {
    let order = Order { seed, epoch: 0, shuffle: true, batch_size: items.len(), drop_last: false };
    let mut taken = std::collections::BTreeMap::<u32, usize>::new();
    let shuffled = order.batches(items.len()).into_iter().flatten().map(|at| items[at].clone());
    let wanted = |item: &Item| {
        let taken = taken.entry(item.label).or_default();
        *taken += 1;
        *taken <= count
    };
    shuffled.filter(wanted).collect()
}

/// Accuracy by each of the [`WAYS`].
fn compare(
    gpu: &Gpu,
    weights: &Checkpoint,
    clipart: &Clipart,
    few: &Images,
    steps: usize,
    seed: u64,
) -> Result<[f64; 4]> {
    let recipe = Recipe {
        algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
        lr: 0.01,
        schedule: Schedule::Cosine,
        batch_size: 16,
        steps,
        augment: Augment::Light,
        seed,
    };
    let judge = |net: &Residual| accuracy(gpu, net, &clipart.val);

    let net = Residual::random(gpu, weights, &clipart.classes, seed)?;
    train(gpu, &net, few, recipe)?;
    let scratch = judge(&net)?;

    let mut net = Residual::pretrained(gpu, weights, &clipart.classes, seed)?;
    net.train_from = Stage::Head;
    train(gpu, &net, few, Recipe { lr: 0.1, ..recipe })?;
    let (head_only, before) = (judge(&net)?, net.net.tensors(gpu)?);

    net.train_from = Stage::Stem;
    train(gpu, &net, few, recipe)?;
    let (fine_tuned, after) = (judge(&net)?, net.net.tensors(gpu)?);

    let middle = weighted_sum(&[(0.5, &before), (0.5, &after)]);
    net.net.load(gpu, &middle.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect())?;
    recalibrate(gpu, &net, few)?;
    Ok([scratch, head_only, fine_tuned, judge(&net)?])
}

/// Makes batch norm's statistics the means over all batches.
fn recalibrate(gpu: &Gpu, net: &Residual, images: &Images) -> Result<()> {
    for (batch, number) in images.batches(gpu, IN_ORDER, Augment::None)?.zip(1..) {
        let tape = Tape::no_grad(gpu);
        let mode = Mode { bn_momentum: 1.0 / number as f32, ..Mode::BATCH_STATISTICS };
        net.net.forward(&tape, &tape.constant(batch?.0), mode)?;
        gpu.submit()?;
    }
    Ok(())
}

/// The means as curves, and a line from the least to the most at each point.
fn drawn(results: &[[Vec<f64>; WAYS.len()]]) -> wgrad::report::Drawing {
    let mut all = Vec::new();
    for (way, name) in WAYS.into_iter().enumerate() {
        let ink = Ink::Series(way);
        let at = |x: usize| &results[x][way];
        for x in 0..results.len() {
            let least = at(x).iter().copied().fold(f64::INFINITY, f64::min);
            let most = at(x).iter().copied().fold(0.0, f64::max);
            // Beside each other, not on top.
            let place = x as f64 + 0.04 * (way as f64 - 1.5);
            let points = vec![(place, least), (place, most)];
            all.push(Curve { name: String::new(), points, ink, faint: true });
        }
        let points = (0..results.len()).map(|x| (x as f64, mean(at(x)))).collect();
        all.push(Curve { name: name.into(), points, ink, faint: false });
    }
    let names = SIZES.map(|(_, name)| name);
    curves_over("Accuracy in %", "images per class", &names, &all)
}
