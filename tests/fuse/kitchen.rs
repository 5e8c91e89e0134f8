//! Small networks and images to fuse.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use wgrad::checkpoint::{Checkpoint, HostTensor};

use crate::program::{Ran, Wgrad};

/// Options of every run here.
const IMAGES: [&str; 4] = ["--data", "data", "--image-size", "32"];

/// Writes images of the classes a and b, told apart by their tint.
pub fn write_images(folder: &Path, count: u32) {
    for class in 0..2 {
        let folder = folder.join(["a", "b"][class]);
        fs::create_dir_all(&folder).unwrap();
        for index in 0..count {
            let picture = RgbImage::from_fn(32, 32, |x, y| {
                let noise = (x * (7 + index) + y * (13 + 3 * index) + x * y) % 97;
                Rgb([0, 1, 2].map(|channel| {
                    (noise + if channel == class { 60 } else { 40 } + 5 * index) as u8
                }))
            });
            picture.save(folder.join(format!("{index}.png"))).unwrap();
        }
    }
}

impl Wgrad {
    /// A folder with `data` and `base`, a narrow network that has seen it for an epoch.
    pub fn with_base() -> Self {
        let wgrad = Self::new();
        write_images(&wgrad.path("data/train"), 9);
        write_images(&wgrad.path("data/val"), 6);
        wgrad.train(
            "pretrain --lr 0.01 --label-smoothing 0 --arch resnet18-w8 --freeze-epochs 0",
            "base",
        );
        wgrad
    }

    /// Fine-tunes `base`.
    pub fn child(&self, name: &str, options: &str) -> String {
        let options =
            format!("finetune --weights base/weights/best.safetensors --freeze-epochs 0 {options}");
        self.train(&options, name)
    }

    /// Trains with these options; returns the weights' file.
    pub fn train(&self, options: &str, name: &str) -> String {
        let options: Vec<_> = options.split_whitespace().collect();
        let own = ["--output-dir", name, "-q"];
        let epochs: &[&str] = if options.contains(&"--epochs") { &[] } else { &["--epochs", "1"] };
        // The 18 images make whole batches: one of two would leave the outcome to chance.
        let batches: &[&str] =
            if options.contains(&"--batch-size") { &[] } else { &["--batch-size", "6"] };
        self.run(&[&options, &own[..], epochs, batches, &IMAGES].concat()).answer();
        format!("{name}/weights/best.safetensors")
    }

    /// Runs `wgrad fuse` into the folder `out`.
    pub fn fuse(&self, arguments: &[&str]) -> Ran {
        let options = &["--output-dir", "out", "--json", "--batch-size", "8"];
        self.run(&[&["fuse"], arguments, options, &IMAGES].concat())
    }

    /// The network that [`Wgrad::fuse`] wrote; the folder is gone afterwards.
    pub fn fused(&self, arguments: &[&str]) -> Checkpoint {
        self.fuse(arguments).answer();
        let checkpoint = self.read("out/weights/fused.safetensors");
        fs::remove_dir_all(self.path("out")).unwrap();
        checkpoint
    }

    pub fn read(&self, name: &str) -> Checkpoint {
        Checkpoint::read(self.path(name)).unwrap()
    }

    /// Writes a checkpoint changed by `change` under another name.
    pub fn alter(&self, from: &str, to: &str, change: impl FnOnce(&mut Checkpoint)) -> String {
        let mut checkpoint = self.read(from);
        change(&mut checkpoint);
        checkpoint.write(self.path(to), wgrad::checkpoint::Dtype::F32).unwrap();
        to.to_owned()
    }
}

/// The bits of every tensor.
pub fn bits(checkpoint: &Checkpoint) -> Vec<(String, Vec<u64>)> {
    use wgrad::checkpoint::HostData::{F32, I64};
    let of = |tensor: &HostTensor| match &tensor.data {
        F32(data) => data.iter().map(|value| value.to_bits().into()).collect(),
        I64(data) => data.iter().map(|value| value.cast_unsigned()).collect(),
    };
    checkpoint.tensors.iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
}
