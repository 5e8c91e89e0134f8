//! A graph as it grows, node by node.

use super::proto::{Attribute, Graph, Node, Size, Sizes, Tensor, TensorType, Type, Value, kind};
use crate::checkpoint::{Checkpoint, HostTensor};
use crate::nn::BN_EPSILON;
use crate::nn::arch::ConvNorm;

/// Name of the images.
pub const INPUT: &str = "input";
/// Name of a network's answer.
pub const LOGITS: &str = "logits";
/// The same where there is no classifier.
pub const FEATURES: &str = "features";

/// What has been added so far. What a network adds bears torchvision's names, after a prefix of its own
/// where there are several.
#[derive(Default)]
pub struct Builder {
    prefix: String,
    nodes: Vec<Node>,
    weights: Vec<Tensor>,
}

impl Builder {
    /// Begins the names of what is added with this.
    pub fn set_prefix(&mut self, prefix: impl Into<String>) {
        self.prefix = prefix.into();
    }

    /// Adds a network in evaluation that sees `images`, and returns the name and the size of its answer:
    /// logits, or features where there is no classifier.
    ///
    /// # Errors
    /// What the checkpoint lacks.
    pub fn network(
        &mut self,
        checkpoint: &Checkpoint,
        images: &str,
    ) -> Result<(String, usize), String> {
        let stem = self.conv_norm(checkpoint, images, &checkpoint.arch.stem())?;
        let stem = self.add("relu", "Relu", &[&stem], []);
        let window = [ints("kernel_shape", [3; 2]), ints("strides", [2; 2]), ints("pads", [1; 4])];
        let mut x = self.add("maxpool", "MaxPool", &[&stem], window);
        for block in checkpoint.arch.blocks() {
            let mut y = x.clone();
            for (number, conv) in block.convs.iter().enumerate() {
                if number > 0 {
                    y = self.add(&format!("{}.relu{number}", block.name), "Relu", &[&y], []);
                }
                y = self.conv_norm(checkpoint, &y, conv)?;
            }
            let shortcut = match &block.downsample {
                Some(conv) => self.conv_norm(checkpoint, &x, conv)?,
                None => x,
            };
            let sum = self.add(&format!("{}.add", block.name), "Add", &[&y, &shortcut], []);
            x = self.add(&format!("{}.relu", block.name), "Relu", &[&sum], []);
        }
        let x = self.add("avgpool", "GlobalAveragePool", &[&x], []);
        let features = self.add("flatten", "Flatten", &[&x], [int("axis", 1)]);
        let Some(classes) = checkpoint.num_classes() else {
            return Ok((features, checkpoint.arch.features()));
        };
        let weight = self.weight(checkpoint, "fc.weight")?;
        let bias = self.weight(checkpoint, "fc.bias")?;
        let logits = self.add("fc", "Gemm", &[&features, &weight, &bias], [int("transB", 1)]);
        Ok((logits, classes))
    }

    fn conv_norm(
        &mut self,
        checkpoint: &Checkpoint,
        x: &str,
        layer: &ConvNorm,
    ) -> Result<String, String> {
        let ConvNorm { conv, norm, kernel, stride, padding, .. } = layer;
        let attributes = [
            ints("kernel_shape", [*kernel; 2]),
            ints("strides", [*stride; 2]),
            ints("pads", [*padding; 4]),
        ];
        let weight = self.weight(checkpoint, &format!("{conv}.weight"))?;
        let y = self.add(conv, "Conv", &[x, &weight], attributes);
        let mut inputs = vec![y];
        for leaf in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(self.weight(checkpoint, &format!("{norm}.{leaf}"))?);
        }
        let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
        let epsilon = Attribute { f: BN_EPSILON, ..attribute("epsilon", kind::FLOAT) };
        Ok(self.add(norm, "BatchNormalization", &inputs, [epsilon]))
    }

    /// Adds a node, and returns the name of its output.
    pub fn add<const N: usize>(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: &[&str],
        attribute: [Attribute; N],
    ) -> String {
        let name = format!("{}{name}", self.prefix);
        let output = format!("{name}.output");
        self.nodes.push(Node {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.clone()],
            name,
            op_type: op_type.into(),
            attribute: attribute.into(),
        });
        output
    }

    /// Adds a tensor of a checkpoint, and returns its name.
    fn weight(&mut self, checkpoint: &Checkpoint, name: &str) -> Result<String, String> {
        let tensor = checkpoint.tensors.get(name);
        let (Some(HostTensor { shape, .. }), Some(numbers)) =
            (tensor, tensor.and_then(HostTensor::as_f32))
        else {
            return Err(format!("cannot be written: {name} is missing"));
        };
        Ok(self.constant(name, shape, numbers))
    }

    /// Adds numbers that stay as they are, and returns their name.
    pub fn constant(&mut self, name: &str, shape: &[usize], numbers: &[f32]) -> String {
        let name = format!("{}{name}", self.prefix);
        self.weights.push(Tensor {
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: kind::FLOAT,
            name: name.clone(),
            raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        });
        name
    }

    /// The graph, whose last node answers under this name, so many numbers an image.
    pub fn finish(self, name: String, answer: &str, size: usize) -> Graph {
        let Self { mut nodes, weights, .. } = self;
        if let Some(last) = nodes.last_mut() {
            last.output = vec![answer.into()];
        }
        let images = [named("batch"), fixed(3), named("height"), named("width")];
        Graph {
            node: nodes,
            name,
            initializer: weights,
            input: vec![value(INPUT, images)],
            output: vec![value(answer, [named("batch"), fixed(size)])],
        }
    }
}

fn attribute(name: &str, r#type: i32) -> Attribute {
    Attribute { name: name.into(), r#type, ..Default::default() }
}

/// An attribute that is an integer.
pub fn int(name: &str, i: i64) -> Attribute {
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
