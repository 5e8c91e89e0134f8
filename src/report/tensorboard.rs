//! TensorBoard's event files: records of protobuf messages, each behind its length and checksums.
//!
//! A record is `length: u64, crc(length): u32, message, crc(message): u32`, little-endian, with
//! CRC-32C masked as in TFRecord. The messages (tensorflow/core/util/event.proto and
//! framework/summary.proto) have so few fields that they are written by hand.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::RgbImage;

use super::png;
use crate::error::{Error, Result};

/// What TensorBoard takes such files to be.
const VERSION: &str = "brain.Event:2";
/// Buckets of a histogram.
const BUCKETS: usize = 30;

/// An event file that grows by whole records.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Starts an event file in `folder`, which is made where it is missing. A run that is resumed has
    /// several; TensorBoard joins them.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let started = now();
        let name = |number: u32| format!("events.out.tfevents.{started:.0}.{number}.wgrad");
        let mut free = (0..).map(|number| folder.join(name(number))).filter(|path| !path.exists());
        let path = free.next().unwrap_or_else(|| folder.join(name(0)));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut events = Self { file: file.map_err(Error::io(&path))?, path };
        let mut event = Message::default();
        event.double(1, started);
        event.bytes(3, VERSION.as_bytes());
        events.record(&event.0)?;
        Ok(events)
    }

    /// Adds what was measured at `step`.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn add(&mut self, step: u64, summary: Summary) -> Result<()> {
        let mut event = Message::default();
        event.double(1, now());
        event.number(2, step);
        event.bytes(5, &summary.0.0);
        self.record(&event.0)
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        self.file.write_all(&framed(message)).map_err(Error::io(&self.path))
    }
}

/// The last step at which any event file in `folder` holds `tag`.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn last_step(folder: &Path, tag: &str) -> Result<Option<u64>> {
    let mut last = None;
    // No folder, no files.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = std::fs::read(entry.path()).map_err(Error::io(entry.path()))?;
        last = last.max(messages(&file).filter_map(|message| step_of(message, tag)).max());
    }
    Ok(last)
}

/// The messages of a file's records, up to one that was cut off.
fn messages(mut file: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = file.split_first_chunk()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (message, rest) = rest.get(4..)?.split_at_checked(length)?;
        file = rest.get(4..)?;
        Some(message)
    })
}

/// The step of an event as [`Events::add`] writes them, if it holds `tag`.
fn step_of(message: &[u8], tag: &str) -> Option<u64> {
    // The time, and the key of the step.
    let (&key, number) = message.get(9..)?.split_first()?;
    let holds = message.windows(tag.len()).any(|bytes| bytes == tag.as_bytes());
    let mut step = 0;
    for (&byte, shift) in number.iter().zip((0..64).step_by(7)) {
        step |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (key == 2 << 3 && holds).then_some(step);
        }
    }
    None
}

/// Values under names, at one step.
#[derive(Debug, Default)]
pub struct Summary(Message);

impl Summary {
    /// A number.
    pub fn scalar(&mut self, tag: &str, value: f64) {
        let mut message = tagged(tag);
        message.float(2, value as f32);
        self.0.bytes(1, &message.0);
    }

    /// An image.
    pub fn image(&mut self, tag: &str, image: &RgbImage) {
        let mut pixels = Message::default();
        pixels.number(1, image.height().into());
        pixels.number(2, image.width().into());
        pixels.number(3, 3);
        pixels.bytes(4, &png(image));
        let mut message = tagged(tag);
        message.bytes(4, &pixels.0);
        self.0.bytes(1, &message.0);
    }

    /// Text, in Markdown.
    pub fn text(&mut self, tag: &str, text: &str) {
        // SummaryMetadata { plugin_data { plugin_name }, data_class: DATA_CLASS_TENSOR }
        let mut plugin = Message::default();
        plugin.bytes(1, b"text");
        let mut metadata = Message::default();
        metadata.bytes(1, &plugin.0);
        metadata.number(4, 2);
        // TensorProto { dtype: DT_STRING, tensor_shape { dim { size: 1 } }, string_val }
        let mut dimension = Message::default();
        dimension.number(1, 1);
        let mut shape = Message::default();
        shape.bytes(2, &dimension.0);
        let mut tensor = Message::default();
        tensor.number(1, 7);
        tensor.bytes(2, &shape.0);
        tensor.bytes(8, text.as_bytes());
        let mut message = tagged(tag);
        message.bytes(8, &tensor.0);
        message.bytes(9, &metadata.0);
        self.0.bytes(1, &message.0);
    }

    /// How numbers are distributed; those that are not finite are left out.
    pub fn histogram(&mut self, tag: &str, values: &[f32]) {
        let finite = || values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
        let (low, high) = finite()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            return;
        }
        let width = if high > low { (high - low) / BUCKETS as f64 } else { 1.0 };
        let mut counts = vec![0.0; if high > low { BUCKETS } else { 1 }];
        let (mut sum, mut squares, mut number) = (0.0, 0.0, 0.0);
        for value in finite() {
            let bucket = ((value - low) / width) as usize;
            let last = counts.len() - 1;
            counts[bucket.min(last)] += 1.0;
            number += 1.0;
            sum += value;
            squares += value * value;
        }
        let limit =
            |bucket: usize| if high > low { low + width * (bucket + 1) as f64 } else { high };
        // Buckets reach down to the limit before: an empty one says where the first begins.
        let limits: Vec<f64> = [low].into_iter().chain((0..counts.len()).map(limit)).collect();
        counts.insert(0, 0.0);
        let mut histogram = Message::default();
        for (field, value) in [(1, low), (2, high), (3, number), (4, sum), (5, squares)] {
            histogram.double(field, value);
        }
        histogram.doubles(6, &limits);
        histogram.doubles(7, &counts);
        let mut message = tagged(tag);
        message.bytes(5, &histogram.0);
        self.0.bytes(1, &message.0);
    }
}

fn tagged(tag: &str) -> Message {
    let mut message = Message::default();
    message.bytes(1, tag.as_bytes());
    message
}

/// A protobuf message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn doubles(&mut self, field: u64, values: &[f64]) {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &packed);
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let crc = |bytes: &[u8]| masked_crc32c(bytes).to_le_bytes();
    [&length[..], &crc(&length), message, &crc(message)].concat()
}

/// CRC-32C (Castagnoli), rotated and offset so that a checksum of checksums is none.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    /// What each byte adds.
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// What a field holds.
    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Number(u64),
        Double(f64),
        Float(f32),
        Bytes(Vec<u8>),
    }

    impl Field {
        fn message(&self) -> Vec<(u64, Field)> {
            let Self::Bytes(bytes) = self else { panic!("no message: {self:?}") };
            fields(bytes)
        }

        fn text(&self) -> String {
            let Self::Bytes(bytes) = self else { panic!("no text: {self:?}") };
            String::from_utf8(bytes.clone()).unwrap()
        }

        fn doubles(&self) -> Vec<f64> {
            let Self::Bytes(bytes) = self else { panic!("no doubles: {self:?}") };
            bytes.chunks(8).map(|chunk| f64::from_le_bytes(chunk.try_into().unwrap())).collect()
        }
    }

    /// Reads a message as protobuf's encoding guide says.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
            let (taken, rest) = bytes.split_at(count);
            *bytes = rest;
            taken
        }
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = take(bytes, 1)[0];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length).to_vec())
                }
                5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
                wire => panic!("wire type {wire}"),
            };
            found.push((key >> 3, field));
        }
        found
    }

    fn get(fields: &[(u64, Field)], number: u64) -> &Field {
        &fields.iter().find(|(field, _)| *field == number).unwrap_or_else(|| panic!("{number}")).1
    }

    #[test]
    fn checksums_are_castagnolis() {
        // The check value of the CRC catalogue, and RFC 3720's 32 zeros and 32 ones.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_file_is_records_of_events() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        let mut summary = Summary::default();
        summary.scalar("train/loss", 0.5);
        summary.text("args", "| a | b |");
        summary.image("picture", &RgbImage::from_pixel(300, 2, Rgb([7; 3])));
        summary.histogram("weight", &[-1.0, 0.0, 0.25, 2.0, f32::NAN]);
        summary.histogram("constant", &[3.0, 3.0]);
        summary.histogram("none", &[]);
        events.add(300, summary).unwrap();
        let last = |tag: &str| last_step(folder.path(), tag).unwrap();
        assert_eq!((last("train/loss"), last("val/loss")), (Some(300), None));
        let second = Events::create(folder.path()).unwrap();
        assert_ne!(events.path, second.path);
        assert!(events.path.file_name().unwrap().to_str().unwrap().contains(".tfevents."));

        let file = std::fs::read(&events.path).unwrap();
        let (mut records, mut rest) = (Vec::new(), &file[..]);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |bytes: &[u8], at: usize| {
                let stored = u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
                assert_eq!(stored, masked_crc32c(bytes), "checksum at {at}");
            };
            crc(&rest[..8], 8);
            let message = &rest[12..12 + length];
            crc(message, 12 + length);
            records.push(fields(message));
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 2);
        assert_eq!(get(&records[0], 3).text(), VERSION);
        assert_eq!(get(&records[1], 2), &Field::Number(300));
        let values = get(&records[1], 5).message();
        let values: Vec<_> = values.iter().map(|(_, value)| value.message()).collect();
        let tags: Vec<_> = values.iter().map(|value| get(value, 1).text()).collect();
        assert_eq!(tags, ["train/loss", "args", "picture", "weight", "constant"]);
        assert_eq!(get(&values[0], 2), &Field::Float(0.5));
        let tensor = get(&values[1], 8).message();
        assert_eq!(get(&tensor, 8).text(), "| a | b |");
        assert_eq!(get(&get(&get(&values[1], 9).message(), 1).message(), 1).text(), "text");
        let picture = get(&values[2], 4).message();
        assert_eq!((get(&picture, 1), get(&picture, 2)), (&Field::Number(2), &Field::Number(300)));
        let Field::Bytes(encoded) = get(&picture, 4) else { panic!() };
        let decoded = crate::data::decode_bytes(encoded, "picture").unwrap();
        assert_eq!(decoded.get_pixel(299, 1).0, [7; 3]);

        let weight = get(&values[3], 5).message();
        let doubles = [1, 2, 3, 4, 5].map(|field| get(&weight, field).clone());
        assert_eq!(doubles, [-1.0, 2.0, 4.0, 1.25, 5.0625].map(Field::Double));
        let (limits, counts) = (get(&weight, 6).doubles(), get(&weight, 7).doubles());
        assert_eq!((limits.len(), counts.len()), (BUCKETS + 1, BUCKETS + 1));
        assert_eq!((limits[0], limits[BUCKETS]), (-1.0, 2.0));
        assert!(limits.is_sorted());
        // In steps of a tenth from −1: 0 begins the eleventh bucket, 0.25 lies in the thirteenth.
        let held: Vec<_> = (0..counts.len()).filter(|&bucket| counts[bucket] > 0.0).collect();
        assert_eq!((held, counts.iter().sum::<f64>()), (vec![1, 11, 13, 30], 4.0));
        let constant = get(&values[4], 5).message();
        assert_eq!(get(&constant, 7).doubles(), [0.0, 2.0]);
    }
}
