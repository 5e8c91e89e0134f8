//! The numbers that whole networks are checked on, by the formulas in
//! `tests/fixtures/network/README.md`: the same in every language, nothing to ship.

use crate::nn::arch::Entry;

/// Classes of every head.
pub const CLASSES: usize = 10;

/// Elements a digest looks at.
const SAMPLES: u64 = 24;

/// Scrambles a word (the finaliser of MurmurHash3).
pub fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// FNV-1a, 32 bits.
pub fn name_hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// One hash of several words.
pub fn fold(words: &[u32]) -> u32 {
    words.iter().fold(0, |h: u32, word| mix(h.wrapping_add(*word).wrapping_add(0x9e37_79b9)))
}

/// Element `index` of the tensor called `name`, in [0, 1).
pub fn unit(name: &str, index: usize) -> f64 {
    let hash = mix(name_hash(name).wrapping_add(mix(index as u32)));
    f64::from(hash >> 8) / f64::from(1 << 24)
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

/// Their classes.
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
