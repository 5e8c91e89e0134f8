//! `wgrad predict`: the likeliest classes of images.

use std::borrow::Cow;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use serde::Serialize;

use super::interrupt;
use super::shared::{
    ClassifierOptions, ComputeOptions, OutputOptions, Skips, check_answer, expand,
};
use crate::data::{decode, resize_center_crop};
use crate::error::{Error, Result};
use crate::train::metrics::{softmax, top_k};

/// The likeliest classes of images
#[derive(Args, Debug)]
pub struct Predict {
    /// Images, folders of images, or - for a list of both on standard input
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// How many classes to tell
    #[arg(long, value_name = "K", default_value = "5")]
    top: NonZero<usize>,

    #[command(flatten)]
    model: ClassifierOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    path: Cow<'a, str>,
    top: Vec<Guess<'a>>,
    logits: &'a [f32],
}

#[derive(Serialize)]
struct Guess<'a> {
    class: &'a str,
    index: usize,
    prob: f64,
}

impl Predict {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let interrupt = interrupt::install();
        let mut skips = Skips::new(&console);
        let images = expand(&self.images, &mut skips)?;
        let gpu = self.compute.open(&console)?;
        let network = self.model.load(&gpu, &console)?;
        let batch_size = network.images_at_a_time(&gpu, self.model.batch_size());
        for paths in images.chunks(batch_size) {
            interrupt.check()?;
            let mut pixels = Vec::new();
            let mut read = Vec::new();
            for (path, image) in paths.iter().zip(read_all(paths, network.image_size())) {
                match image {
                    Ok(image) => {
                        pixels.extend(image);
                        read.push(path);
                    }
                    Err(error) => skips.add(path, &error),
                }
            }
            if read.is_empty() {
                continue;
            }
            let logits = network.answer(&gpu, &pixels, read.len())?()?;
            for (path, logits) in read.iter().zip(logits.chunks(network.classes().len())) {
                if let Err(error) = check_answer(path, logits) {
                    skips.add(path, &error);
                    continue;
                }
                let answer = self.answer(network.classes(), path, logits);
                match console.is_json() {
                    true => console.answer_json(&answer)?,
                    false => console.answer(answer.line())?,
                }
            }
        }
        skips.into_result()
    }

    fn answer<'a>(&self, classes: &'a [String], path: &'a Path, logits: &'a [f32]) -> Answer<'a> {
        let probabilities = softmax(logits);
        let guess =
            |index: usize| Guess { class: &classes[index], index, prob: probabilities[index] };
        Answer {
            path: path.to_string_lossy(),
            top: top_k(logits, self.top.get()).into_iter().map(guess).collect(),
            logits,
        }
    }
}

impl Answer<'_> {
    fn line(&self) -> String {
        let guess = |guess: &Guess| format!("{} {:.1} %", guess.class, 100.0 * guess.prob);
        let guesses: Vec<_> = self.top.iter().map(guess).collect();
        format!("{}: {}", self.path, guesses.join(", "))
    }
}

/// Reads images on every core, each as `[size, size, 3]` bytes.
fn read_all(paths: &[PathBuf], size: u32) -> Vec<Result<Vec<u8>>> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let read = |paths: &[PathBuf]| paths.iter().map(|path| read_image(path, size)).collect();
    thread::scope(|scope| {
        let chunks = paths.chunks(paths.len().div_ceil(threads));
        let workers: Vec<_> = chunks.map(|paths| scope.spawn(move || read(paths))).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<_>>| {
            worker.join().expect("reading an image catches its panics")
        };
        workers.into_iter().flat_map(join).collect()
    })
}

fn read_image(path: &Path, size: u32) -> Result<Vec<u8>> {
    let read = || resize_center_crop(&decode(path)?, size);
    // A decoder that a damaged file crashes must not take the other images along.
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::data(path, "the file crashed its decoder")))
}
