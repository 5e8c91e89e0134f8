//! Images side by side with words under each, and heat laid over an image.

use image::imageops::{FilterType, crop_imm, overlay, resize};
use image::{Rgb, RgbImage};

use super::drawing::{Anchor, Ink, Words, shortened};
use super::raster::{character_width, write};

/// Side of a tile's image in pixels.
const SIDE: u32 = 152;
/// Around a tile.
const MARGIN: u32 = 8;
/// Height of a line of words.
const LINE: u32 = 20;
/// The longer side of an image by itself, in pixels: the least and the most.
const SHOWN: (u32, u32) = (224, 1024);
/// Font of the words.
const FONT: f64 = 16.0;

/// An image with words under it, a line each.
pub struct Tile {
    /// The image.
    pub image: RgbImage,
    /// The words, and in what.
    pub lines: Vec<(String, Ink)>,
}

/// Tiles in rows of four at most (of eight, if there are many); none without tiles.
pub fn mosaic(tiles: &[Tile]) -> Option<RgbImage> {
    let lines = tiles.iter().map(|tile| tile.lines.len()).max()? as u32;
    let columns = if tiles.len() > 16 { 8 } else { 4 }.min(tiles.len() as u32);
    let rows = (tiles.len() as u32).div_ceil(columns);
    let (width, height) = (SIDE + MARGIN, SIDE + MARGIN + lines * LINE);
    let ground = Rgb(Ink::Paper.rgb());
    let mut picture =
        RgbImage::from_pixel(columns * width + MARGIN, rows * height + MARGIN, ground);
    let characters = SIDE as usize / character_width(FONT);
    for (index, tile) in (0..).zip(tiles) {
        let (left, top) = (MARGIN + index % columns * width, MARGIN + index / columns * height);
        let image = resize(&tile.image, SIDE, SIDE, FilterType::Triangle);
        overlay(&mut picture, &image, left.into(), top.into());
        for (line, (text, ink)) in (1..).zip(&tile.lines) {
            let at = (f64::from(left), f64::from(top + SIDE + line * LINE - 4));
            let text = shortened(text, characters);
            let (size, anchor, ink) = (FONT, Anchor::Start, *ink);
            write(&mut picture, &Words { text, at, size, anchor, ink, upwards: false });
        }
    }
    Some(picture)
}

/// Colours from none to most heat, as matplotlib's inferno runs: even steps for the eye, and told
/// apart in grey and by the colour-blind.
const HEAT: [[f64; 3]; 6] = [
    [0.0, 0.0, 4.0],
    [66.0, 10.0, 104.0],
    [147.0, 38.0, 103.0],
    [221.0, 81.0, 58.0],
    [252.0, 165.0, 10.0],
    [252.0, 255.0, 164.0],
];

/// The image, resized where its longer side is not of 224 to 1024 pixels.
pub fn for_people(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let longer = width.max(height).max(1);
    let scale = f64::from(longer.clamp(SHOWN.0, SHOWN.1)) / f64::from(longer);
    if scale == 1.0 {
        return image.clone();
    }
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    resize(image, side(width), side(height), FilterType::Triangle)
}

/// [`heated`] over a part of an image: over the columns that begin at a share of its width and take a share
/// of it, and the same of its rows.
pub fn heated_part(
    image: &RgbImage,
    [columns, rows]: [(f64, f64); 2],
    heat: &[f32],
    width: usize,
) -> RgbImage {
    let pixels = |(start, length): (f64, f64), of: u32| {
        let at = |share: f64| (share * f64::from(of)).round() as u32;
        let first = at(start).min(of - 1);
        (first, at(start + length).clamp(first + 1, of) - first)
    };
    let ((left, across), (top, down)) =
        (pixels(columns, image.width()), pixels(rows, image.height()));
    let part = heated(&crop_imm(image, left, top, across, down).to_image(), heat, width);
    let mut picture = image.clone();
    overlay(&mut picture, &part, left.into(), top.into());
    picture
}

/// Lays heat (`width` values a row, 0 to 1) over an image, interpolated between the middles of its
/// cells.
///
/// # Panics
/// If there is no value or `width` does not divide their number.
pub fn heated(image: &RgbImage, heat: &[f32], width: usize) -> RgbImage {
    let height = heat.len() / width;
    assert_eq!(heat.len(), width * height, "rows of {width} values");
    // Between which two cells, and how far from the first.
    let between = |pixel: u32, pixels: u32, cells: usize| {
        let place = (f64::from(pixel) + 0.5) * cells as f64 / f64::from(pixels) - 0.5;
        let place = place.clamp(0.0, (cells - 1) as f64);
        let first = place.floor() as usize;
        (first, (first + 1).min(cells - 1), place - place.floor())
    };
    let (columns, rows) = image.dimensions();
    RgbImage::from_fn(columns, rows, |x, y| {
        let (left, right, along) = between(x, columns, width);
        let (top, bottom, down) = between(y, rows, height);
        let at = |row: usize, column: usize| f64::from(heat[row * width + column]);
        let mix = |a: f64, b: f64, share: f64| a + (b - a) * share;
        let upper = mix(at(top, left), at(top, right), along);
        let lower = mix(at(bottom, left), at(bottom, right), along);
        let value = mix(upper, lower, down).clamp(0.0, 1.0);
        let place = value * (HEAT.len() - 1) as f64;
        let first = (place as usize).min(HEAT.len() - 2);
        let pixel = image.get_pixel(x, y).0;
        Rgb([0, 1, 2].map(|channel| {
            let color = mix(HEAT[first][channel], HEAT[first + 1][channel], place - first as f64);
            // Where nothing was looked at, the image is darkened, not hidden.
            mix(f64::from(pixel[channel]), color, 0.55).round() as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(side: u32) -> RgbImage {
        RgbImage::from_pixel(side, side, Rgb([128; 3]))
    }

    #[test]
    fn tiles_stand_in_rows_with_their_words() {
        let tile = |text: &str| Tile { image: grey(5), lines: vec![(text.into(), Ink::Text)] };
        assert!(mosaic(&[]).is_none());
        let one = mosaic(&[tile("ants")]).unwrap();
        assert_eq!(one.dimensions(), (152 + 16, 152 + 16 + 20));
        assert_eq!(one.get_pixel(80, 80).0, [128; 3]);
        assert!(one.pixels().any(|pixel| pixel.0 == Ink::Text.rgb()), "words");
        let five: Vec<Tile> = (0..5).map(|_| tile("bees")).collect();
        assert_eq!(mosaic(&five).unwrap().dimensions(), (4 * 160 + 8, 2 * 180 + 8));
    }

    #[test]
    fn heat_is_where_it_was_put() {
        // Hot at the right top only.
        let image = heated(&grey(40), &[0.0, 1.0, 0.0, 0.0], 2);
        let brightness = |x, y| image.get_pixel(x, y).0.map(u32::from).iter().sum::<u32>();
        assert_eq!(image.get_pixel(39, 0).0, [196, 198, 148]);
        assert_eq!(image.get_pixel(0, 39).0, [58, 58, 60]);
        assert!(brightness(39, 0) > brightness(25, 0) && brightness(25, 0) > brightness(5, 0));
        assert_eq!(brightness(39, 39), brightness(0, 39));
        assert_eq!(heated(&grey(3), &[1.0], 1).dimensions(), (3, 3));
    }

    #[test]
    fn heat_leaves_alone_what_was_not_seen() {
        let image = for_people(&RgbImage::from_pixel(64, 32, Rgb([128; 3])));
        assert_eq!(image.dimensions(), (224, 112));
        // What a network of 32 pixels sees: 32/37 of the height, and as many columns.
        let seen = crate::data::seen(64, 32, 32);
        let heated = heated_part(&image, seen, &[0.0], 1);
        let is_hot = |x, y| heated.get_pixel(x, y).0 != [128; 3];
        let hot = |along: &mut dyn Iterator<Item = (u32, u32)>| {
            along.filter(|&(x, y)| is_hot(x, y)).count()
        };
        assert_eq!(hot(&mut (0..224).map(|x| (x, 56))), 96, "from 63.6 to 160.4");
        assert_eq!(hot(&mut (0..112).map(|y| (112, y))), 97, "from 6.1 to 102.9");
        assert!(is_hot(112, 56) && !is_hot(112, 2) && !is_hot(30, 56));
        assert_eq!(
            crate::data::seen(32, 32, 32),
            [(0.0, 1.0); 2],
            "an image of that size is not cropped"
        );
        for (side, shown) in [(5, 224), (500, 500), (3000, 1024)] {
            assert_eq!(for_people(&grey(side)).dimensions(), (shown, shown));
        }
        let line = for_people(&RgbImage::new(3000, 2));
        assert_eq!(heated_part(&line, [(0.5, 0.0); 2], &[1.0], 1).dimensions(), (1024, 1));
    }
}
