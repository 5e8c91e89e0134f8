//! The numbers the fixtures start from, by the formulas in `tests/fixtures/network/README.md`.

use wgrad::nn::arch::{Entry, Kind};

/// Classes of every head.
pub const CLASSES: usize = 10;

/// Elements a digest looks at.
const SAMPLES: u64 = 24;

pub fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

pub fn name_hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

pub fn fold(words: &[u32]) -> u32 {
    words.iter().fold(0, |h: u32, word| mix(h.wrapping_add(*word).wrapping_add(0x9e37_79b9)))
}

/// Element `index` of the tensor called `name`, in [0, 1).
pub fn unit(name: &str, index: usize) -> f64 {
    let hash = mix(name_hash(name).wrapping_add(mix(index as u32)));
    f64::from(hash >> 8) / f64::from(1 << 24)
}

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

/// `fc.weight` or `fc.bias` of the training fixtures.
pub fn head(entry: &Entry) -> Vec<f32> {
    let name = format!("head.{}", entry.name);
    let element = |index| (0.1 * unit(&name, index) - 0.05) as f32;
    (0..entry.shape.iter().product()).map(element).collect()
}

/// `count` square images, packed RGB.
pub fn pixels(batch: u32, count: usize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * size * size * 3);
    for n in 0..count as u32 {
        for y in 0..size as u32 {
            for x in 0..size as u32 {
                bytes.extend((0..3).map(|c| pixel([batch, n, c], y, x)));
            }
        }
    }
    bytes
}

fn pixel(place @ [b, n, c]: [u32; 3], y: u32, x: u32) -> u8 {
    let noise = (5 * octave(16, place, y, x) + 3 * octave(4, place, y, x)) / 8;
    let base = fold(&[b, n, c, 1]) % 96;
    let gain = fold(&[b, n, c, 2]) % 96 + 64;
    (base + noise * gain / 256) as u8
}

fn octave(cell: u32, [b, n, c]: [u32; 3], y: u32, x: u32) -> u32 {
    let corner = |dy, dx| fold(&[b, n, c, cell, y / cell + dy, x / cell + dx]) & 255;
    let row = |dy| (cell - x % cell) * corner(dy, 0) + (x % cell) * corner(dy, 1);
    ((cell - y % cell) * row(0) + (y % cell) * row(1)) / (cell * cell)
}

pub fn labels(batch: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|n| (7 * batch + 3 * n) % CLASSES as u32).collect()
}

/// Where a digest looks into a tensor of `count` elements.
pub fn sample_indices(count: usize) -> impl Iterator<Item = usize> {
    (0..SAMPLES).map(move |k| {
        let fraction = (k * 2_654_435_761) & 0xffff_ffff;
        ((fraction * count as u64) >> 32) as usize
    })
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
