//! torchvision's `RandAugment` and `TrivialAugmentWide` on PIL images, for square RGB bytes: the same
//! operations, magnitudes and roundings; nearest neighbour, black where nothing is.

use rand::{Rng, RngExt};

use super::pil;

/// Magnitudes of an operation.
const BINS: u32 = 31;
/// `RandAugment`'s defaults.
const RAND_OPS: usize = 2;
const RAND_MAGNITUDE: u32 = 9;

/// A policy that chooses operations at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoAugment {
    /// `RandAugment(num_ops=2, magnitude=9)`.
    Ra,
    /// `TrivialAugmentWide()`.
    Ta,
}

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

use Op::*;

const OPS: [Op; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];

impl AutoAugment {
    /// Changes `pixels`, `size`×`size` RGB; random choices are drawn from `rng`.
    pub(super) fn apply(self, pixels: &mut Vec<u8>, size: u32, rng: &mut impl Rng) {
        let times = if self == Self::Ra { RAND_OPS } else { 1 };
        for _ in 0..times {
            let op = OPS[rng.random_range(0..OPS.len())];
            let bin = match self {
                Self::Ra => RAND_MAGNITUDE,
                Self::Ta => rng.random_range(0..BINS),
            };
            let magnitude = self.magnitude(op, bin, size);
            let is_negative = op.is_signed() && rng.random_bool(0.5);
            op.apply(pixels, size, if is_negative { -magnitude } else { magnitude });
        }
    }

    /// The magnitude of an operation in one of 31 steps, 0 for those that have none.
    fn magnitude(self, op: Op, bin: u32, size: u32) -> f64 {
        let wide = self == Self::Ta;
        let (start, end) = match op {
            Identity | AutoContrast | Equalize => return 0.0,
            ShearX | ShearY => (0.0, if wide { 0.99 } else { 0.3 }),
            TranslateX | TranslateY if wide => (0.0, 32.0),
            TranslateX | TranslateY => (0.0, 150.0 / 331.0 * f64::from(size)),
            Rotate => (0.0, if wide { 135.0 } else { 30.0 }),
            Brightness | Color | Contrast | Sharpness => (0.0, if wide { 0.99 } else { 0.9 }),
            Posterize => {
                let steps = if wide { 6.0 } else { 4.0 };
                let bits = f64::from(bin) / (f64::from(BINS - 1) / steps);
                return 8.0 - bits.round_ties_even();
            }
            Solarize => (255.0, 0.0),
        };
        linspace(start, end, bin)
    }
}

/// `torch.linspace(start, end, 31)[bin]`, which is f32, symmetric, and rounded once.
fn linspace(start: f64, end: f64, bin: u32) -> f64 {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (BINS - 1) as f32;
    f64::from(match bin < BINS / 2 {
        true => step.mul_add(bin as f32, start),
        false => (-step).mul_add((BINS - 1 - bin) as f32, end),
    })
}

impl Op {
    /// Whether the magnitude may as well be negative.
    fn is_signed(self) -> bool {
        !matches!(self, Identity | Posterize | Solarize | AutoContrast | Equalize)
    }

    fn apply(self, pixels: &mut Vec<u8>, size: u32, magnitude: f64) {
        match self {
            Identity => {}
            ShearX => pil::affine(pixels, size, [1.0, tangent(magnitude), 0.0, 0.0, 1.0, 0.0]),
            ShearY => pil::affine(pixels, size, [1.0, 0.0, 0.0, tangent(magnitude), 1.0, 0.0]),
            TranslateX => pil::affine(pixels, size, [1.0, 0.0, -magnitude.trunc(), 0.0, 1.0, 0.0]),
            TranslateY => pil::affine(pixels, size, [1.0, 0.0, 0.0, 0.0, 1.0, -magnitude.trunc()]),
            Rotate => pil::rotate(pixels, size, magnitude),
            Brightness => pil::brightness(pixels, 1.0 + magnitude),
            Color => pil::color(pixels, 1.0 + magnitude),
            Contrast => pil::contrast(pixels, 1.0 + magnitude),
            Sharpness => pil::sharpness(pixels, size, 1.0 + magnitude),
            Posterize => pil::posterize(pixels, magnitude as u32),
            Solarize => pil::solarize(pixels, magnitude),
            AutoContrast => pil::auto_contrast(pixels),
            Equalize => pil::equalize(pixels),
        }
    }
}

/// torchvision turns a shear into degrees and back.
fn tangent(shear: f64) -> f64 {
    shear.atan().to_degrees().to_radians().tan()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Range;

    use super::*;
    use crate::data::random::{Purpose, generator};
    use sha2::{Digest, Sha256};

    /// The image of `tests/fixtures/data/auto_augment.py`.
    fn picture(size: u32) -> Vec<u8> {
        let value = |x: u32, y: u32, c: u32| {
            let (x, y) = (x * 64 / size, y * 64 / size);
            40 + ((x * (3 + c) + y * (5 - c) + x * y / 7 + 11 * c) % 173)
        };
        let pixels = (0..size * size).map(|at| (at % size, at / size));
        pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| value(x, y, c) as u8)).collect()
    }

    #[test]
    fn every_operation_at_every_magnitude_gives_the_bytes_of_torchvision() {
        let fixture = include_str!("../../tests/fixtures/data/auto_augment.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let mut cases = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let (policy, size) = (case[0].as_str().unwrap(), case[1].as_u64().unwrap() as u32);
            let policy = if policy == "ra" { AutoAugment::Ra } else { AutoAugment::Ta };
            let name = case[2].as_str().unwrap();
            let op = *OPS.iter().find(|op| format!("{op:?}") == name).unwrap();
            let (bin, sign) = (case[3].as_u64().unwrap() as u32, case[4].as_f64().unwrap());
            assert!(sign > 0.0 || op.is_signed());
            let mut pixels = picture(size);
            op.apply(&mut pixels, size, sign * policy.magnitude(op, bin, size));
            let hash: String =
                Sha256::digest(&pixels)[..6].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, case[5], "{case}");
            cases += 1;
        }
        assert!(cases > 500, "{cases}");
    }

    #[test]
    fn policies_draw_every_operation_magnitude_and_sign_and_nothing_else() {
        const SIZE: u32 = 16;
        let image = picture(SIZE);
        // What each operation makes of images, at the magnitudes in `bins`, and negative where that may be.
        let after = |images: &BTreeSet<Vec<u8>>, policy: AutoAugment, bins: Range<u32>| {
            let mut results = BTreeSet::new();
            for (op, bin) in OPS.iter().flat_map(|op| bins.clone().map(move |bin| (op, bin))) {
                let signs = if op.is_signed() { &[1.0, -1.0][..] } else { &[1.0] };
                for (image, sign) in images.iter().flat_map(|it| signs.iter().map(move |s| (it, s)))
                {
                    let mut pixels = image.clone();
                    op.apply(&mut pixels, SIZE, sign * policy.magnitude(*op, bin, SIZE));
                    results.insert(pixels);
                }
            }
            results
        };
        let once = [image.clone()].into();
        for (policy, possible) in [
            (AutoAugment::Ta, after(&once, AutoAugment::Ta, 0..BINS)),
            (AutoAugment::Ra, {
                let bins = RAND_MAGNITUDE..RAND_MAGNITUDE + 1;
                let first = after(&once, AutoAugment::Ra, bins.clone());
                after(&first, AutoAugment::Ra, bins)
            }),
        ] {
            let run = |index| {
                let mut pixels = image.clone();
                policy.apply(&mut pixels, SIZE, &mut generator(Purpose::Augment, 1, 0, index));
                pixels
            };
            assert_eq!(run(3), run(3));
            let drawn: BTreeSet<_> = (0..15_000).map(run).collect();
            assert!(drawn == possible, "{policy:?}: {} of {}", drawn.len(), possible.len());
        }
    }
}
