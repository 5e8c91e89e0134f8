//! From a [`Checkpoint`] to an ONNX file, for programs that run networks and know nothing of wgrad.
//!
//! The graph is the network in evaluation, operation by operation under torchvision's names, so that
//! it can be read beside the checkpoint: batch norm is not folded into the convolutions, which runtimes
//! do by themselves. Its input is what the network sees, normalised images `(batch, 3, height, width)`
//! of any size that the network takes; what an image must go through before is in the metadata, under
//! the keys of the safetensors files.

mod builder;
mod proto;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use prost::Message;

use super::{Checkpoint, write_atomically};
use crate::error::{Error, Result};

use builder::FEATURES;
pub(crate) use builder::{Builder, INPUT, LOGITS, int};
pub use proto::{
    Attribute, Graph, Model, Node, OperatorSet, Property, Size, Sizes, Tensor, TensorType, Type,
    Value,
};

/// ONNX's format as of version 1.12, and the operators of the same.
const IR_VERSION: i64 = 8;
const OPERATORS: i64 = 17;

impl Checkpoint {
    /// Writes an ONNX file, atomically: an error leaves what was at `path` untouched. Numbers are f32.
    ///
    /// The output is `logits` `(batch, classes)`, or `features` where there is no classifier.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a tensor is missing or metadata cannot be written; [`Error::Io`] when
    /// the file cannot be.
    pub fn write_onnx(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (graph, metadata) = self.onnx().map_err(|what| Error::checkpoint(path, what))?;
        write(path, graph, metadata)
    }

    /// The network as a graph and what is known about it, or what keeps it from being one.
    fn onnx(&self) -> std::result::Result<(Graph, BTreeMap<String, String>), String> {
        self.check_classes()?;
        let mut graph = Builder::default();
        let (_, size) = graph.network(self, INPUT)?;
        let answer = if self.num_classes().is_some() { LOGITS } else { FEATURES };
        Ok((graph.finish(self.arch.to_string(), answer, size), self.meta.strings(&self.arch)?))
    }
}

/// Writes a graph to an ONNX file, atomically, with what is known about it.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write(path: &Path, graph: Graph, metadata: BTreeMap<String, String>) -> Result<()> {
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: "wgrad".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPERATORS }],
        metadata_props: metadata.into_iter().map(|(key, value)| Property { key, value }).collect(),
    };
    write_atomically(path, |file| file.write_all(&model.encode_to_vec()))
}
