//! Where this module's random numbers come from: a generator per purpose, seed, epoch and index, so
//! that no draw depends on how many others were made before it.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What the numbers are for; keeps streams with equal keys apart.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// Which images of a class are held out; the index is the class.
    Split = 1,
    /// The order of an epoch; the index is 0.
    Shuffle = 2,
    /// The augmentation of an image; the index is the item's.
    Augment = 3,
    /// How the images of a batch are mixed; the index is the batch's.
    Mix = 4,
    /// What the network drops of a batch; the index is the batch's.
    Noise = 5,
}

/// Two random words for what the network drops of a batch, given its place in an epoch.
pub fn noise_key(seed: u64, epoch: u64, batch: usize) -> [u32; 2] {
    generator(Purpose::Noise, seed, epoch, batch).random()
}

/// The generator for `purpose`, all of whose numbers follow from the arguments.
pub(super) fn generator(purpose: Purpose, seed: u64, epoch: u64, index: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    let words = [seed, epoch, index as u64, purpose as u64];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
