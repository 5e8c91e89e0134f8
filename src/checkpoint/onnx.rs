//! From a [`Checkpoint`] to an ONNX file, for programs that run networks and know nothing of wgrad.
//!
//! The graph is the network in evaluation, operation by operation under torchvision's names, so that
//! it can be read beside the checkpoint: batch norm is not folded into the convolutions, which runtimes
//! do by themselves. Its input is what the network sees, normalised images `(batch, 3, height, width)`
//! of any size that the network takes; what an image must go through before is in the metadata, under
//! the keys of the safetensors files.

use std::io::Write;
use std::path::Path;

use prost::Message;

use super::{Checkpoint, HostTensor, write_atomically};
use crate::error::{Error, Result};
use crate::nn::BN_EPSILON;
use crate::nn::arch::ConvNorm;

/// ONNX's format as of version 1.12, and the operators of the same.
const IR_VERSION: i64 = 8;
const OPERATORS: i64 = 17;

/// Of attributes and tensors, as ONNX numbers them.
mod kind {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

/// A file: `ModelProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    /// Version of the format.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// `wgrad`.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// The network.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    /// Versions of the operators.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    /// Classes, preprocessing, origin.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Property>,
}

/// `OperatorSetIdProto`.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    /// Empty for ONNX's own.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Their version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// `StringStringEntryProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Property {
    /// As in a safetensors file.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The same.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `GraphProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    /// The operations, in an order in which they can be done.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    /// The network's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The weights.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    /// The images.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    /// The logits.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
}

/// `NodeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// What it reads.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// What it writes.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Torchvision's name of the layer.
    #[prost(string, tag = "3")]
    pub name: String,
    /// `Conv`, `Relu`, …
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Strides, pads, …
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

/// `AttributeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A float's value.
    #[prost(float, tag = "2")]
    pub f: f32,
    /// An integer's.
    #[prost(int64, tag = "3")]
    pub i: i64,
    /// That of several integers.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// Which of these it has.
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    /// Sizes.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// 1: f32.
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Torchvision's name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Numbers, little-endian.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

/// `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// `input` or `logits`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type and sizes.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Type {
    /// Every value is a tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    /// 1: f32.
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Its sizes.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Sizes>,
}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Sizes {
    /// From the outermost.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Size>,
}

/// `TensorShapeProto.Dimension`.
#[derive(Clone, PartialEq, Message)]
pub struct Size {
    /// A size that is fixed; 0 if it is not.
    #[prost(int64, tag = "1")]
    pub dim_value: i64,
    /// The name of one that is not.
    #[prost(string, tag = "2")]
    pub dim_param: String,
}

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
        let model = self.onnx().map_err(|what| Error::checkpoint(path, what))?;
        write_atomically(path, |file| file.write_all(&model.encode_to_vec()))
    }

    /// The network as an ONNX model, or what keeps it from being one.
    fn onnx(&self) -> std::result::Result<Model, String> {
        self.check_classes()?;
        let metadata = self.meta.strings(&self.arch)?.into_iter();
        Ok(Model {
            ir_version: IR_VERSION,
            producer_name: "wgrad".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph()?),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPERATORS }],
            metadata_props: metadata.map(|(key, value)| Property { key, value }).collect(),
        })
    }

    fn graph(&self) -> std::result::Result<Graph, String> {
        let mut graph = Builder { checkpoint: self, nodes: Vec::new(), weights: Vec::new() };
        let stem = graph.conv_norm("input", &self.arch.stem())?;
        let stem = graph.add("relu", "Relu", &[&stem], []);
        let window = [ints("kernel_shape", [3; 2]), ints("strides", [2; 2]), ints("pads", [1; 4])];
        let mut x = graph.add("maxpool", "MaxPool", &[&stem], window);
        for block in self.arch.blocks() {
            let mut y = x.clone();
            for (number, conv) in block.convs.iter().enumerate() {
                if number > 0 {
                    y = graph.add(&format!("{}.relu{number}", block.name), "Relu", &[&y], []);
                }
                y = graph.conv_norm(&y, conv)?;
            }
            let shortcut = match &block.downsample {
                Some(conv) => graph.conv_norm(&x, conv)?,
                None => x,
            };
            let sum = graph.add(&format!("{}.add", block.name), "Add", &[&y, &shortcut], []);
            x = graph.add(&format!("{}.relu", block.name), "Relu", &[&sum], []);
        }
        let x = graph.add("avgpool", "GlobalAveragePool", &[&x], []);
        let features = graph.add("flatten", "Flatten", &[&x], [int("axis", 1)]);
        let (output, size) = match self.num_classes() {
            Some(classes) => {
                graph.weight("fc.weight")?;
                graph.weight("fc.bias")?;
                let inputs = [features.as_str(), "fc.weight", "fc.bias"];
                graph.add("fc", "Gemm", &inputs, [int("transB", 1)]);
                ("logits", classes)
            }
            None => ("features", self.arch.features()),
        };
        let Builder { mut nodes, weights, .. } = graph;
        if let Some(last) = nodes.last_mut() {
            last.output = vec![output.into()];
        }
        Ok(Graph {
            node: nodes,
            name: self.arch.to_string(),
            initializer: weights,
            input: vec![value(
                "input",
                [named("batch"), fixed(3), named("height"), named("width")],
            )],
            output: vec![value(output, [named("batch"), fixed(size)])],
        })
    }
}

/// A graph as it grows.
struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    nodes: Vec<Node>,
    weights: Vec<Tensor>,
}

impl Builder<'_> {
    /// Adds a node, and returns the name of its output.
    fn add<const N: usize>(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: &[&str],
        attribute: [Attribute; N],
    ) -> String {
        let output = format!("{name}.output");
        self.nodes.push(Node {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.clone()],
            name: name.into(),
            op_type: op_type.into(),
            attribute: attribute.into(),
        });
        output
    }

    /// Adds a convolution and its batch norm.
    fn conv_norm(&mut self, x: &str, layer: &ConvNorm) -> std::result::Result<String, String> {
        let ConvNorm { conv, norm, kernel, stride, padding, .. } = layer;
        let attributes = [
            ints("kernel_shape", [*kernel; 2]),
            ints("strides", [*stride; 2]),
            ints("pads", [*padding; 4]),
        ];
        let weight = self.weight(&format!("{conv}.weight"))?;
        let y = self.add(conv, "Conv", &[x, &weight], attributes);
        let mut inputs = vec![y];
        for leaf in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(self.weight(&format!("{norm}.{leaf}"))?);
        }
        let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
        let epsilon = Attribute { f: BN_EPSILON, ..attribute("epsilon", kind::FLOAT) };
        Ok(self.add(norm, "BatchNormalization", &inputs, [epsilon]))
    }

    /// Adds a tensor of the checkpoint, and returns its name.
    fn weight(&mut self, name: &str) -> std::result::Result<String, String> {
        let tensor = self.checkpoint.tensors.get(name);
        let (Some(HostTensor { shape, .. }), Some(numbers)) =
            (tensor, tensor.and_then(HostTensor::as_f32))
        else {
            return Err(format!("cannot be written: {name} is missing"));
        };
        self.weights.push(Tensor {
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: kind::FLOAT,
            name: name.into(),
            raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        });
        Ok(name.into())
    }
}

fn attribute(name: &str, r#type: i32) -> Attribute {
    Attribute { name: name.into(), r#type, ..Default::default() }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute { i, ..attribute(name, kind::INT) }
}

fn ints<const N: usize>(name: &str, values: [usize; N]) -> Attribute {
    let ints = values.map(|value| value as i64).into();
    Attribute { ints, ..attribute(name, kind::INTS) }
}

fn named(name: &str) -> Size {
    Size { dim_param: name.into(), ..Default::default() }
}

fn fixed(size: usize) -> Size {
    Size { dim_value: size as i64, ..Default::default() }
}

fn value<const N: usize>(name: &str, sizes: [Size; N]) -> Value {
    let shape = Some(Sizes { dim: sizes.into() });
    let tensor_type = Some(TensorType { elem_type: kind::FLOAT, shape });
    Value { name: name.into(), r#type: Some(Type { tensor_type }) }
}
