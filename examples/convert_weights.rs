//! Converts a ResNet checkpoint of any layout that wgrad reads into wgrad's own: torchvision's
//! names, half precision, class names and preprocessing in the header.
//!
//!     cargo run --release --example convert_weights -- model.safetensors resnet18.safetensors \
//!         --classes classes.tsv --image-size 64 --provenance "trained by me"

use std::path::{Path, PathBuf};

use clap::Parser;
use wgrad::checkpoint::{Checkpoint, Dtype};
use wgrad::{Error, Result};

#[derive(Parser)]
#[command(about = "Converts a ResNet checkpoint to torchvision's names, with metadata")]
struct Options {
    /// The safetensors file to read
    input: PathBuf,
    /// The safetensors file to write
    output: PathBuf,
    /// Keep single precision (default: f16, vectors in f32)
    #[arg(long)]
    f32: bool,
    /// A line for each output: its name, or an identifier, a tab and its name
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Side of the square input in pixels
    #[arg(long, value_name = "N")]
    image_size: Option<u32>,
    /// Where the weights come from: text, or JSON
    #[arg(long, value_name = "TEXT")]
    provenance: Option<String>,
}

fn main() {
    if let Err(error) = convert(&Options::parse()) {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    }
}

fn convert(options: &Options) -> Result<()> {
    let mut checkpoint = Checkpoint::read(&options.input)?;
    if let Some(file) = &options.classes {
        let (ids, names) = read_classes(file)?;
        checkpoint.meta.classes = Some(names);
        checkpoint.meta.set_class_ids(&ids);
    }
    if options.image_size.is_some() {
        checkpoint.meta.image_size = options.image_size;
    }
    if let Some(text) = &options.provenance {
        let json = serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into());
        checkpoint.meta.provenance = Some(json);
    }
    checkpoint.write(&options.output, if options.f32 { Dtype::F32 } else { Dtype::F16 })?;
    println!("{} is a {}; `wgrad inspect` shows it", options.output.display(), checkpoint.arch);
    Ok(())
}

/// Identifiers (none, or one a class) and names.
fn read_classes(file: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
    let mut ids = Vec::new();
    let mut names = Vec::new();
    for line in text.lines() {
        match line.split_once('\t') {
            Some((id, name)) => {
                ids.push(id.to_owned());
                names.push(name.to_owned());
            }
            None => names.push(line.to_owned()),
        }
    }
    Ok((ids, names))
}
