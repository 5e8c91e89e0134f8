//! Decodes batches ahead of the consumer, on threads of its own, in an order of their own making
//! that never shows: batches come in order, and every byte follows from seed, epoch and item alone.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rand::seq::SliceRandom;

use super::augment::Transform;
use super::dataset::{Skipped, check_share};
use super::decode::no_panic;
use super::items::Items;
use super::random::{Purpose, generator};
use crate::error::{Error, Result};

/// How many batches are being filled or wait to be taken, at least.
const PREFETCH: usize = 3;
/// More threads than this help nobody, and systems refuse them at some point.
pub const MAX_WORKERS: usize = 1024;

/// How an epoch visits the images.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Decides the shuffle, together with `epoch`.
    pub seed: u64,
    /// Counts from 0; every epoch is shuffled afresh.
    pub epoch: u64,
    /// Without it, images come in the list's own order.
    pub shuffle: bool,
    /// Images a batch.
    pub batch_size: usize,
    /// Leaves out a last batch that would be smaller than the others.
    pub drop_last: bool,
}

impl Order {
    /// The indices of `images` images in batches; a batch size of 0 counts as 1.
    pub fn batches(&self, images: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..images).collect();
        if self.shuffle {
            order.shuffle(&mut generator(Purpose::Shuffle, self.seed, self.epoch, 0));
        }
        let size = self.batch_size.max(1);
        let whole = |batch: &&[usize]| !self.drop_last || batch.len() == size;
        order.chunks(size).filter(whole).map(<[usize]>::to_vec).collect()
    }

    /// As many images as have `labels`, every class as often as the others, shuffled, in batches. A
    /// class with fewer images has them again; another has a random part of its own, a new one each
    /// epoch.
    ///
    /// Of k·n + i, for n images, image i is meant, k times before in this epoch: [`Loader`] varies it
    /// otherwise each time.
    pub fn balanced_batches(&self, labels: &[u32]) -> Vec<Vec<usize>> {
        let mut rng = generator(Purpose::Shuffle, self.seed, self.epoch, 0);
        let images = labels.len();
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        labels.iter().enumerate().for_each(|(at, &l)| members.entry(l).or_default().push(at));
        let mut members: Vec<Vec<usize>> = members.into_values().collect();
        // Which classes have one image more, where they cannot be equal.
        members.shuffle(&mut rng);
        let classes = members.len().max(1);
        let mut draws = Vec::with_capacity(images);
        for (class, mut members) in members.into_iter().enumerate() {
            let count = images / classes + usize::from(class < images % classes);
            for draw in 0..count {
                if draw % members.len() == 0 {
                    members.shuffle(&mut rng);
                }
                draws.push(draw / members.len() * images + members[draw % members.len()]);
            }
        }
        draws.shuffle(&mut rng);
        let places = Self { shuffle: false, ..*self }.batches(images);
        let image = |place: usize| draws[place];
        places.into_iter().map(|batch| batch.into_iter().map(image).collect()).collect()
    }
}

/// Decoded and preprocessed images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The batch's place in the epoch, from 0.
    pub index: usize,
    /// Which items these are, as indices into the loader's; without those that failed.
    pub items: Vec<usize>,
    /// Their classes.
    pub labels: Vec<u32>,
    /// `[items.len(), size, size, 3]`, RGB.
    pub pixels: Vec<u8>,
    /// The batch's items that could not be decoded.
    pub failed: Vec<Skipped>,
}

/// Iterates over the batches of an epoch, which its threads prepare ahead.
///
/// An image that cannot be decoded makes its batch smaller and is named in [`Batch::failed`]; when
/// more than 5 % of all items have failed, whichever the batches are of, the iterator yields an
/// [`Error::Data`] that lists them, and ends. Dropping the loader stops its threads.
pub struct Loader {
    items: Items,
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    /// By item, which may come more than once; not noted by a loader that puts up with all of them.
    failed: Option<BTreeMap<usize, Skipped>>,
}

impl Loader {
    /// Starts loading `batches` of indices into `items` (see [`Order::balanced_batches`] for those
    /// beyond) on `workers` threads (0: one for each core).
    /// Bounded memory: a few batches are held at a time.
    ///
    /// `seed` and `epoch` decide the augmentation; the number of workers does not change a byte.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image size of 0, [`Error::Shape`] for images of an empty list,
    /// [`Error::Io`] when no thread can be started.
    pub fn new(
        items: impl Into<Items>,
        batches: Vec<Vec<usize>>,
        transform: Transform,
        seed: u64,
        epoch: u64,
        workers: usize,
    ) -> Result<Self> {
        let items = items.into();
        if transform.size == 0 {
            return Err(Error::Usage("--image-size must be at least 1".into()));
        }
        if items.is_empty() && batches.iter().any(|batch| !batch.is_empty()) {
            return Err(Error::shape("loader", "batches of an empty list of images"));
        }
        let images = items.clone();
        let load = move |index: usize| {
            let mut rng = generator(Purpose::Augment, seed, epoch, index);
            images.pixels(index % images.len(), &transform, &mut rng)
        };
        Self::start(items, batches, workers, load)
    }

    fn start(
        items: Items,
        batches: Vec<Vec<usize>>,
        workers: usize,
        load: impl Fn(usize) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Result<Self> {
        let workers = match workers {
            0 => thread::available_parallelism().map_or(1, |count| count.get()),
            count => count.min(MAX_WORKERS),
        };
        let largest = batches.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let prefetch = PREFETCH.max(workers.div_ceil(largest) + 1);
        let queue = Arc::new(Queue::new(batches, prefetch));
        let load = Arc::new(load);
        let failed = Some(BTreeMap::new());
        let mut loader = Self { items, queue, workers: Vec::new(), failed };
        for worker in 0..workers {
            let (queue, load) = (loader.queue.clone(), load.clone());
            let work = move || {
                while let Some(job) = queue.next_job() {
                    queue.finish(job, no_panic(|| load(job.item)));
                }
            };
            match thread::Builder::new().name(format!("loader {worker}")).spawn(work) {
                Ok(handle) => loader.workers.push(handle),
                Err(error) if worker == 0 => return Err(Error::io("a loader thread")(error)),
                // Fewer threads than asked for do the same work.
                Err(_) => break,
            }
        }
        Ok(loader)
    }

    /// Leaves images out that cannot be decoded, however many they are.
    pub fn lenient(mut self) -> Self {
        self.failed = None;
        self
    }

    fn assemble(&mut self, index: usize, filled: Filled) -> Batch {
        let mut batch = Batch {
            index,
            items: Vec::with_capacity(filled.items.len()),
            labels: Vec::with_capacity(filled.items.len()),
            pixels: Vec::new(),
            failed: Vec::new(),
        };
        for (index, result) in filled.items.into_iter().zip(filled.results.into_iter().flatten()) {
            let item = index % self.items.len();
            match result {
                Ok(pixels) => {
                    batch.items.push(item);
                    batch.labels.push(self.items[item].label);
                    batch.pixels.extend_from_slice(&pixels);
                }
                Err(reason) => {
                    let skipped = Skipped { path: self.items[item].path.clone(), reason };
                    if let Some(failed) = &mut self.failed {
                        failed.insert(item, skipped.clone());
                    }
                    batch.failed.push(skipped);
                }
            }
        }
        batch
    }

    /// Fails when too many of the items have.
    fn check_failed(&self) -> Result<()> {
        let failed: Vec<_> =
            self.failed.iter().flatten().map(|(_, skipped)| skipped.clone()).collect();
        let mut folder = failed.first().map_or(Path::new(""), |first| &first.path);
        // The closest that holds all.
        for item in self.items.iter() {
            while !item.path.starts_with(folder) {
                folder = folder.parent().unwrap_or(Path::new(""));
            }
        }
        check_share(folder, &failed, self.items.len())
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let (index, filled) = self.queue.take()?;
        let batch = self.assemble(index, filled);
        let checked = if batch.failed.is_empty() { Ok(()) } else { self.check_failed() };
        if checked.is_err() {
            self.queue.stop();
        }
        Some(checked.map(|()| batch))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.queue.stop();
        for worker in self.workers.drain(..) {
            // A worker cannot panic: what it runs is guarded.
            let _ = worker.join();
        }
    }
}

/// What workers and consumer share: the epoch's batches, and the window of them in the making.
struct Queue {
    batches: Vec<Vec<usize>>,
    prefetch: usize,
    window: Mutex<Window>,
    /// Workers wait for room in the window.
    room: Condvar,
    /// The consumer waits for the front batch.
    front_filled: Condvar,
}

struct Window {
    /// The batch at the front of `filling`.
    front: usize,
    filling: VecDeque<Filled>,
    /// The next image to hand out: batch, place in it.
    next: (usize, usize),
    stopped: bool,
}

/// A batch with a place for each image's pixels, or why there are none.
struct Filled {
    items: Vec<usize>,
    results: Vec<Option<Result<Vec<u8>, String>>>,
    missing: usize,
}

/// One image to load.
#[derive(Clone, Copy)]
struct Job {
    batch: usize,
    place: usize,
    item: usize,
}

impl Queue {
    fn new(batches: Vec<Vec<usize>>, prefetch: usize) -> Self {
        let window = Window { front: 0, filling: VecDeque::new(), next: (0, 0), stopped: false };
        Self {
            batches,
            prefetch,
            window: Mutex::new(window),
            room: Condvar::new(),
            front_filled: Condvar::new(),
        }
    }

    /// The next image to load, once there is room for it; `None` when there is nothing left to do.
    fn next_job(&self) -> Option<Job> {
        let mut window = self.lock();
        loop {
            let (batch, place) = window.next;
            if window.stopped || batch == self.batches.len() {
                return None;
            }
            if batch >= window.front + self.prefetch {
                window = self.room.wait(window).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let items = &self.batches[batch];
            if place == 0 {
                window.filling.push_back(Filled {
                    items: items.clone(),
                    results: vec![None; items.len()],
                    missing: items.len(),
                });
                self.front_filled.notify_one();
            }
            let is_last = place + 1 >= items.len();
            window.next = if is_last { (batch + 1, 0) } else { (batch, place + 1) };
            // An empty batch is complete as soon as it is in the window.
            if let Some(&item) = items.get(place) {
                return Some(Job { batch, place, item });
            }
        }
    }

    fn finish(&self, job: Job, result: Result<Vec<u8>, String>) {
        let mut window = self.lock();
        // The consumer only takes complete batches, so the job's is still in the window.
        let at = job.batch - window.front;
        let filled = &mut window.filling[at];
        filled.results[job.place] = Some(result);
        filled.missing -= 1;
        if filled.missing == 0 {
            self.front_filled.notify_one();
        }
    }

    /// The next batch with its index, once it is complete; `None` after the last.
    fn take(&self) -> Option<(usize, Filled)> {
        let mut window = self.lock();
        loop {
            if window.stopped || window.front == self.batches.len() {
                return None;
            }
            if window.filling.front().is_some_and(|filled| filled.missing == 0) {
                let index = window.front;
                window.front += 1;
                self.room.notify_all();
                return window.filling.pop_front().map(|filled| (index, filled));
            }
            window = self.front_filled.wait(window).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Item;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn items(count: usize) -> Items {
        let item = |at| Item::file(format!("{at}.png"), at as u32);
        (0..count).map(item).collect::<Vec<_>>().into()
    }

    fn in_order(images: usize, batch_size: usize) -> Vec<Vec<usize>> {
        Order { seed: 0, epoch: 0, shuffle: false, batch_size, drop_last: false }.batches(images)
    }

    #[test]
    fn a_panicking_decoder_is_a_failed_item() {
        let load = |index| if index == 25 { panic!("hostile") } else { Ok(vec![index as u8]) };
        let loader = Loader::start(items(40), in_order(40, 8), 3, load).unwrap();
        let batches: Vec<Batch> = loader.map(Result::unwrap).collect();
        assert_eq!(batches.len(), 5);
        assert_eq!(batches[3].items, [24, 26, 27, 28, 29, 30, 31]);
        assert_eq!(batches[3].pixels, [24, 26, 27, 28, 29, 30, 31]);
        assert_eq!(batches[3].failed[0].path, Path::new("25.png"));
        assert!(batches[3].failed[0].reason.contains("panicked"));
    }

    #[test]
    fn only_a_few_batches_are_loaded_ahead() {
        let loaded = Arc::new(AtomicUsize::new(0));
        let counter = loaded.clone();
        let load = move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(vec![0])
        };
        let mut loader = Loader::start(items(1000), in_order(1000, 4), 2, load).unwrap();
        loader.next().unwrap().unwrap();
        let limit = 4 * (PREFETCH + 1);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while loaded.load(Ordering::SeqCst) < limit && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(loaded.load(Ordering::SeqCst), limit);
    }

    #[test]
    fn dropping_the_loader_ends_its_threads() {
        let alive = Arc::new(());
        let held = alive.clone();
        let load = move |_| {
            let _held = &held;
            Ok(vec![0])
        };
        let mut loader = Loader::start(items(1000), in_order(1000, 4), 4, load).unwrap();
        loader.next().unwrap().unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&alive), 1, "a thread still holds its work");
    }

    #[test]
    fn empty_batches_come_as_such() {
        let batches = vec![vec![], vec![1], vec![], vec![0], vec![]];
        let loader = Loader::start(items(2), batches.clone(), 2, |at| Ok(vec![at as u8])).unwrap();
        let taken: Vec<Vec<usize>> = loader.map(|batch| batch.unwrap().items).collect();
        assert_eq!(taken, batches);
        assert_eq!(Loader::start(items(0), vec![], 2, |_| Ok(vec![])).unwrap().count(), 0);
    }
}
