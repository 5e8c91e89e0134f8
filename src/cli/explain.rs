//! `wgrad explain`: where in an image the network sees its likeliest classes.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use image::RgbImage;
use serde::Serialize;

use super::interrupt;
use super::shared::{ComputeOptions, NetworkOptions, OutputOptions, Skips, check_answer, expand};
use crate::data::{decode, resize_center_crop, seen};
use crate::error::{Context, Error, Result};
use crate::gpu::Gpu;
use crate::metrics::{softmax, top_k};
use crate::nn::Stage;
use crate::report::{for_people, heated_part, write_png};
use crate::train::{Activations, Network, layer_for};

/// Where in images the network sees their likeliest classes: Grad-CAM heat maps
///
/// A picture is the whole image, resized where its longer side is not of 224 to 1024 pixels, with heat
/// over the part that the network sees, which is the middle. The darker that part, the less it speaks for
/// the class; what is not darkened the network does not see.
#[derive(Args, Debug)]
pub struct Explain {
    /// Images, folders of images, or - for a list of both on standard input
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// How many classes to explain
    #[arg(long, value_name = "K", default_value = "3")]
    top: NonZero<usize>,

    /// The layer whose output is looked at [default: the deepest that is at least 4 pixels a side]
    #[arg(long, value_enum)]
    layer: Option<Layer>,

    /// The folder to write the pictures to
    #[arg(long, value_name = "DIR", default_value = "explained")]
    output_dir: PathBuf,

    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    compute: ComputeOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// What `--layer` takes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Layer {
    Layer1,
    Layer2,
    Layer3,
    Layer4,
}

impl Layer {
    fn stage(self) -> Stage {
        match self {
            Self::Layer1 => Stage::Layer1,
            Self::Layer2 => Stage::Layer2,
            Self::Layer3 => Stage::Layer3,
            Self::Layer4 => Stage::Layer4,
        }
    }
}

/// A line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    path: String,
    layer: &'static str,
    top: Vec<Explained<'a>>,
}

#[derive(Serialize)]
struct Explained<'a> {
    class: &'a str,
    index: usize,
    prob: f64,
    /// The picture.
    picture: String,
    /// Heat over the layer's pixels, row by row, the hottest being 1.
    heat: Vec<Vec<f32>>,
}

impl Explain {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let interrupt = interrupt::install();
        let mut skips = Skips::new(&console);
        let images = expand(&self.images, &mut skips)?;
        let gpu = self.compute.open(&console)?;
        let network = self.network.load(&gpu, &console)?;
        let layer = self.layer.map_or_else(|| layer_for(network.image_size), Layer::stage);
        fs::create_dir_all(&self.output_dir)
            .map_err(Error::io(&self.output_dir))
            .context(|| "making the output folder")?;
        for path in &images {
            interrupt.check()?;
            let read = || {
                let image = decode(path)?;
                let pixels = resize_center_crop(&image, network.image_size)?;
                Ok((image, pixels))
            };
            let (image, pixels) = match read() {
                Ok(read) => read,
                Err(error) => {
                    skips.add(path, &error);
                    continue;
                }
            };
            let answer = self.explain(&gpu, &network, layer, path, &image, &pixels)?;
            match console.is_json() {
                true => console.answer_json(&answer)?,
                false => console.answer(answer.lines())?,
            }
        }
        skips.into_result()
    }

    fn explain<'a>(
        &self,
        gpu: &Gpu,
        network: &'a Network,
        layer: Stage,
        path: &Path,
        image: &RgbImage,
        pixels: &[u8],
    ) -> Result<Answer<'a>> {
        let logits = network.evaluate(gpu, pixels, 1)?.wait()?;
        check_answer(path, &logits)?;
        let probabilities = softmax(&logits);
        let seen = seen(image.width(), image.height(), network.image_size);
        let shown = for_people(image);
        let activations = Activations::new(gpu, network, pixels, 1, layer)?;
        let mut top = Vec::new();
        let classes = top_k(&logits, self.top.get());
        let maps = activations.heat_of_all(&classes)?;
        for (index, map) in classes.into_iter().zip(maps) {
            let heat = map.normalised();
            let picture = self.free_name(path, top.len() + 1, &network.classes[index]);
            write_png(&picture, &heated_part(&shown, seen, &heat, map.width))?;
            top.push(Explained {
                class: &network.classes[index],
                index,
                prob: probabilities[index],
                picture: picture.to_string_lossy().into_owned(),
                heat: heat.chunks(map.width).map(<[f32]>::to_vec).collect(),
            });
        }
        Ok(Answer { path: path.to_string_lossy().into_owned(), layer: layer.name(), top })
    }

    /// A file name that tells image, rank and class, and that is not taken: two images may be called
    /// alike.
    fn free_name(&self, image: &Path, rank: usize, class: &str) -> PathBuf {
        let stem = image.file_stem().unwrap_or(image.as_os_str()).to_string_lossy();
        let safe = |text: &str| -> String {
            let keep = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
            text.chars().map(keep).take(60).collect()
        };
        let name = format!("{}-{rank}-{}", safe(&stem), safe(class));
        let numbered = (2..).map(|number| format!("{name}-{number}.png"));
        let mut names = std::iter::once(format!("{name}.png")).chain(numbered);
        let free = names.find(|name| !self.output_dir.join(name).exists());
        self.output_dir.join(free.unwrap_or(name))
    }
}

impl Answer<'_> {
    fn lines(&self) -> String {
        let line =
            |it: &Explained| format!("  {} {:.1} %: {}", it.class, 100.0 * it.prob, it.picture);
        let lines: Vec<_> = self.top.iter().map(line).collect();
        format!("{} (heat of {})\n{}", self.path, self.layer, lines.join("\n"))
    }
}
