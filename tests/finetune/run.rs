//! Small runs on images made here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;
use wgrad::checkpoint::{Checkpoint, HostTensor};

use crate::program::{Ran, Wgrad};

/// A narrow network on small images, each seen as it is.
const SMALL: [[&str; 2]; 6] = [
    ["--data", "data"],
    ["--weights", "none"],
    ["--arch", "resnet18-w8"],
    ["--image-size", "32"],
    ["--augment", "none"],
    ["--batch-size", "4"],
];

/// Writes `counts[i]` images of class `i` (a, b, …), `side` pixels wide, to a folder of class folders.
pub fn write_images(folder: &Path, counts: &[usize], side: u32) {
    for (class, &count) in (0..).zip(counts) {
        let folder = folder.join(char::from(b'a' + class).to_string());
        fs::create_dir_all(&folder).unwrap();
        for index in 0..count as u32 {
            let path = folder.join(format!("{index}.png"));
            picture(class.into(), index, side).save(path).unwrap();
        }
    }
}

/// A pattern whose tint tells the class.
fn picture(class: u32, index: u32, side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| {
        let noise = (x * (7 + index) + y * (13 + 3 * index) + x * y) % 97;
        Rgb([0, 1, 2].map(|channel| (noise + if channel == class { 120 } else { 30 }) as u8))
    })
}

impl Wgrad {
    /// An empty folder but for `data`: 10 images to train on in two classes (three steps an epoch, the
    /// last of two images) and 4 to validate with.
    pub fn with_images() -> Self {
        let wgrad = Self::new();
        write_images(&wgrad.path("data/train"), &[5, 5], 32);
        write_images(&wgrad.path("data/val"), &[2, 2], 32);
        wgrad
    }

    /// A small run that writes to the folder `name`; `options` take the place of its own.
    pub fn finetune(&self, name: &str, options: &str) -> Ran {
        self.train("finetune", name, options)
    }

    /// The same of another command.
    pub fn train(&self, command: &str, name: &str, options: &str) -> Ran {
        let options: Vec<_> = options.split_whitespace().collect();
        let own = SMALL.iter().filter(|[option, _]| !options.contains(option)).flatten();
        let own: Vec<_> = own.copied().collect();
        self.run(&[&[command, "--output-dir", name], &own[..], &options[..]].concat())
    }

    /// The lines of `steps.jsonl` of a small run that must succeed.
    pub fn steps(&self, name: &str, options: &str) -> Vec<Value> {
        self.finetune(name, options).answer();
        self.lines(&format!("{name}/steps.jsonl"))
    }

    /// The objects in a file of one a line.
    pub fn lines(&self, path: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(path)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The options of a run.
    pub fn args(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.path(name).join("args.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The latest weights of a run.
    pub fn last(&self, name: &str) -> BTreeMap<String, HostTensor> {
        Checkpoint::read(self.path(name).join("weights/last.safetensors")).unwrap().tensors
    }
}

/// A number of every step.
pub fn numbers(steps: &[Value], key: &str) -> Vec<f64> {
    steps.iter().map(|step| step[key].as_f64().unwrap()).collect()
}

/// The learning rates of every step.
pub fn rates(steps: &[Value]) -> Vec<Vec<f64>> {
    steps.iter().map(|step| serde_json::from_value(step["lr"].clone()).unwrap()).collect()
}
