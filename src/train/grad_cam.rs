//! Where in an image a network sees a class: Grad-CAM (Selvaraju et al., 2017).
//!
//! With the output A of a layer, of H·W pixels and channels k, and the logit y of a class:
//!
//! αₖ = Σ ∂y/∂A[h,w,k] / (H·W), heat[h,w] = max(0, Σₖ αₖ·A[h,w,k]).
//!
//! The gradient is the autograd graph's: A is a leaf, and the rest of the network runs on it.

use super::network::Network;
use crate::Tape;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::nn::{Mode, Stage};
use crate::tensor::{Shape, Tensor};

/// A layer whose output has fewer pixels a side than this shows little.
const LEAST_SIDE: u32 = 4;

/// The deepest layer whose output is at least 4 pixels a side for images of `size` pixels; layer1 if
/// there is none.
pub fn layer_for(size: u32) -> Stage {
    let layers = [Stage::Layer4, Stage::Layer3, Stage::Layer2];
    let strides = [32, 16, 8];
    let mut found = layers.into_iter().zip(strides);
    found.find(|(_, stride)| size.div_ceil(*stride) >= LEAST_SIDE).map_or(Stage::Layer1, |it| it.0)
}

/// What a layer makes of images.
pub struct Activations<'a> {
    gpu: &'a Gpu,
    network: &'a Network,
    layer: Stage,
    output: Tensor,
    values: Vec<f32>,
}

/// Heat over the pixels of a layer's output.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Pixels a row.
    pub width: usize,
    /// Row by row, 0 or more.
    pub values: Vec<f32>,
}

impl HeatMap {
    /// From 0 to 1, the hottest pixel being 1; all 0 where nothing is hot.
    pub fn normalised(&self) -> Vec<f32> {
        let hottest = self.values.iter().copied().fold(0.0, f32::max);
        let share = |value: &f32| if hottest > 0.0 { value / hottest } else { 0.0 };
        self.values.iter().map(share).collect()
    }
}

impl<'a> Activations<'a> {
    /// Of `count` images given as bytes, in evaluation, after `layer`.
    ///
    /// # Errors
    /// What the device reported.
    pub fn new(
        gpu: &'a Gpu,
        network: &'a Network,
        pixels: &[u8],
        count: usize,
        layer: Stage,
    ) -> Result<Self> {
        let pixels = network.upload(gpu, pixels)?;
        let tape = Tape::no_grad(gpu);
        let input = network.input(&tape, &pixels, count)?;
        let output = network.net.forward_between(&tape, &input, Stage::Stem, layer, Mode::EVAL)?;
        let output = output.value().clone();
        let values = output.download(gpu)?;
        Ok(Self { gpu, network, layer, output, values })
    }

    /// The gradient of a logit by the layer's output, for a class of each image; in NHWC order.
    ///
    /// # Errors
    /// What the device reported.
    ///
    /// # Panics
    /// If there is not a class for each image, or no such class.
    pub fn gradients(&self, classes: &[usize]) -> Result<Vec<f32>> {
        let Shape { n, .. } = self.output.shape();
        assert_eq!(classes.len(), n, "a class for each image");
        let outputs = self.network.classes.len();
        let mut of_logits = vec![0.0; n * outputs];
        for (image, &class) in classes.iter().enumerate() {
            of_logits[image * outputs + class] = 1.0;
        }
        let tape = Tape::new(self.gpu);
        let leaf = tape.leaf(self.output.clone());
        let next = Stage::ALL[self.layer as usize + 1];
        let net = &self.network.net;
        let logits = net.forward_between(&tape, &leaf, next, Stage::Head, Mode::EVAL)?;
        let seed = Tensor::from_host(self.gpu, Shape::matrix(n, outputs), &of_logits)?;
        let gradient = tape.backward(&logits, seed)?.take(&leaf);
        gradient.map_or_else(|| Ok(vec![0.0; self.values.len()]), |found| found.download(self.gpu))
    }

    /// The heat of each of several classes of the one image there is.
    ///
    /// # Errors
    /// Those of [`Activations::gradients`].
    pub fn heat_of_all(&self, classes: &[usize]) -> Result<Vec<HeatMap>> {
        const AT_A_TIME: usize = 16;
        let mut maps = Vec::with_capacity(classes.len());
        for classes in classes.chunks(AT_A_TIME) {
            let shape = Shape { n: classes.len(), ..self.output.shape() };
            let values = self.values.repeat(classes.len());
            let output = Tensor::from_host_as(self.gpu, shape, &values, self.output.dtype())?;
            maps.extend(Self { output, values, ..*self }.heat(classes)?);
        }
        Ok(maps)
    }

    /// The heat of a class of each image.
    ///
    /// # Errors
    /// Those of [`Activations::gradients`].
    pub fn heat(&self, classes: &[usize]) -> Result<Vec<HeatMap>> {
        let Shape { h, w, c, .. } = self.output.shape();
        let gradients = self.gradients(classes)?;
        let images = self.values.chunks_exact(h * w * c).zip(gradients.chunks_exact(h * w * c));
        let map = |(activations, gradients): (&[f32], &[f32])| {
            let mut alpha = vec![0.0; c];
            for pixel in gradients.chunks_exact(c) {
                alpha.iter_mut().zip(pixel).for_each(|(sum, d)| *sum += d / (h * w) as f32);
            }
            let heat = |pixel: &[f32]| -> f32 {
                pixel.iter().zip(&alpha).map(|(a, alpha)| a * alpha).sum::<f32>().max(0.0)
            };
            HeatMap { width: w, values: activations.chunks_exact(c).map(heat).collect() }
        };
        Ok(images.map(map).collect())
    }
}
