//! The formulas of `wgrad::verify::formulas` against what Python made of them, and the made-up
//! networks.

use wgrad::nn::arch::{Entry, Kind};
pub use wgrad::verify::formulas::*;

/// A tensor of a made-up network, in torchvision's layout.
pub fn made_up(Entry { name, shape, kind }: &Entry) -> Vec<f32> {
    let (low, high) = match kind {
        Kind::NumBatches => (0.0, 0.0),
        Kind::NormBias | Kind::LinearBias | Kind::RunningMean => (-0.05, 0.05),
        Kind::RunningVar => (0.5, 1.5),
        Kind::Conv => symmetric((6.0 / (shape[1] * shape[2] * shape[3]) as f64).sqrt()),
        Kind::LinearWeight => symmetric((3.0 / shape[1] as f64).sqrt()),
        Kind::NormWeight if ends_a_path(name) => (0.3, 0.7),
        Kind::NormWeight => (0.8, 1.2),
    };
    let element = |index| (low + (high - low) * unit(name, index)) as f32;
    (0..shape.iter().product()).map(element).collect()
}

fn symmetric(bound: f64) -> (f64, f64) {
    (-bound, bound)
}

fn ends_a_path(norm_weight: &str) -> bool {
    norm_weight.starts_with("layer")
        && [".bn2.weight", ".bn3.weight", ".downsample.1.weight"]
            .iter()
            .any(|ending| norm_weight.ends_with(ending))
}

#[test]
fn formulas_give_what_they_gave_in_python() {
    let stored: serde_json::Value = super::fixture("formulas.json");
    let rows = |key: &str| stored[key].as_array().unwrap().clone();
    let word = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
    // All are exact in f32.
    let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let sizes = |value: &serde_json::Value| -> Vec<usize> {
        value.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
    };
    for row in rows("mix") {
        assert_eq!(mix(word(&row[0])), word(&row[1]));
    }
    for row in rows("name_hash") {
        assert_eq!(name_hash(&text(&row[0])), word(&row[1]));
    }
    for row in rows("fold") {
        let words: Vec<u32> = row[0].as_array().unwrap().iter().map(word).collect();
        assert_eq!(fold(&words), word(&row[1]));
    }
    for row in rows("unit") {
        assert_eq!(unit(&text(&row[0]), word(&row[1]) as usize) as f32, number(&row[2]));
    }
    for row in rows("made_up") {
        let (name, shape) = (text(&row[0]), sizes(&row[1]));
        let kind = if shape.len() == 4 { Kind::Conv } else { Kind::RunningVar };
        let tensor = made_up(&Entry { name, shape, kind });
        assert_eq!(tensor[word(&row[2]) as usize], number(&row[3]));
    }
    for row in rows("head") {
        let (name, shape) = (text(&row[0]), vec![CLASSES * 512]);
        let tensor = head(&Entry { name, shape, kind: Kind::LinearWeight });
        assert_eq!(tensor[word(&row[1]) as usize], number(&row[2]));
    }
    let images = &stored["pixels"];
    let first = pixels(0, 1, 64);
    for row in images["image 0 of batch 0 at 64, [y, x, channel, value]"].as_array().unwrap() {
        let [y, x, c, value] = [0, 1, 2, 3].map(|at| word(&row[at]) as usize);
        assert_eq!(usize::from(first[(y * 64 + x) * 3 + c]), value);
    }
    for (key, batch, count, size) in [
        ("sum of batch 0, 4 images at 64", 0, 4, 64),
        ("sum of batch 9, 3 images at 64", 9, 3, 64),
        ("sum of batch 97, 2 images at 97", 97, 2, 97),
    ] {
        let sum: u64 = pixels(batch, count, size).into_iter().map(u64::from).sum();
        assert_eq!(Some(sum), images[key].as_u64(), "{key}");
    }
    for (key, batch) in [("batch 0", 0), ("batch 9", 9)] {
        let stored: Vec<u32> = stored["labels"][key].as_array().unwrap().iter().map(word).collect();
        assert_eq!(labels(batch, 4), stored);
    }
    for (count, stored) in stored["sample_indices"].as_object().unwrap() {
        let found: Vec<usize> = sample_indices(count.parse().unwrap()).collect();
        assert_eq!(found, sizes(stored));
    }
}
