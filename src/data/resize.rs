//! Resizing as PIL and torchvision do it: a triangle filter widened by the scale (bilinear with
//! antialiasing), rows first, over exactly the region that ends up in the output.

use fast_image_resize::images::{Image, TypedCroppedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::error::{Error, Result};

/// Validation preprocessing: torchvision's `Resize(round(size·256/224))` and `CenterCrop(size)`.
/// Returns `[size, size, 3]` bytes. An image of exactly `size`×`size` is returned as it is.
///
/// Only the pixels of the crop are computed, so an image of any aspect takes bounded memory.
///
/// # Errors
/// [`Error::Shape`] when `size` is 0 or the image has no pixels.
pub fn resize_center_crop(image: &RgbImage, size: u32) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    if (width, height) == (size, size) {
        return Ok(image.as_raw().clone());
    }
    let [columns, rows] = center_crop(width, height, size);
    resize(&whole(image.as_raw(), width, height)?, [columns, rows], [size; 2])
}

/// torchvision's `Resize(side)` for an image whose short side is longer; another stays as it is.
pub(super) fn shrink(image: RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let short = width.min(height);
    if short <= side {
        return Ok(image);
    }
    let to = [width, height].map(|length| {
        // As torchvision cuts it, within u64.
        (u64::from(side) * u64::from(length) / u64::from(short)) as u32
    });
    let spans = [width, height].map(Span::whole);
    let pixels = resize(&whole(image.as_raw(), width, height)?, spans, to)?;
    let [width, height] = to;
    RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| Error::shape("resize", format!("{width}×{height}: other pixels came")))
}

/// What [`resize_center_crop`] keeps of an image: where its columns begin and how many they are, in shares
/// of all, then the same of its rows.
pub fn seen(width: u32, height: u32, size: u32) -> [(f64, f64); 2] {
    if (width, height) == (size, size) {
        return [(0.0, 1.0); 2];
    }
    let [columns, rows] = center_crop(width, height, size);
    [(columns, width), (rows, height)]
        .map(|(span, of)| (span.start / f64::from(of), span.length / f64::from(of)))
}

/// The columns and rows of `Resize(round(size·256/224))` and `CenterCrop(size)`.
fn center_crop(width: u32, height: u32, size: u32) -> [Span; 2] {
    let short = (f64::from(size) * 256.0 / 224.0).round_ties_even();
    let long = |this: u32, other: u32| (short * f64::from(this) / f64::from(other)).floor();
    let (resized_width, resized_height) =
        if width <= height { (short, long(height, width)) } else { (long(width, height), short) };
    [Span::center_crop(width, resized_width, size), Span::center_crop(height, resized_height, size)]
}

/// Resizes a region to `[size, size, 3]` bytes as if nothing were around it.
pub(super) fn resize_region(image: &RgbImage, region: Region, size: u32) -> Result<Vec<u8>> {
    let (image_width, image_height) = image.dimensions();
    let view = view(image.as_raw(), image_width, image_height)?;
    let Region { left, top, width, height } = region;
    let region = TypedCroppedImage::new(view, left, top, width, height)
        .map_err(|error| Error::shape("resize", format!("{region:?}: {error}")))?;
    resize(&region, [width, height].map(Span::whole), [size; 2])
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

/// A stretch along an axis of the source, in pixels.
#[derive(Clone, Copy)]
struct Span {
    start: f64,
    length: f64,
}

impl Span {
    /// What becomes the central `size` pixels when `source` pixels are resized to `resized`.
    fn center_crop(source: u32, resized: f64, size: u32) -> Self {
        let scale = f64::from(source) / resized;
        let start = ((resized - f64::from(size)) / 2.0).round_ties_even() * scale;
        // Rounding must not push the end past the image's.
        Self { start, length: (f64::from(size) * scale).min(f64::from(source) - start) }
    }

    fn whole(length: u32) -> Self {
        Self { start: 0.0, length: f64::from(length) }
    }

    /// The whole pixels within the filter's reach when the span becomes `size` pixels: first, count.
    fn reach(self, source: u32, size: u32) -> (u32, u32) {
        let support = (self.length / f64::from(size)).max(1.0);
        let first = (self.start - support).floor().max(0.0);
        let end = (self.start + self.length + support).ceil().min(f64::from(source));
        (first as u32, (end - first) as u32)
    }
}

type View<'a> = TypedImageRef<'a, U8x3>;

/// The one type that is resized: the crate compiles everything again for each.
type Source<'a> = TypedCroppedImage<'a, View<'a>>;

fn view(bytes: &[u8], width: u32, height: u32) -> Result<View<'_>> {
    TypedImageRef::from_buffer(width, height, bytes)
        .map_err(|error| Error::shape("resize", format!("{width}×{height}: {error}")))
}

fn whole(bytes: &[u8], width: u32, height: u32) -> Result<Source<'_>> {
    TypedCroppedImage::new(view(bytes, width, height)?, 0, 0, width, height)
        .map_err(|error| Error::shape("resize", format!("{width}×{height}: {error}")))
}

/// Resizes columns and rows of `source` to as many as `to` says: `[rows, columns, 3]` bytes.
///
/// In two passes: the crate would do bytes column by column first, which rounds the intermediate
/// values differently from PIL.
fn resize(
    source: &Source<'_>,
    [columns, rows]: [Span; 2],
    [to_width, to_height]: [u32; 2],
) -> Result<Vec<u8>> {
    let (width, height) = (ImageView::width(source), ImageView::height(source));
    let failed = |reason: String| {
        let sizes = format!("{width}×{height} to {to_width}×{to_height} pixels");
        Error::shape("resize", format!("{sizes}: {reason}"))
    };
    if [to_width, to_height, width, height].contains(&0) {
        return Err(failed("nothing to compute".into()));
    }
    let (first, count) = rows.reach(height, to_height);
    let reached = Span { start: f64::from(first), length: f64::from(count) };
    let narrowed = convolve(source, columns, reached, (to_width, count)).map_err(failed)?;
    let rows = Span { start: rows.start - reached.start, ..rows };
    let narrowed = whole(&narrowed, to_width, count)?;
    convolve(&narrowed, Span::whole(to_width), rows, (to_width, to_height)).map_err(failed)
}

/// Makes `columns` and `rows` of `source` an image of this width and height.
fn convolve(
    source: &Source<'_>,
    columns: Span,
    rows: Span,
    (width, height): (u32, u32),
) -> Result<Vec<u8>, String> {
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(columns.start, rows.start, columns.length, rows.length);
    let mut output = Image::new(width, height, PixelType::U8x3);
    let mut pixels = output.typed_image_mut::<U8x3>().ok_or("not three bytes a pixel")?;
    Resizer::new()
        .resize_typed(source, &mut pixels, &options)
        .map_err(|error| error.to_string())?;
    Ok(output.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode;

    fn fixture(name: &str) -> RgbImage {
        decode(format!("{}/tests/fixtures/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn assert_close(ours: &[u8], theirs: &RgbImage) {
        assert_eq!(ours.len(), theirs.as_raw().len());
        assert!(ours.iter().zip(theirs.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1));
    }

    #[test]
    fn large_images_shrink_as_torchvision_has_it() {
        for name in ["noise-97x61", "noise-61x97"] {
            let image = fixture(&format!("{name}.png"));
            let theirs = fixture(&format!("{name}-short-40.png"));
            let ours = shrink(image.clone(), 40).unwrap();
            assert_eq!(ours.dimensions(), theirs.dimensions());
            assert_close(ours.as_raw(), &theirs);
            assert_eq!(shrink(image.clone(), 61).unwrap(), image);
        }
    }

    #[test]
    fn a_region_is_resized_as_torchvision_does_it() {
        let image = fixture("noise-97x61.png");
        let theirs = fixture("noise-97x61-region.png");
        let region = Region { left: 20, top: 7, width: 50, height: 40 };
        let ours = resize_region(&image, region, 32).unwrap();
        assert_close(&ours, &theirs);
        assert!(resize_region(&image, Region { left: 48, ..region }, 32).is_err());
    }
}
