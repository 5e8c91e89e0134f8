//! The five ResNets from one description: which convolutions there are, with which stride, under
//! which of torchvision's names, and hence which tensors a checkpoint must hold.
//!
//! Follows "Deep Residual Learning for Image Recognition" (He et al., 2015) as torchvision builds
//! it: every convolution is followed by a batch norm and has no bias, and a bottleneck strides in
//! its 3×3 convolution.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};

/// The residual block a network repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Two 3×3 convolutions; resnet18 and resnet34.
    Basic,
    /// 1×1 down, 3×3, 1×1 up to four times the channels; resnet50 and deeper.
    Bottleneck,
}

impl Block {
    /// Output channels of a block over the channels of its 3×3 convolution.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// A residual network, without its number of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Torchvision's name, such as `resnet18`.
    pub name: &'static str,
    /// The repeated block.
    pub block: Block,
    /// Blocks in `layer1` to `layer4`.
    pub layers: [usize; 4],
    /// Channels of the stem and of the 3×3 convolutions in `layer1`: 64, or fewer in a narrow
    /// network for tests. Each later layer doubles it.
    pub width: usize,
}

/// A convolution without bias and the batch norm that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvNorm {
    /// Name of the convolution, such as `layer2.0.conv1`.
    pub conv: String,
    /// Name of the batch norm, such as `layer2.0.bn1`.
    pub norm: String,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros added on every side.
    pub padding: usize,
}

impl ConvNorm {
    /// Its tensors in a state dict.
    pub fn entries(&self) -> [Entry; 6] {
        let Self { conv, norm, in_channels, out_channels, kernel, .. } = self;
        let shape = [*out_channels, *in_channels, *kernel, *kernel];
        let of_norm =
            |leaf: &str, kind| Entry::new(format!("{norm}.{leaf}"), [*out_channels], kind);
        [
            Entry::new(format!("{conv}.weight"), shape, Kind::Conv),
            of_norm("weight", Kind::NormWeight),
            of_norm("bias", Kind::NormBias),
            of_norm("running_mean", Kind::RunningMean),
            of_norm("running_var", Kind::RunningVar),
            Entry::new(format!("{norm}.num_batches_tracked"), [], Kind::NumBatches),
        ]
    }
}

/// One residual block: `relu(convs(x) + downsample(x))`, a ReLU after every convolution but the
/// last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    /// Name of the block, such as `layer2.0`.
    pub name: String,
    /// The main path, in order.
    pub convs: Vec<ConvNorm>,
    /// The shortcut's 1×1 convolution where the shape changes, else the identity.
    pub downsample: Option<ConvNorm>,
}

/// What a tensor of a state dict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution weight, OIHW.
    Conv,
    /// Batch norm's γ.
    NormWeight,
    /// Batch norm's β.
    NormBias,
    /// Running mean of a batch norm.
    RunningMean,
    /// Running (unbiased) variance of a batch norm.
    RunningVar,
    /// Training steps a batch norm has seen; an i64 scalar.
    NumBatches,
    /// Weight of the classifier, classes × features.
    LinearWeight,
    /// Bias of the classifier.
    LinearBias,
}

impl Kind {
    /// Whether the optimizer updates it, as opposed to a running statistic.
    pub fn is_parameter(self) -> bool {
        !matches!(self, Self::RunningMean | Self::RunningVar | Self::NumBatches)
    }
}

/// A tensor that torchvision's state dict has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Torchvision's name.
    pub name: String,
    /// Torchvision's shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// A tensor of that name and shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, kind: Kind) -> Self {
        Self { name: name.into(), shape: shape.into(), kind }
    }
}

/// Channels of the stem in the published networks.
const STANDARD_WIDTH: usize = 64;

/// Wider than any published ResNet; keeps every product of channels far from overflowing.
const MAX_WIDTH: usize = 1024;

const ARCHS: [Arch; 5] = [
    Arch::standard("resnet18", Block::Basic, [2, 2, 2, 2]),
    Arch::standard("resnet34", Block::Basic, [3, 4, 6, 3]),
    Arch::standard("resnet50", Block::Bottleneck, [3, 4, 6, 3]),
    Arch::standard("resnet101", Block::Bottleneck, [3, 4, 23, 3]),
    Arch::standard("resnet152", Block::Bottleneck, [3, 8, 36, 3]),
];

impl Arch {
    const fn standard(name: &'static str, block: Block, layers: [usize; 4]) -> Self {
        Self { name, block, layers, width: STANDARD_WIDTH }
    }

    /// The network of that name: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, or
    /// one of them with another width, as in `resnet18-w8` (what [`Arch`] displays).
    ///
    /// # Errors
    /// [`Error::Usage`] with the known names.
    pub fn from_name(name: &str) -> Result<Self> {
        let unknown = || {
            let known: Vec<_> = ARCHS.iter().map(|arch| arch.name).collect();
            Error::Usage(format!("unknown network {name:?}; known are {}", known.join(", ")))
        };
        let (base, width) = match name.split_once("-w") {
            Some((base, width)) => (base, width.parse().map_err(|_| unknown())?),
            None => (name, STANDARD_WIDTH),
        };
        let arch = ARCHS.into_iter().find(|arch| arch.name == base).ok_or_else(unknown)?;
        if !(1..=MAX_WIDTH).contains(&width) {
            return Err(Error::Usage(format!("{name}: the width must be 1 to {MAX_WIDTH}")));
        }
        Ok(Self { width, ..arch })
    }

    /// The network whose convolutions have these names and shapes (torchvision's names, OIHW).
    /// Looks only at what tells the networks apart; every other tensor may still not fit.
    ///
    /// # Errors
    /// What speaks against each of the known networks, to go after the file's name.
    pub fn infer(shapes: &BTreeMap<String, Vec<usize>>) -> std::result::Result<Self, String> {
        let Some(stem) = shapes.get("conv1.weight") else {
            let names: Vec<_> = shapes.keys().take(3).map(String::as_str).collect();
            return Err(format!(
                "holds no conv1.weight, so no ResNet under torchvision's, timm's or Hugging \
                 Face's names; it starts with {}",
                if names.is_empty() { "no tensor at all".into() } else { names.join(", ") }
            ));
        };
        let width = match stem[..] {
            [width @ 1..=MAX_WIDTH, 3, 7, 7] => width,
            _ => {
                return Err(format!(
                    "conv1.weight has shape {stem:?}, where a ResNet for RGB images has \
                     [{STANDARD_WIDTH}, 3, 7, 7]"
                ));
            }
        };
        let block = match shapes.contains_key("layer1.0.conv3.weight") {
            true => Block::Bottleneck,
            false => Block::Basic,
        };
        let layers = [1, 2, 3, 4].map(|layer| {
            (0..)
                .take_while(|index| {
                    shapes.contains_key(&format!("layer{layer}.{index}.conv1.weight"))
                })
                .count()
        });
        let arch = ARCHS.into_iter().find(|arch| (arch.block, arch.layers) == (block, layers));
        arch.map(|arch| Self { width, ..arch }).ok_or_else(|| {
            format!(
                "has {layers:?} {block:?} blocks in layer1 to layer4, which is none of {}",
                ARCHS
                    .map(|arch| format!("{} {:?} {:?}", arch.name, arch.layers, arch.block))
                    .join(", ")
            )
        })
    }

    /// Inputs of the classifier: channels after the last block.
    pub fn features(&self) -> usize {
        8 * self.width * self.block.expansion()
    }

    /// The 7×7 convolution of stride 2 that a 3×3 max-pool of stride 2 follows.
    pub fn stem(&self) -> ConvNorm {
        ConvNorm {
            conv: "conv1".into(),
            norm: "bn1".into(),
            in_channels: 3,
            out_channels: self.width,
            kernel: 7,
            stride: 2,
            padding: 3,
        }
    }

    /// Every residual block, in order.
    pub fn blocks(&self) -> Vec<BlockSpec> {
        let mut blocks = Vec::with_capacity(self.layers.iter().sum());
        let mut in_channels = self.width;
        for (layer, &count) in self.layers.iter().enumerate() {
            let channels = self.width << layer;
            for index in 0..count {
                let name = format!("layer{}.{index}", layer + 1);
                let stride = if layer > 0 && index == 0 { 2 } else { 1 };
                blocks.push(self.block(name, in_channels, channels, stride));
                in_channels = channels * self.block.expansion();
            }
        }
        blocks
    }

    /// Side in pixels and channels of an input of `side` × `side` pixels, and of what each convolution of
    /// the stem and the blocks' main paths makes of it, in order. Shortcuts end in the blocks' outputs.
    pub fn outputs(&self, side: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let stem = self.stem();
        let output = side.div_ceil(stem.stride);
        // The stem's max-pool halves once more.
        let mut side_now = output.div_ceil(2);
        let convs = self.blocks().into_iter().flat_map(|block| block.convs);
        let convs = convs.map(move |conv| {
            side_now = side_now.div_ceil(conv.stride);
            (side_now, conv.out_channels)
        });
        [(side, stem.in_channels), (output, stem.out_channels)].into_iter().chain(convs)
    }

    fn block(&self, name: String, in_channels: usize, channels: usize, stride: usize) -> BlockSpec {
        let out_channels = channels * self.block.expansion();
        // (output channels, kernel, stride) along the main path
        let path: &[_] = match self.block {
            Block::Basic => &[(channels, 3, stride), (channels, 3, 1)],
            Block::Bottleneck => &[(channels, 1, 1), (channels, 3, stride), (out_channels, 1, 1)],
        };
        let mut convs = Vec::with_capacity(path.len());
        let mut from = in_channels;
        for (index, &(to, kernel, stride)) in path.iter().enumerate() {
            convs.push(ConvNorm {
                conv: format!("{name}.conv{}", index + 1),
                norm: format!("{name}.bn{}", index + 1),
                in_channels: from,
                out_channels: to,
                kernel,
                stride,
                padding: kernel / 2,
            });
            from = to;
        }
        let downsample = (stride != 1 || in_channels != out_channels).then(|| ConvNorm {
            conv: format!("{name}.downsample.0"),
            norm: format!("{name}.downsample.1"),
            in_channels,
            out_channels,
            kernel: 1,
            stride,
            padding: 0,
        });
        BlockSpec { name, convs, downsample }
    }

    /// Torchvision's state dict for `classes` outputs: names, shapes and order.
    pub fn entries(&self, classes: usize) -> Vec<Entry> {
        let mut entries = self.backbone_entries();
        entries.extend(self.head_entries(classes));
        entries
    }

    /// [`Arch::entries`] without the classifier.
    pub fn backbone_entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        entries.extend(self.stem().entries());
        for block in self.blocks() {
            let convs = block.convs.iter().chain(&block.downsample);
            entries.extend(convs.flat_map(ConvNorm::entries));
        }
        entries
    }

    /// The classifier's part of [`Arch::entries`]: `fc.weight` and `fc.bias`.
    pub fn head_entries(&self, classes: usize) -> [Entry; 2] {
        [
            Entry::new("fc.weight", [classes, self.features()], Kind::LinearWeight),
            Entry::new("fc.bias", [classes], Kind::LinearBias),
        ]
    }
}

/// The name that [`Arch::from_name`] reads.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.width {
            STANDARD_WIDTH => f.pad(self.name),
            width => write!(f, "{}-w{width}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_torchvisions() {
        let count = |name| {
            let entries = Arch::from_name(name).unwrap().entries(1000);
            let parameters = entries.iter().filter(|entry| entry.kind.is_parameter());
            parameters.map(|entry| entry.shape.iter().product::<usize>()).sum::<usize>()
        };
        assert_eq!(count("resnet18"), 11_689_512);
        assert_eq!(count("resnet34"), 21_797_672);
        assert_eq!(count("resnet50"), 25_557_032);
        assert_eq!(count("resnet101"), 44_549_160);
        assert_eq!(count("resnet152"), 60_192_808);
    }

    #[test]
    fn a_bottleneck_strides_in_its_3x3_and_in_its_shortcut() {
        let blocks = Arch::from_name("resnet50").unwrap().blocks();
        let block = blocks.iter().find(|block| block.name == "layer2.0").unwrap();
        let geometry = |conv: &ConvNorm| (conv.kernel, conv.stride, conv.padding);
        assert_eq!(
            block.convs.iter().map(geometry).collect::<Vec<_>>(),
            [(1, 1, 0), (3, 2, 1), (1, 1, 0)]
        );
        assert_eq!(block.downsample.as_ref().map(geometry), Some((1, 2, 0)));
        assert_eq!(blocks[0].downsample.as_ref().map(geometry), Some((1, 1, 0)), "64 → 256");
        assert!(blocks[1].downsample.is_none());
    }

    #[test]
    fn names_round_trip_and_wrong_ones_say_what_is_known() {
        for name in ["resnet18", "resnet152", "resnet34-w8"] {
            assert_eq!(Arch::from_name(name).unwrap().to_string(), name);
        }
        for name in ["resnet20", "", "resnet18-w", "resnet18-w0", "resnet18-w99999", "-w8"] {
            assert!(matches!(Arch::from_name(name), Err(Error::Usage(_))), "{name:?}");
        }
        assert!(Arch::from_name("vgg16").unwrap_err().to_string().contains("resnet101"));
    }
}
