//! Labelled images: folders, decoding, preprocessing, augmentation and the prefetching loader.
//!
//! [`Dataset::scan`] turns a folder or archives into lists of [`Item`]s, [`Order`] groups them into
//! batches, and [`Loader`] decodes ahead of the consumer on threads of its own; what it has decoded may
//! stay in memory for the next epoch ([`Items`]). Pixels stay bytes here (RGB, rows of `size` pixels);
//! normalisation is the network's first step. Nothing here knows the GPU.
//!
//! ```no_run
//! use wgrad::data::{Augment, Dataset, Loader, Order, ScanOptions, Transform, demo_root};
//! # fn main() -> wgrad::Result<()> {
//! let dataset = Dataset::scan(&demo_root()?, &ScanOptions::default())?;
//! let order = Order { seed: 0, epoch: 0, shuffle: true, batch_size: 16, drop_last: false };
//! let batches = order.batches(dataset.train.len());
//! let transform = Transform { size: 64, augment: Augment::Light, auto_augment: None };
//! for batch in Loader::new(dataset.train, batches, transform, 0, 0, 2)? {
//!     let batch = batch?;
//!     println!("batch {}: {} images", batch.index, batch.labels.len());
//! }
//! # Ok(())
//! # }
//! ```

mod archive;
mod augment;
mod auto_augment;
mod dataset;
mod decode;
mod demo;
mod folder;
mod item;
mod items;
mod jitter;
mod loader;
mod mix;
mod pil;
mod random;
mod resize;
mod tree;

pub use archive::{Archives, Member};
pub use augment::{Augment, Transform};
pub use auto_augment::AutoAugment;
pub use dataset::{Dataset, Labelled, ScanOptions, Skipped};
pub use decode::{decode, decode_bytes};
pub use demo::demo_root;
pub use folder::Others;
pub use image::RgbImage;
pub use item::Item;
pub use items::{Items, Keep, Room};
pub use loader::{Batch, Loader, MAX_WORKERS, Order};
pub use mix::Mix;
pub use random::noise_key;
pub use resize::{resize_center_crop, seen};
pub use tree::image_files;
