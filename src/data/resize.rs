//! Resizing as PIL and torchvision do it: a triangle filter widened by the scale (bilinear with
//! antialiasing), rows first, over exactly the region that ends up in the output.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};
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
    let short = (f64::from(size) * 256.0 / 224.0).round_ties_even();
    let long = |this: u32, other: u32| (short * f64::from(this) / f64::from(other)).floor();
    let (resized_width, resized_height) =
        if width <= height { (short, long(height, width)) } else { (long(width, height), short) };
    let columns = Span::center_crop(width, resized_width, size);
    let rows = Span::center_crop(height, resized_height, size);
    resize(image, columns, rows, size)
}

/// Resizes a region of whole pixels to `[size, size, 3]` bytes. Its edges take in the neighbours that
/// the filter reaches.
pub(super) fn resize_region(image: &RgbImage, region: Region, size: u32) -> Result<Vec<u8>> {
    let Region { left, top, width, height } = region;
    resize(image, Span::whole(left, width), Span::whole(top, height), size)
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

    fn whole(start: u32, length: u32) -> Self {
        Self { start: f64::from(start), length: f64::from(length) }
    }

    /// The whole pixels within the filter's reach when the span becomes `size` pixels: first, count.
    fn reach(self, source: u32, size: u32) -> (u32, u32) {
        let support = (self.length / f64::from(size)).max(1.0);
        let first = (self.start - support).floor().max(0.0);
        let end = (self.start + self.length + support).ceil().min(f64::from(source));
        (first as u32, (end - first) as u32)
    }
}

/// Resizes `columns` and `rows` of `image` to `[size, size, 3]`.
///
/// In two passes: the crate would do bytes column by column first, which rounds the intermediate
/// values differently from PIL.
fn resize(image: &RgbImage, columns: Span, rows: Span, size: u32) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    if size == 0 || width == 0 || height == 0 {
        return Err(Error::shape("resize", format!("{width}×{height} to {size}×{size} pixels")));
    }
    let failed =
        |reason: String| Error::shape("resize", format!("{width}×{height} to {size}: {reason}"));
    let source = ImageRef::new(width, height, image.as_raw(), PixelType::U8x3)
        .map_err(|error| failed(error.to_string()))?;
    let (first, count) = rows.reach(height, size);
    let mut narrowed = Image::new(size, count, PixelType::U8x3);
    convolve(&source, columns, Span::whole(first, count), &mut narrowed).map_err(failed)?;
    let rows = Span { start: rows.start - f64::from(first), ..rows };
    let mut output = Image::new(size, size, PixelType::U8x3);
    convolve(&narrowed, Span::whole(0, size), rows, &mut output).map_err(failed)?;
    Ok(output.into_vec())
}

fn convolve(
    source: &impl IntoImageView,
    columns: Span,
    rows: Span,
    output: &mut Image,
) -> Result<(), String> {
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(columns.start, rows.start, columns.length, rows.length);
    Resizer::new().resize(source, output, &options).map_err(|error| error.to_string())
}
