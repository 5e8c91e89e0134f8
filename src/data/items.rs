//! Lists of images, and what of their pixels stays in memory: decoding a photograph takes many times as long
//! as all else that is done to it, and is the same in every epoch.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use rand::Rng;

use super::augment::Transform;
use super::item::Item;
use super::resize::shrink;

/// A list of images. Clones share it, and what it keeps.
#[derive(Clone, Debug)]
pub struct Items(Arc<List>);

#[derive(Debug)]
struct List {
    items: Arc<[Item]>,
    /// The short side, in pixels, of images that are larger, once they are decoded.
    shrunk: Option<u32>,
    keeps: Keep,
    room: Arc<Room>,
    kept: Box<[Mutex<Option<Kept>>]>,
    /// Whether there was no room for something.
    crowded: AtomicBool,
}

/// What stays in memory of an image that was shown, where there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The decoded image, for what is different each time.
    Decoded,
    /// What the network is shown, where that is the same each time and of one size.
    Prepared,
}

#[derive(Clone, Debug)]
enum Kept {
    Decoded(Arc<RgbImage>),
    Prepared { size: u32, pixels: Arc<[u8]> },
}

/// Memory that lists share. What was taken stays taken.
#[derive(Debug)]
pub struct Room {
    left: AtomicU64,
}

impl Room {
    /// Room for so many bytes of pixels.
    pub fn new(bytes: u64) -> Self {
        Self { left: bytes.into() }
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: u64| left.checked_sub(bytes as u64);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl Items {
    /// A list that keeps pixels as long as there is room. Once decoded, images whose short side is longer than
    /// `shrunk` pixels are made as large as that.
    pub fn keeping(
        items: impl Into<Arc<[Item]>>,
        shrunk: Option<u32>,
        keeps: Keep,
        room: &Arc<Room>,
    ) -> Self {
        let items: Arc<[Item]> = items.into();
        let slots = if keeps == Keep::Nothing { 0 } else { items.len() };
        let kept = (0..slots).map(|_| Mutex::new(None)).collect();
        let (room, crowded) = (room.clone(), false.into());
        Self(Arc::new(List { items, shrunk, keeps, room, kept, crowded }))
    }

    /// The same images, none in memory yet, with the labels that `labels` has for theirs.
    pub fn relabelled(&self, labels: &[u32]) -> Self {
        let List { items, shrunk, keeps, room, .. } = &*self.0;
        let relabel = |item: &Item| Item { label: labels[item.label as usize], ..item.clone() };
        let items: Arc<[Item]> = items.iter().map(relabel).collect();
        Self::keeping(items, *shrunk, *keeps, room)
    }

    /// Whether there was no room for some images that were to stay in memory.
    pub fn is_crowded(&self) -> bool {
        self.0.crowded.load(Ordering::Relaxed)
    }

    /// How many images have pixels in memory.
    pub fn kept(&self) -> usize {
        (0..self.0.kept.len()).filter(|&at| self.found(at).is_some()).count()
    }

    /// What `transform` makes of the image at `at`, or why it cannot be read.
    pub(super) fn pixels(
        &self,
        at: usize,
        transform: &Transform,
        rng: &mut impl Rng,
    ) -> Result<Vec<u8>, String> {
        let size = transform.size;
        let found = self.found(at);
        let image = match found {
            Some(Kept::Prepared { size: theirs, pixels })
                if transform.is_fixed() && theirs == size =>
            {
                return Ok(pixels.to_vec());
            }
            Some(Kept::Decoded(image)) => image,
            _ => {
                let image = Arc::new(self.decode(at)?);
                if self.0.keeps == Keep::Decoded {
                    self.keep(at, image.as_raw().len(), || Kept::Decoded(image.clone()));
                }
                image
            }
        };
        let pixels = transform.apply(&image, rng).map_err(|error| error.to_string())?;
        if self.0.keeps == Keep::Prepared && transform.is_fixed() {
            let pixels = || Kept::Prepared { size, pixels: pixels.as_slice().into() };
            self.keep(at, 3 * (size as usize).pow(2), pixels);
        }
        Ok(pixels)
    }

    fn decode(&self, at: usize) -> Result<RgbImage, String> {
        let image = self[at].rgb()?;
        match self.0.shrunk {
            Some(side) => shrink(image, side).map_err(|error| error.to_string()),
            None => Ok(image),
        }
    }

    fn found(&self, at: usize) -> Option<Kept> {
        let slot = self.0.kept.get(at)?;
        slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, at: usize, bytes: usize, kept: impl FnOnce() -> Kept) {
        let mut slot = self.0.kept[at].lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            match self.0.room.take(bytes) {
                true => *slot = Some(kept()),
                false => self.0.crowded.store(true, Ordering::Relaxed),
            }
        }
    }
}

impl Deref for Items {
    type Target = [Item];

    fn deref(&self) -> &[Item] {
        &self.0.items
    }
}

/// A list that keeps nothing.
impl From<Arc<[Item]>> for Items {
    fn from(items: Arc<[Item]>) -> Self {
        Self::keeping(items, None, Keep::Nothing, &Arc::new(Room::new(0)))
    }
}

/// A list that keeps nothing.
impl From<Vec<Item>> for Items {
    fn from(items: Vec<Item>) -> Self {
        Arc::<[Item]>::from(items).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, generator};
    use crate::data::{Augment, Dataset, ScanOptions, demo_root};

    #[test]
    fn what_is_kept_changes_no_byte_and_keeps_to_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let demo = Dataset::scan(&demo_root().unwrap(), &ScanOptions::default()).unwrap();
        let items: Vec<Item> = demo.train[..6].to_vec();
        let decoded: Vec<usize> =
            items.iter().map(|item| item.rgb().unwrap().as_raw().len()).collect();
        // Copies, to be taken away once they are in memory.
        let copies: Vec<Item> = (0..)
            .zip(&items)
            .map(|(at, item)| {
                let copy = folder.path().join(at.to_string());
                std::fs::copy(&item.path, &copy).unwrap();
                Item::file(copy, item.label)
            })
            .collect();
        let varied = Transform { size: 32, augment: Augment::Light, auto_augment: None };
        let fixed = Transform { augment: Augment::None, ..varied };
        let plain = Items::from(items);
        let show = |list: &Items, at: usize, transform: &Transform| {
            list.pixels(at, transform, &mut generator(Purpose::Augment, 7, 1, at))
        };
        let three = decoded[..3].iter().sum::<usize>() as u64;
        let room = Arc::new(Room::new(three));
        let photos = Items::keeping(copies.clone(), None, Keep::Decoded, &room);
        for at in 0..6 {
            assert_eq!(show(&photos, at, &varied), show(&plain, at, &varied));
        }
        assert!(photos.is_crowded() && !plain.is_crowded());
        let small = Arc::new(Room::new(2 * 32 * 32 * 3));
        let prepared = Items::keeping(copies.clone(), None, Keep::Prepared, &small);
        for at in 0..2 {
            assert_eq!(show(&prepared, at, &fixed), show(&plain, at, &fixed));
        }
        assert!(!prepared.is_crowded());
        show(&prepared, 2, &fixed).unwrap();
        assert!(prepared.is_crowded());
        // Each list tells of its own images, not of others, nor of what cannot be read.
        let missing = Item::file(folder.path().join("missing"), 0);
        let shared = Arc::new(Room::new(32 * 32 * 3));
        let list = |items: &[Item]| Items::keeping(items, None, Keep::Prepared, &shared);
        let [fits, does_not] = [list(&[copies[0].clone(), missing]), list(&copies[1..2])];
        show(&fits, 0, &fixed).unwrap();
        show(&fits, 1, &fixed).unwrap_err();
        show(&does_not, 0, &fixed).unwrap();
        assert!(does_not.is_crowded() && !fits.is_crowded());
        let kept = photos.kept();
        assert!((3..=5).contains(&kept), "{kept} of images as large as three of them");

        for entry in std::fs::read_dir(folder.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for at in 0..6 {
            for transform in [&varied, &fixed] {
                let shown = show(&photos, at, transform);
                assert_eq!(shown.is_ok(), photos.found(at).is_some());
                assert!(shown.is_err() || shown == show(&plain, at, transform));
            }
            // Nothing else was prepared, and nothing of another size.
            assert_eq!(show(&prepared, at, &fixed).is_ok(), at < 2);
            assert!(show(&prepared, at, &varied).is_err());
            assert!(show(&prepared, at, &Transform { size: 31, ..fixed }).is_err());
        }
        assert_eq!((photos.kept(), prepared.kept()), (kept, 2));
    }
}
