//! Image files to RGB pixels: upright, alpha blended on white, 8 bits a channel.

use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage};

use crate::error::{Error, Result};

/// Images of more pixels are refused, as are those whose decoded form exceeds [`MAX_BYTES`].
const MAX_PIXELS: u64 = 100_000_000;
/// The most memory one decoded image may take before it is reduced to 8-bit RGB.
const MAX_BYTES: u64 = 512 << 20;
/// How much of a file [`probe`] reads first; nearly every header ends before.
const HEAD: u64 = 64 << 10;
/// How much it reads where that is not enough; a TIFF's may even stand at the end.
const LONG_HEAD: u64 = 16 << 20;

/// Decodes the image file at `path`, whose format is told from its content: JPEG (greyscale, YCbCr,
/// CMYK), PNG (any depth, palette), GIF, WebP and TIFF (their first frame), BMP, PNM. EXIF orientation
/// is applied and transparency is blended on white.
///
/// # Errors
/// [`Error::Data`] with the reason: unreadable, of another format, truncated, or over 100 megapixels.
pub fn decode(path: impl AsRef<Path>) -> Result<RgbImage> {
    read_rgb(path.as_ref()).map_err(|reason| Error::data(path, reason))
}

/// [`decode`] for a file already in memory; `name` is what errors call it.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(bytes: &[u8], name: impl AsRef<Path>) -> Result<RgbImage> {
    rgb_from(bytes).map_err(|reason| Error::data(name, reason))
}

/// [`decode`] with the bare reason as error.
pub(super) fn read_rgb(path: &Path) -> Result<RgbImage, String> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    rgb_from(&bytes)
}

/// Width and height as stored, from the header alone; decoding may still fail further on.
pub(super) fn probe(path: &Path) -> Result<(u32, u32), String> {
    let mut file = open(path)?;
    let mut head = Vec::new();
    // A long preamble (an embedded thumbnail, a colour profile) may precede the dimensions.
    for most in [HEAD, LONG_HEAD, MAX_BYTES] {
        let more = file.by_ref().take(most - head.len() as u64).read_to_end(&mut head);
        more.map_err(|error| format!("cannot be read: {error}"))?;
        let found = dimensions(&head);
        if found.is_ok() || (head.len() as u64) < most {
            return found;
        }
    }
    dimensions(&head)
}

/// [`probe`] for a file already in memory, or its beginning.
pub(super) fn probe_bytes(bytes: &[u8]) -> Result<(u32, u32), String> {
    no_panic(|| dimensions(bytes))
}

/// Runs `work`, turning a panic (of a decoder on a hostile file, say) into an error.
pub(super) fn no_panic<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err("the image library panicked on it; re-save the image, and please report it".into())
    })
}

fn open(path: &Path) -> Result<File, String> {
    let cannot = |error| format!("cannot be read: {error}");
    // Opening a pipe or a device could block forever.
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err("is not a regular file".into());
    }
    File::open(path).map_err(cannot)
}

fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    header(bytes).map(|decoder| decoder.dimensions())
}

pub(super) fn rgb_from(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut decoder = header(bytes)?;
    if jpeg_is_truncated(bytes) {
        return Err("truncated: the JPEG's end is missing".into());
    }
    no_panic(|| {
        let orientation = decoder.orientation().map_err(told)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(told)?;
        image.apply_orientation(orientation);
        Ok(on_white(image))
    })
}

/// A decoder's own words, some of which end in a line break.
fn told(error: ImageError) -> String {
    error.to_string().trim_end().to_owned()
}

/// A decoder that has read the header of an image small enough to decode. Always from memory, since
/// every decoder would be compiled again for another reader.
fn header(bytes: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, String> {
    if bytes.is_empty() {
        return Err("the file is empty (0 bytes)".into());
    }
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format!("cannot be read: {error}"))?;
    if reader.format().is_none() {
        return Err(
            "not an image: its content is none of JPEG, PNG, GIF, BMP, WebP, TIFF, PNM".into()
        );
    }
    let decoder = no_panic(|| reader.into_decoder().map_err(told))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(format!("has no pixels: {width}×{height}"));
    }
    if pixels > MAX_PIXELS || decoder.total_bytes() > MAX_BYTES {
        let megapixels = pixels / 1_000_000;
        return Err(format!(
            "too large: {width}×{height} is {megapixels} megapixels and {} MiB decoded, the limits \
             are {} and {}; shrink it first",
            decoder.total_bytes() >> 20,
            MAX_PIXELS / 1_000_000,
            MAX_BYTES >> 20,
        ));
    }
    Ok(Box::new(decoder))
}

/// Whether `bytes` are a JPEG without an end-of-image marker after its first scan. The decoder would
/// fill the missing part with grey and say nothing.
fn jpeg_is_truncated(bytes: &[u8]) -> bool {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return false;
    }
    // Segments are skipped whole, since an embedded thumbnail has an end marker of its own.
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            // Fill bytes may precede a marker.
            0xff => at += 1,
            0xda => return !bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    // No scan where the segments lead: the decoder has its own opinion of such a file.
    false
}

fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u16::from(value), u16::from(alpha));
        // At most 255·255 + 127, which fits.
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0;
        [blend(red, alpha), blend(green, alpha), blend(blue, alpha)].into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(no_panic(|| Ok(3)), Ok(3));
        let error = no_panic::<()>(|| panic!("as a decoder might")).unwrap_err();
        assert!(error.contains("panicked"), "{error}");
    }

    #[test]
    fn a_header_after_a_long_preamble_is_found() {
        let mut jpeg = Vec::new();
        let image = DynamicImage::ImageRgb8(RgbImage::new(5, 3));
        image.write_to(&mut Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
        // Segments such as a colour profile's, as long as they can be, after the start of the image.
        let segment: Vec<u8> = [0xff, 0xe2, 0xff, 0xff].into_iter().chain([0; 0xfffd]).collect();
        jpeg.splice(2..2, segment.repeat(3));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &jpeg).unwrap();
        assert_eq!(probe(file.path()), Ok((5, 3)));
        assert!(probe_bytes(&jpeg[..HEAD as usize]).is_err());
    }
}
