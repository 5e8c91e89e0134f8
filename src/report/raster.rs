//! Drawings as pixels, and words on images.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::drawing::{Anchor, Drawing, Shape, Words};

impl Drawing {
    /// As pixels on light ground, `scale` pixels to a CSS pixel.
    pub fn pixels(&self, scale: f64) -> RgbImage {
        let side = |length: f64| (length * scale).ceil().max(1.0) as u32;
        let mut image = RgbImage::from_pixel(side(self.size.0), side(self.size.1), Rgb([255; 3]));
        let scaled = |(x, y): (f64, f64)| (x * scale, y * scale);
        for shape in &self.shapes {
            match shape {
                Shape::Box { at, size, ink, opacity, .. } => {
                    fill_box(&mut image, scaled(*at), scaled(*size), ink.rgb(), *opacity);
                }
                Shape::Line { points, width, ink, opacity } => {
                    let points: Vec<_> = points.iter().map(|&point| scaled(point)).collect();
                    stroke(&mut image, &points, width * scale / 2.0, ink.rgb(), *opacity);
                }
                Shape::Dot { at, radius, ink, .. } => {
                    stroke(&mut image, &[scaled(*at)], radius * scale, ink.rgb(), 1.0);
                }
                Shape::Words(words) => {
                    let (at, size) = (scaled(words.at), words.size * scale);
                    write(&mut image, &Words { at, size, ..words.clone() });
                }
            }
        }
        image
    }
}

fn blend(image: &mut RgbImage, x: i64, y: i64, rgb: [u8; 3], opacity: f64) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
    if let Some(pixel) = image.get_pixel_mut_checked(x, y) {
        for (to, from) in pixel.0.iter_mut().zip(rgb) {
            *to = (f64::from(*to) * (1.0 - opacity) + f64::from(from) * opacity).round() as u8;
        }
    }
}

/// Each pixel is covered by as much as the box covers of it.
fn fill_box(
    image: &mut RgbImage,
    (left, top): (f64, f64),
    (width, height): (f64, f64),
    rgb: [u8; 3],
    opacity: f64,
) {
    let covered = |from: f64, length: f64, pixel: i64| {
        let (start, end) = (from.max(pixel as f64), (from + length).min(pixel as f64 + 1.0));
        (end - start).max(0.0)
    };
    for y in top.floor() as i64..(top + height).ceil() as i64 {
        for x in left.floor() as i64..(left + width).ceil() as i64 {
            let share = covered(left, width, x) * covered(top, height, y);
            blend(image, x, y, rgb, opacity * share);
        }
    }
}

/// Draws what lies within `radius` of the line through `points`; one point gives a disc.
fn stroke(image: &mut RgbImage, points: &[(f64, f64)], radius: f64, rgb: [u8; 3], opacity: f64) {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let mut coverage = std::collections::BTreeMap::<(i64, i64), f64>::new();
    let segments = points.windows(2).map(|pair| (pair[0], pair[1]));
    let alone = points.first().filter(|_| points.len() == 1).map(|&point| (point, point));
    for (from, to) in segments.chain(alone) {
        let reach = radius + 1.0;
        let range = |a: f64, b: f64, end: i64| {
            let (low, high) = ((a.min(b) - reach).floor() as i64, (a.max(b) + reach).ceil() as i64);
            low.max(0)..high.min(end)
        };
        for y in range(from.1, to.1, height) {
            for x in range(from.0, to.0, width) {
                let middle = (x as f64 + 0.5, y as f64 + 0.5);
                let share = (radius + 0.5 - distance(middle, from, to)).clamp(0.0, 1.0);
                if share > 0.0 {
                    let covered = coverage.entry((y, x)).or_default();
                    *covered = covered.max(share);
                }
            }
        }
    }
    for ((y, x), share) in coverage {
        blend(image, x, y, rgb, opacity * share);
    }
}

/// Of a point from a segment.
fn distance(point: (f64, f64), from: (f64, f64), to: (f64, f64)) -> f64 {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx * dx + dy * dy;
    let along = ((point.0 - from.0) * dx + (point.1 - from.1) * dy) / length;
    let along = if length > 0.0 { along.clamp(0.0, 1.0) } else { 0.0 };
    (point.0 - from.0 - along * dx).hypot(point.1 - from.1 - along * dy)
}

/// The height of the glyphs nearest to a font of `size`.
fn glyph_height(size: f64) -> RasterHeight {
    if size < 18.0 { RasterHeight::Size16 } else { RasterHeight::Size20 }
}

/// How wide a character of a font of `size` is, in pixels.
pub fn character_width(size: f64) -> usize {
    get_raster_width(FontWeight::Regular, glyph_height(size))
}

/// Writes words in the monospaced glyphs that come with the program.
pub fn write(image: &mut RgbImage, words: &Words) {
    let height = glyph_height(words.size);
    // About this far down in a glyph's cell.
    let baseline = (0.78 * height.val() as f64) as i64;
    let text: Vec<char> = words.text.chars().flat_map(drawable).collect();
    let advance = character_width(words.size) as f64;
    let length = advance * text.len() as f64;
    let before = match words.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => length / 2.0,
        Anchor::End => length,
    };
    let (x, y) = (words.at.0.round() as i64, words.at.1.round() as i64);
    for (index, character) in text.into_iter().enumerate() {
        let Some(glyph) = get_raster(character, FontWeight::Regular, height) else { continue };
        let start = (advance * index as f64 - before).round() as i64;
        for (row, line) in glyph.rows().enumerate() {
            for (column, &share) in line.iter().enumerate() {
                // Along the line, and down from it.
                let (along, down) = (start + column as i64, row as i64 - baseline);
                let (dx, dy) = if words.upwards { (down, -along) } else { (along, down) };
                blend(image, x + dx, y + dy, words.ink.rgb(), f64::from(share) / 255.0);
            }
        }
    }
}

/// The names of classes as files can show them: one whose characters have not all glyphs goes by its number.
pub fn writable(classes: &[String]) -> Vec<String> {
    let has_glyphs = |name: &str| name.chars().all(|c| c == '?' || drawable(c) != ['?']);
    let writable = |(class, name): (usize, &String)| match has_glyphs(name) {
        true => name.clone(),
        false => format!("class {class}"),
    };
    classes.iter().enumerate().map(writable).collect()
}

/// The characters with glyphs that stand for `character`.
fn drawable(character: char) -> Vec<char> {
    match character {
        '…' => vec!['.', '.'],
        '–' | '—' | '−' => vec!['-'],
        '’' | '‘' => vec!['\''],
        other => {
            let known = get_raster(other, FontWeight::Regular, RasterHeight::Size16).is_some();
            vec![if known { other } else { '?' }]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::drawing::Ink;

    #[test]
    fn shapes_cover_what_they_should() {
        let mut drawing = Drawing::new(20.0, 10.0);
        let title = String::new();
        let (at, size) = ((2.0, 2.0), (4.5, 3.0));
        drawing.shapes.push(Shape::Box { at, size, ink: Ink::Text, opacity: 1.0, title });
        let image = drawing.pixels(2.0);
        assert_eq!(image.dimensions(), (40, 20));
        assert_eq!(image.get_pixel(4, 4).0, Ink::Text.rgb());
        assert_eq!(image.get_pixel(12, 9).0, Ink::Text.rgb());
        assert_eq!(image.get_pixel(3, 4).0, [255; 3]);
        assert_eq!(image.get_pixel(13, 4).0, [255; 3]);

        let mut line = Drawing::new(20.0, 10.0);
        line.rule((0.0, 4.5), (20.0, 4.5), Ink::Text);
        let image = line.pixels(1.0);
        assert_eq!(image.get_pixel(10, 4).0, Ink::Text.rgb());
        assert_eq!(image.get_pixel(10, 6).0, [255; 3]);
    }

    #[test]
    fn words_leave_ink_where_they_stand() {
        let inked = |text: &str, upwards: bool| {
            let mut drawing = Drawing::new(60.0, 60.0);
            let (at, anchor) = ((30.0, 30.0), Anchor::Start);
            let text = text.to_owned();
            drawing.shapes.push(Shape::Words(Words {
                text,
                at,
                size: 11.0,
                anchor,
                ink: Ink::Text,
                upwards,
            }));
            let image = drawing.pixels(1.0);
            let dark = image.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] < 128);
            dark.map(|(x, y, _)| (x, y)).collect::<Vec<_>>()
        };
        let right = inked("abé", false);
        assert!(right.len() > 20 && right.iter().all(|&(x, y)| x >= 30 && y <= 31), "{right:?}");
        let up = inked("abé", true);
        assert!(up.len() > 20 && up.iter().all(|&(x, y)| x <= 31 && y <= 30), "{up:?}");
        assert_eq!(inked("語", false), inked("?", false), "what has no glyph is seen to miss one");
    }

    #[test]
    fn a_name_without_glyphs_is_a_number() {
        let classes = ["ants?", "蜂", "Bär – 2", "кот 3"].map(str::to_owned);
        assert_eq!(writable(&classes), ["ants?", "class 1", "Bär – 2", "class 3"]);
    }
}
