//! `wgrad export`: a checkpoint as other programs want it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::shared::{OutputOptions, trained};
use crate::checkpoint::{Checkpoint, Dtype, Source};
use crate::error::{Context, Error, Result};
use crate::fuse::{Ensemble, export_ensemble};
use crate::train::RunDir;

/// A checkpoint as an ONNX file, or as safetensors with torchvision's names
///
/// An ONNX file takes normalised images (batch, 3, height, width) under the name `input`, and answers
/// with `logits`; classes, image size, mean and std stand in its metadata. For answers as `wgrad predict`'s,
/// make an image's shorter side image size · 256 / 224 pixels first, rounded, and cut out the middle. An
/// ensemble becomes one such file that answers with the logarithms of the joint probabilities.
#[derive(Args, Debug)]
pub struct Export {
    /// The file to write: FILE.onnx, or FILE.safetensors for torchvision
    file: PathBuf,

    /// The network, an ensemble.json that `wgrad fuse ensemble` wrote, or a run's folder for its best
    /// [default: the newest runs/*/weights/best.safetensors]
    #[arg(long, value_name = "FILE|RUN|bundled|imagenet|hf:REPO[/FILE]")]
    weights: Option<Source>,

    /// How convolutions and the classifier's weight are stored in safetensors; ONNX files are in f32
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: Dtype,

    #[command(flatten)]
    output: OutputOptions,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let format = self.file.extension().and_then(|extension| extension.to_str());
        let onnx = match format {
            Some("onnx") => true,
            Some("safetensors") => false,
            _ => {
                let file = self.file.display();
                let what = format!("{file}: the name must end in .onnx or .safetensors");
                return Err(Error::Usage(what));
            }
        };
        if onnx && self.dtype != Dtype::F32 {
            return Err(Error::Usage(format!(
                "--dtype {}: ONNX files are written in f32",
                self.dtype
            )));
        }
        let path = trained(self.weights.as_ref(), &console)?;
        // Elsewhere FILE is what is read, and who mistakes this for that loses no weights.
        if is_precious(&self.file, &path) {
            let what =
                "holds trained weights; export writes FILE and reads --weights, name another FILE";
            return Err(Error::Usage(format!("{} {what}", self.file.display())));
        }
        let exporting = || format!("exporting {}", path.display());
        let arch = match (Ensemble::is_manifest(&path), onnx) {
            (true, true) => export_ensemble(&path, &self.file).context(exporting)?,
            (true, false) => {
                let what = "an ensemble is several networks; export it as .onnx";
                return Err(Error::Usage(format!("{}: {what}", path.display())));
            }
            (false, _) => {
                let checkpoint = Checkpoint::read(&path).context(|| "reading the checkpoint")?;
                let written = match onnx {
                    true => checkpoint.write_onnx(&self.file),
                    false => checkpoint.write(&self.file, self.dtype),
                };
                written.context(exporting)?;
                checkpoint.arch.to_string()
            }
        };
        console.event(&serde_json::json!({
            "event": "export",
            "arch": arch,
            "from": path,
            "to": self.file,
        }));
        console.note(format_args!(
            "{arch}, from {}, written to {}",
            path.display(),
            self.file.display()
        ));
        Ok(())
    }
}

/// Whether a file to write is the one to be read, or one of a run's.
fn is_precious(file: &Path, source: &Path) -> bool {
    let Ok(file) = file.canonicalize() else { return false };
    let run = file.parent().and_then(Path::parent);
    source.canonicalize().is_ok_and(|source| source == file) || run.is_some_and(RunDir::is_at)
}
