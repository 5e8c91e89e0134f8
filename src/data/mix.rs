//! MixUp and CutMix of a batch, as torchvision's reference scripts do them: each image is mixed with
//! the one before it, the first with the last, all in one proportion drawn for the batch.

use rand::{Rng, RngExt};
use rand_distr::{Beta, Distribution};

use super::random::{Purpose, generator};

/// Which mixing there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mix {
    /// MixUp with a proportion λ drawn from Beta(α, α); 0 for none.
    pub mixup_alpha: f64,
    /// CutMix with a share λ kept that is drawn from Beta(α, α); 0 for none.
    pub cutmix_alpha: f64,
}

impl Mix {
    /// Mixes the images of a batch, which lie one after the other in `pixels`, `size`×`size` RGB
    /// each. Of two ways of mixing one is chosen at random. Returns the share of each image that is
    /// still itself; the rest is the image before it. None if nothing is mixed.
    ///
    /// What is drawn follows from `seed`, `epoch` and the batch's place in the epoch.
    pub fn apply(
        &self,
        pixels: &mut [u8],
        size: u32,
        seed: u64,
        epoch: u64,
        batch: usize,
    ) -> Option<f32> {
        let image = 3 * (size as usize).pow(2);
        if pixels.len() < 2 * image {
            return None;
        }
        let mut rng = generator(Purpose::Mix, seed, epoch, batch);
        let cuts = match (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0) {
            (false, false) => return None,
            (true, true) => rng.random_bool(0.5),
            (_, cuts) => cuts,
        };
        if cuts {
            let area = Rectangle::draw(size, share(self.cutmix_alpha, &mut rng), &mut rng);
            with_the_one_before(pixels, image, |mine, other| area.copy(mine, other, size));
            return Some(area.left_over(size) as f32);
        }
        let share = share(self.mixup_alpha, &mut rng) as f32;
        with_the_one_before(pixels, image, |mine, other| blend(mine, other, share));
        Some(share)
    }
}

/// A number from Beta(α, α).
fn share(alpha: f64, rng: &mut impl Rng) -> f64 {
    // The crate refuses an α too small to compute with: then nothing is mixed.
    Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(rng))
}

/// Calls `mix` with every image and the one before it, as that was.
fn with_the_one_before(pixels: &mut [u8], image: usize, mix: impl Fn(&mut [u8], &[u8])) {
    let last = pixels[pixels.len() - image..].to_vec();
    let mut rest = pixels;
    while rest.len() > image {
        let (before, mine) = rest.split_at_mut(rest.len() - image);
        mix(mine, &before[before.len() - image..]);
        rest = before;
    }
    mix(rest, &last);
}

/// Rounds to the nearest level.
fn blend(mine: &mut [u8], other: &[u8], share: f32) {
    for (mine, &other) in mine.iter_mut().zip(other) {
        *mine = (share * f32::from(*mine) + (1.0 - share) * f32::from(other) + 0.5) as u8;
    }
}

/// What CutMix takes from the other image: columns and rows from … to.
#[derive(Clone, Copy, Debug)]
struct Rectangle {
    columns: [usize; 2],
    rows: [usize; 2],
}

impl Rectangle {
    /// A square around a random centre that leaves `share` of the image but for what juts out.
    fn draw(size: u32, share: f64, rng: &mut impl Rng) -> Self {
        let half = (0.5 * (1.0 - share).sqrt() * f64::from(size)) as usize;
        let size = size as usize;
        let mut around = || {
            let center = rng.random_range(0..size);
            [center.saturating_sub(half), (center + half).min(size)]
        };
        Self { columns: around(), rows: around() }
    }

    fn copy(&self, mine: &mut [u8], other: &[u8], size: u32) {
        let [left, right] = self.columns;
        for row in self.rows[0]..self.rows[1] {
            let start = row * size as usize;
            let part = 3 * (start + left)..3 * (start + right);
            mine[part.clone()].copy_from_slice(&other[part]);
        }
    }

    fn left_over(&self, size: u32) -> f64 {
        let taken = (self.columns[1] - self.columns[0]) * (self.rows[1] - self.rows[0]);
        1.0 - taken as f64 / f64::from(size).powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 16;
    const IMAGE: usize = 16 * 16 * 3;

    /// Three images of one level each.
    fn batch() -> Vec<u8> {
        [40, 120, 240].map(|level| vec![level; IMAGE]).concat()
    }

    #[test]
    fn mixup_blends_each_image_with_the_one_before() {
        let mix = Mix { mixup_alpha: 0.8, cutmix_alpha: 0.0 };
        let mut shares = Vec::new();
        for index in 0..200 {
            let mut pixels = batch();
            let share = mix.apply(&mut pixels, SIZE, 1, 2, index).unwrap();
            let level = |mine: f32, other: f32| (share * mine + (1.0 - share) * other).round();
            let levels = [level(40.0, 240.0), level(120.0, 40.0), level(240.0, 120.0)];
            for (image, level) in pixels.chunks(IMAGE).zip(levels) {
                assert!(image.iter().all(|&found| (f32::from(found) - level).abs() <= 1.0));
                assert!(image.iter().all(|&found| found == image[0]));
            }
            shares.push(f64::from(share));
        }
        // Mean ½ and variance 1/(4·(2α + 1)); three standard errors.
        let mean = shares.iter().sum::<f64>() / 200.0;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 199.0;
        assert!((mean - 0.5).abs() < 3.0 * (0.096f64 / 200.0).sqrt(), "{mean}");
        assert!((variance / 0.096 - 1.0).abs() < 0.3, "{variance}");
    }

    #[test]
    fn cutmix_takes_a_rectangle_from_the_image_before() {
        let mix = Mix { mixup_alpha: 0.0, cutmix_alpha: 1.0 };
        for index in 0..100 {
            let mut pixels = batch();
            let share = mix.apply(&mut pixels, SIZE, 1, 2, index).unwrap();
            for (image, [mine, other]) in
                pixels.chunks(IMAGE).zip([[40, 240], [120, 40], [240, 120]])
            {
                assert!(image.iter().all(|&level| level == mine || level == other));
                let kept = image.iter().filter(|&&level| level == mine).count();
                assert_eq!(kept as f32 / IMAGE as f32, share);
            }
        }
    }

    #[test]
    fn what_is_mixed_follows_from_seed_epoch_and_batch() {
        let mix = Mix { mixup_alpha: 0.2, cutmix_alpha: 1.0 };
        let run = |seed, epoch, index| {
            let mut pixels = batch();
            let share = mix.apply(&mut pixels, SIZE, seed, epoch, index);
            (pixels, share)
        };
        assert_eq!(run(1, 2, 3), run(1, 2, 3));
        for other in [run(0, 2, 3), run(1, 0, 3), run(1, 2, 0)] {
            assert_ne!(run(1, 2, 3), other);
        }
        // Both ways come up: only MixUp makes new levels.
        let blended =
            (0..40).filter(|&index| run(1, 2, index).0.iter().any(|l| ![40, 120, 240].contains(l)));
        assert!((5..35).contains(&blended.count()));
    }

    #[test]
    fn nothing_is_mixed_where_nothing_is_asked_for_or_one_image_is_alone() {
        let mut pixels = batch();
        assert_eq!(Mix::default().apply(&mut pixels, SIZE, 0, 0, 0), None);
        let both = Mix { mixup_alpha: 1.0, cutmix_alpha: 1.0 };
        assert_eq!(both.apply(&mut pixels[..IMAGE], SIZE, 0, 0, 0), None);
        assert_eq!(pixels, batch());
        assert!(both.apply(&mut pixels[..2 * IMAGE], SIZE, 0, 0, 0).is_some(), "two are not alone");
    }
}
