//! A trained network that answers for images.

use std::path::Path;

use crate::autograd::Tape;
use crate::checkpoint::{Checkpoint, HeadPolicy};
use crate::error::{Context, Error, Result};
use crate::gpu::Gpu;
use crate::nn::{Mode, ResNet};
use crate::ops::normalize;
use crate::tensor::Shape;

/// The input of a checkpoint that does not say.
const DEFAULT_IMAGE_SIZE: u32 = 224;

/// A trained network on the device.
pub struct Predictor {
    gpu: Gpu,
    network: ResNet,
    classes: Vec<String>,
    image_size: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Predictor {
    /// Loads the checkpoint at `path`. Its input is of `image_size` pixels, else of the size it says,
    /// else 224. Classes without a name are called by their index.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read`]; [`Error::Checkpoint`] if there is no classifier or the weights
    /// are not finite; what the device reported.
    pub fn load(gpu: &Gpu, path: &Path, image_size: Option<u32>) -> Result<Self> {
        Self::try_load(gpu, path, image_size).context(|| "loading the network")
    }

    fn try_load(gpu: &Gpu, path: &Path, image_size: Option<u32>) -> Result<Self> {
        let checkpoint = Checkpoint::read(path)?;
        let Some(outputs) = checkpoint.num_classes() else {
            return Err(Error::checkpoint(
                path,
                "has no classifier (fc); give it one with `wgrad finetune --weights`",
            ));
        };
        if let Some(tensor) = checkpoint.non_finite().first() {
            let what = format!("holds values that are not finite: {tensor}; choose other weights");
            return Err(Error::checkpoint(path, what));
        }
        let meta = &checkpoint.meta;
        let numbered = || (0..outputs).map(|index| index.to_string()).collect();
        let classes: Vec<String> = meta.classes.clone().unwrap_or_else(numbered);
        let network = ResNet::new(gpu, checkpoint.arch, outputs, 0)?;
        let (tensors, _) = checkpoint.fit(&checkpoint.arch, &classes, HeadPolicy::Keep)?;
        network.load(gpu, &tensors)?;
        Ok(Self {
            gpu: gpu.clone(),
            network,
            image_size: image_size.or(meta.image_size).unwrap_or(DEFAULT_IMAGE_SIZE),
            mean: meta.mean,
            std: meta.std,
            classes,
        })
    }

    /// The network.
    pub fn network(&self) -> &ResNet {
        &self.network
    }

    /// The name of each output.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Side of the square input in pixels.
    pub fn image_size(&self) -> u32 {
        self.image_size
    }

    /// The logits (`n` × classes) of `pixels`, `[n, size, size, 3]` bytes. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer pixels than that, what the device reported otherwise.
    pub fn logits(&self, pixels: &[u8], n: usize) -> Result<Vec<f32>> {
        let size = self.image_size as usize;
        let shape = Shape::new(n, size, size, 3);
        // The device writes whole words.
        let mut bytes = pixels.to_vec();
        bytes.resize(pixels.len().next_multiple_of(4), 0);
        let memory = self.gpu.lease(bytes.len() as u64);
        self.gpu.upload(&memory, &bytes)?;
        let images = normalize(&self.gpu, &memory, shape, self.mean, self.std)?;
        let tape = Tape::no_grad(&self.gpu);
        let logits = self.network.forward(&tape, &tape.constant(images), Mode::EVAL)?;
        logits.value().download(&self.gpu)
    }
}
