//! From a decoded image to the network's input size, with or without random changes.

use image::RgbImage;
use rand::{Rng, RngExt};

use super::auto_augment::AutoAugment;
use super::jitter::color_jitter;
use super::pil::rotate;
use super::resize::{Region, resize_center_crop, resize_region};
use crate::error::Result;

/// How often torchvision's samplers try before they fall back.
const TRIES: usize = 10;
/// ImageNet's mean colour, 255·(0.485, 0.456, 0.406): near 0 once normalised.
const MEAN_COLOR: [u8; 3] = [124, 116, 104];

/// How much training images are varied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Augment {
    /// Not at all: validation preprocessing, see [`resize_center_crop`].
    None,
    /// torchvision's `RandomResizedCrop(size, scale=(0.35, 1))` and `RandomHorizontalFlip`.
    #[default]
    Light,
    /// [`Augment::Light`], then `RandomRotation(10)`, `ColorJitter(0.4, 0.4, 0.4, 0.1)` and, at the
    /// very end, `RandomErasing(p=0.25)`, which erases with the mean colour.
    Strong,
}

/// What happens to an image between decoding and the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Width and height of the output in pixels.
    pub size: u32,
    /// Random changes.
    pub augment: Augment,
    /// Random operations after these, before anything is erased.
    pub auto_augment: Option<AutoAugment>,
}

impl Transform {
    /// Whether it makes the same of an image each time.
    pub fn is_fixed(&self) -> bool {
        self.augment == Augment::None && self.auto_augment.is_none()
    }

    /// Turns `image` into `[size, size, 3]` bytes; random choices are drawn from `rng`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the size is 0 or the image has no pixels.
    pub fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> Result<Vec<u8>> {
        let size = self.size;
        let mut pixels = if self.augment == Augment::None {
            resize_center_crop(image, size)?
        } else {
            let region = random_resized_crop(image.dimensions(), rng);
            let mut pixels = resize_region(image, region, size)?;
            if rng.random_bool(0.5) {
                flip(&mut pixels, size);
            }
            pixels
        };
        let is_strong = self.augment == Augment::Strong;
        if is_strong {
            rotate(&mut pixels, size, rng.random_range(-10.0..10.0));
            color_jitter(&mut pixels, rng);
        }
        if let Some(policy) = self.auto_augment {
            policy.apply(&mut pixels, size, rng);
        }
        if is_strong && rng.random_bool(0.25) {
            erase(&mut pixels, size, rng);
        }
        Ok(pixels)
    }
}

/// torchvision's `RandomResizedCrop.get_params` for scale (0.35, 1) and ratio (3/4, 4/3).
fn random_resized_crop((width, height): (u32, u32), rng: &mut impl Rng) -> Region {
    const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
    let area = f64::from(width) * f64::from(height);
    for _ in 0..TRIES {
        let (crop_width, crop_height) = random_rectangle(area, (0.35, 1.0), RATIO, rng);
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let top = rng.random_range(0..=height - crop_height);
            let left = rng.random_range(0..=width - crop_width);
            return Region { left, top, width: crop_width, height: crop_height };
        }
    }
    // The image is too oblong: the central part that is nearest to it within the ratios.
    let ratio = f64::from(width) / f64::from(height);
    let (crop_width, crop_height) = if ratio < RATIO.0 {
        (width, whole(f64::from(width) / RATIO.0).clamp(1, height))
    } else if ratio > RATIO.1 {
        (whole(f64::from(height) * RATIO.1).clamp(1, width), height)
    } else {
        (width, height)
    };
    let (left, top) = ((width - crop_width) / 2, (height - crop_height) / 2);
    Region { left, top, width: crop_width, height: crop_height }
}

/// torchvision's `RandomErasing.get_params` for scale (0.02, 0.33) and ratio (0.3, 3.3), applied.
fn erase(pixels: &mut [u8], size: u32, rng: &mut impl Rng) {
    let area = f64::from(size) * f64::from(size);
    for _ in 0..TRIES {
        let (width, height) = random_rectangle(area, (0.02, 0.33), (0.3, 3.3), rng);
        if width < size && height < size {
            let top = rng.random_range(0..=size - height) as usize;
            let left = rng.random_range(0..=size - width) as usize;
            for row in pixels.chunks_exact_mut(3 * size as usize).skip(top).take(height as usize) {
                let columns = row.chunks_exact_mut(3).skip(left).take(width as usize);
                columns.for_each(|pixel| pixel.copy_from_slice(&MEAN_COLOR));
            }
            return;
        }
    }
}

/// Width and height of a rectangle with a uniform share of `area` and a log-uniform aspect ratio.
fn random_rectangle(
    area: f64,
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut impl Rng,
) -> (u32, u32) {
    let area = area * rng.random_range(scale.0..scale.1);
    let ratio = rng.random_range(ratio.0.ln()..ratio.1.ln()).exp();
    (whole((area * ratio).sqrt()), whole((area / ratio).sqrt()))
}

/// Rounds as Python does; the values here are far below `u32::MAX`.
fn whole(value: f64) -> u32 {
    value.round_ties_even() as u32
}

fn flip(pixels: &mut [u8], size: u32) {
    for row in pixels.chunks_exact_mut(3 * size as usize) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::data::random::{Purpose, generator};

    #[test]
    fn each_strength_does_what_it_says() {
        let apply = |image: &RgbImage, augment, auto_augment, index| {
            let transform = Transform { size: 32, augment, auto_augment };
            transform.apply(image, &mut generator(Purpose::Augment, 3, 0, index)).unwrap()
        };
        // Brighter to the right: what is brighter to the left was flipped, as half of the images are.
        let slope = RgbImage::from_fn(32, 32, |x, _| Rgb([8 * x as u8; 3]));
        let flipped = |augment| {
            let is_flipped = |&index: &usize| {
                let pixels = apply(&slope, augment, None, index);
                pixels[0] > pixels[3 * 31]
            };
            (0..400).filter(is_flipped).count()
        };
        assert_eq!(flipped(Augment::None), 0);
        assert!((170..230).contains(&flipped(Augment::Light)), "{}", flipped(Augment::Light));
        // Of one colour: every other colour is of what else is done.
        let color = [200, 100, 50];
        let plain = RgbImage::from_pixel(32, 32, Rgb(color));
        let filled = |pixels: &[u8]| {
            let (colors, _) = pixels.as_chunks::<3>();
            let center = colors[32 * 16 + 16];
            colors.iter().filter(|&&color| color != center).count()
        };
        let rotated = |degrees: f64| {
            let mut pixels = color.repeat(32 * 32);
            rotate(&mut pixels, 32, degrees);
            filled(&pixels)
        };
        let (mut erased, mut recolored, mut farthest) = (0, 0, 0);
        for index in 0..400 {
            assert_eq!(apply(&plain, Augment::Light, None, index), color.repeat(32 * 32));
            let strong = apply(&plain, Augment::Strong, None, index);
            if strong.as_chunks::<3>().0.contains(&MEAN_COLOR) {
                erased += 1;
                continue;
            }
            recolored += usize::from(strong[3 * (32 * 16 + 16)..][..3] != color);
            farthest = farthest.max(filled(&strong));
        }
        assert!((80..120).contains(&erased), "{erased}");
        assert_eq!(recolored, 400 - erased);
        assert!((rotated(9.5)..=rotated(10.0)).contains(&farthest), "{farthest}");
        for policy in [AutoAugment::Ra, AutoAugment::Ta] {
            let changes = |&index: &usize| {
                apply(&slope, Augment::None, Some(policy), index)
                    != apply(&slope, Augment::None, None, index)
            };
            assert!((0..50).filter(changes).count() > 30, "{policy:?}");
        }
    }

    #[test]
    fn crops_lie_inside_and_cover_the_stated_share() {
        let mut rng = generator(Purpose::Augment, 1, 0, 0);
        let (mut smallest, mut largest) = (1.0f64, 0.0f64);
        let (mut widest, mut highest) = ((0, 1), (0, 1));
        for _ in 0..2000 {
            let crop = random_resized_crop((120, 100), &mut rng);
            assert!(crop.left + crop.width <= 120 && crop.top + crop.height <= 100, "{crop:?}");
            widest = (widest.0.max(crop.width), widest.1.min(crop.left));
            highest = (highest.0.max(crop.height), highest.1.min(crop.top));
            let ratio = f64::from(crop.width) / f64::from(crop.height);
            assert!((0.73..1.37).contains(&ratio), "{crop:?}");
            let share = f64::from(crop.width * crop.height) / 12000.0;
            (smallest, largest) = (smallest.min(share), largest.max(share));
        }
        assert!((0.34..0.37).contains(&smallest), "{smallest}");
        assert!(largest > 0.93, "{largest}");
        assert_eq!((widest, highest), ((120, 0), (100, 0)), "the whole image can be reached");
    }

    #[test]
    fn oblong_images_fall_back_to_the_centre() {
        let mut rng = generator(Purpose::Augment, 1, 0, 0);
        let wide = random_resized_crop((10_000, 3), &mut rng);
        assert_eq!(wide, Region { left: 4998, top: 0, width: 4, height: 3 });
        let tall = random_resized_crop((1, 10_000), &mut rng);
        assert_eq!(tall, Region { left: 0, top: 4999, width: 1, height: 1 });
        let tall = random_resized_crop((3, 10_000), &mut rng);
        assert_eq!(tall, Region { left: 0, top: 4998, width: 3, height: 4 });
    }

    #[test]
    fn flipping_mirrors_rows() {
        let mut pixels: Vec<u8> = (0..12).collect();
        flip(&mut pixels, 2);
        assert_eq!(pixels, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }

    #[test]
    fn erasing_covers_a_rectangle_of_the_stated_area_anywhere() {
        let (mut shares, mut ratios) = ((1.0f64, 0.0f64), (9.0f64, 0.0f64));
        let mut edges = [false; 4];
        for index in 0..600 {
            let mut rng = generator(Purpose::Augment, 2, 0, index);
            let mut pixels = vec![0; 64 * 64 * 3];
            erase(&mut pixels, 64, &mut rng);
            let erased: Vec<usize> =
                (0..64 * 64).filter(|&at| pixels[3 * at..3 * at + 3] == MEAN_COLOR).collect();
            let share = erased.len() as f64 / 4096.0;
            let columns = erased.iter().map(|at| at % 64);
            let (left, right) = (columns.clone().min().unwrap(), columns.max().unwrap());
            let (top, bottom) = (erased[0] / 64, erased.last().unwrap() / 64);
            let (width, height) = (right - left + 1, bottom - top + 1);
            assert_eq!(width * height, erased.len());
            let ratio = width as f64 / height as f64;
            shares = (shares.0.min(share), shares.1.max(share));
            ratios = (ratios.0.min(ratio), ratios.1.max(ratio));
            let touches = [left == 0, top == 0, right == 63, bottom == 63];
            edges.iter_mut().zip(touches).for_each(|(any, touches)| *any |= touches);
        }
        // 0.02 to 0.33 and 0.3 to 3.3, but for sides of whole pixels.
        assert!((0.017..0.023).contains(&shares.0), "{shares:?}");
        assert!((0.32..0.34).contains(&shares.1), "{shares:?}");
        assert!((0.27..0.32).contains(&ratios.0), "{ratios:?}");
        assert!((3.1..3.7).contains(&ratios.1), "{ratios:?}");
        assert_eq!(edges, [true; 4]);
    }
}
