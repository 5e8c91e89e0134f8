//! All parameters of a network in one piece of device memory.
//!
//! The arena is ordered by what the optimizer treats alike: first every parameter that takes weight
//! decay, stage by stage, then batch norm's weights and biases, stage by stage. An update is one
//! dispatch for each run of neighbouring groups with equal settings, at any depth of network.
//!
//! In mixed precision the arena has a shadow in f16, which convolutions read their weights from.
//! Updates write both; whoever else overwrites the arena calls [`Parameters::cast`].

use std::rc::Rc;

use crate::autograd::{Tape, Var};
use crate::gpu::{Gpu, Slice};
use crate::nn::arch::{Arch, Entry, Kind};
use crate::nn::initial;
use crate::ops::cast;
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

/// Depth in the network, from the input to the classifier; freezing and learning rates go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// `conv1` and `bn1`.
    Stem,
    /// `layer1`.
    Layer1,
    /// `layer2`.
    Layer2,
    /// `layer3`.
    Layer3,
    /// `layer4`.
    Layer4,
    /// `fc`.
    Head,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 6] =
        [Self::Stem, Self::Layer1, Self::Layer2, Self::Layer3, Self::Layer4, Self::Head];

    /// What torchvision's names of its tensors begin with; `conv1` for the stem.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stem => "conv1",
            Self::Layer1 => "layer1",
            Self::Layer2 => "layer2",
            Self::Layer3 => "layer3",
            Self::Layer4 => "layer4",
            Self::Head => "fc",
        }
    }

    /// The stage that the tensor of this (torchvision's) name belongs to.
    pub fn of(name: &str) -> Self {
        match name.split('.').next() {
            Some("layer1") => Self::Layer1,
            Some("layer2") => Self::Layer2,
            Some("layer3") => Self::Layer3,
            Some("layer4") => Self::Layer4,
            Some("fc") => Self::Head,
            _ => Self::Stem,
        }
    }
}

/// What the optimizer treats alike: the parameters of a stage, batch norm's apart from the others.
#[derive(Clone, Debug)]
pub struct Group {
    /// Which stage.
    pub stage: Stage,
    /// Whether these are batch norm's weights and biases.
    pub norm: bool,
    /// First byte in the arena.
    pub offset: u64,
    /// Bytes, gaps between parameters included.
    pub bytes: u64,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Torchvision's name.
    pub name: String,
    /// Its stage.
    pub stage: Stage,
    /// Torchvision's shape.
    pub torch_shape: Vec<usize>,
    /// Shape on the device.
    pub shape: Shape,
    /// First byte in the arena.
    offset: u64,
}

/// The parameters of a network, and their gradients while it is trained. Clones share the memory.
#[derive(Clone)]
pub struct Parameters {
    list: Rc<[Parameter]>,
    groups: Rc<[Group]>,
    values: Slice,
    gradients: Option<Slice>,
    shadow: Option<Slice>,
}

/// Where a parameter may start: a multiple of any adapter's offset alignment.
pub(super) const ALIGNMENT: u64 = 256;

impl Parameters {
    /// Room for the parameters of `arch` with `classes` outputs; all zeros.
    pub fn new(gpu: &Gpu, arch: &Arch, classes: usize) -> Self {
        Self::stored_as(gpu, &arch.entries(classes), Dtype::of_activations(gpu))
    }

    /// Room for the parameters among `entries`, those of any network; all zeros, and f32 on any device.
    /// Names say which stage they belong to, see [`Stage::of`].
    ///
    /// ```
    /// use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
    /// use wgrad::nn::Parameters;
    /// use wgrad::nn::arch::{Entry, Kind};
    /// use wgrad::{Shape, Tape, Tensor, ops::linear};
    ///
    /// // A network of one layer, and the gradient of the sum of its answers to five inputs.
    /// let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default())?;
    /// let weight = Entry::new("fc.weight", [2, 3], Kind::LinearWeight);
    /// let bias = Entry::new("fc.bias", [2], Kind::LinearBias);
    /// let mut parameters = Parameters::of(&gpu, &[weight, bias]);
    /// parameters.initialise(&gpu, 3, 0)?;
    /// parameters.require_gradients(&gpu);
    ///
    /// let tape = Tape::new(&gpu);
    /// let x = tape.constant(Tensor::from_host(&gpu, Shape::matrix(5, 3), &[0.5; 15])?);
    /// let [w, b] = ["fc.weight", "fc.bias"].map(|name| parameters.var(&tape, name));
    /// let y = linear(&tape, &x, &w, Some(&b))?;
    /// tape.backward(&y, Tensor::from_host(&gpu, Shape::matrix(5, 2), &[1.0; 10])?)?;
    /// let gradients = parameters.gradients().expect("there is memory for them");
    /// assert_eq!(parameters.download(&gpu, gradients)?, [vec![2.5; 6], vec![5.0; 2]]);
    /// # Ok::<(), wgrad::Error>(())
    /// ```
    pub fn of(gpu: &Gpu, entries: &[Entry]) -> Self {
        Self::stored_as(gpu, entries, Dtype::F32)
    }

    /// With a shadow, if convolutions are to read f16.
    fn stored_as(gpu: &Gpu, entries: &[Entry], dtype: Dtype) -> Self {
        let entries: Vec<&Entry> =
            entries.iter().filter(|entry| entry.kind.is_parameter()).collect();
        // The shadow's parts must be aligned, too.
        let alignment = ALIGNMENT * 4 / dtype.bytes();
        let (mut list, mut groups, mut offset) = (Vec::new(), Vec::new(), 0);
        for norm in [false, true] {
            for stage in Stage::ALL {
                let start = offset;
                for entry in &entries {
                    let is_norm = matches!(entry.kind, Kind::NormWeight | Kind::NormBias);
                    if is_norm == norm && Stage::of(&entry.name) == stage {
                        let shape = device_shape(&entry.shape);
                        list.push(Parameter {
                            name: entry.name.clone(),
                            stage,
                            torch_shape: entry.shape.clone(),
                            shape,
                            offset,
                        });
                        offset += shape.bytes().next_multiple_of(alignment);
                    }
                }
                if offset > start {
                    groups.push(Group { stage, norm, offset: start, bytes: offset - start });
                }
            }
        }
        let values = gpu.lease(offset);
        gpu.clear(&values);
        let shadow = dtype.is_half().then(|| gpu.lease(offset / 2));
        Self { list: list.into(), groups: groups.into(), values, gradients: None, shadow }
    }

    /// Gives every parameter its random [`initial`] value. `features` is the classifier's number of
    /// inputs.
    ///
    /// # Errors
    /// What the device reported.
    pub fn initialise(&self, gpu: &Gpu, features: usize, seed: u64) -> Result<()> {
        self.initialise_some(gpu, features, seed, |_| true)
    }

    /// [`Parameters::initialise`] for those of a name that is `wanted`.
    pub(super) fn initialise_some(
        &self,
        gpu: &Gpu,
        features: usize,
        seed: u64,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        for (index, Parameter { name, torch_shape, .. }) in self.list.iter().enumerate() {
            if wanted(name) {
                self.set(gpu, index, &initial(name, torch_shape, features, seed))?;
            }
        }
        self.cast(gpu)
    }

    /// The parameters, in the arena's order.
    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// The groups, in the arena's order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The whole arena of values.
    pub fn values(&self) -> &Slice {
        &self.values
    }

    /// The copy of the arena in f16, half as long; none in single precision.
    pub fn shadow(&self) -> Option<&Slice> {
        self.shadow.as_ref()
    }

    /// How convolutions get their weights.
    pub fn dtype(&self) -> Dtype {
        if self.shadow.is_some() { Dtype::F16 } else { Dtype::F32 }
    }

    /// Records the rounding of the arena to its shadow, if there is one: after the arena was
    /// overwritten by anything but an update.
    ///
    /// # Errors
    /// Those of [`cast`].
    pub fn cast(&self, gpu: &Gpu) -> Result<()> {
        self.shadow.as_ref().map_or(Ok(()), |shadow| cast(gpu, &self.values, shadow))
    }

    /// The whole arena of gradients, laid out as the values; none until it is asked for.
    pub fn gradients(&self) -> Option<&Slice> {
        self.gradients.as_ref()
    }

    /// Leases memory for gradients, zeroed, if there is none.
    pub fn require_gradients(&mut self, gpu: &Gpu) {
        self.gradients.get_or_insert_with(|| {
            let gradients = gpu.lease(self.values.bytes);
            gpu.clear(&gradients);
            gradients
        });
    }

    /// Index of a parameter.
    ///
    /// # Panics
    /// If there is none of that name: names come from the same description as the parameters.
    pub(super) fn index(&self, name: &str) -> usize {
        self.list
            .iter()
            .position(|parameter| parameter.name == name)
            .unwrap_or_else(|| panic!("the network has no parameter {name}"))
    }

    /// A parameter's numbers.
    pub fn value(&self, index: usize) -> Tensor {
        self.tensor(&self.values, index)
    }

    /// A parameter's gradient, if there is memory for gradients.
    pub fn gradient(&self, index: usize) -> Option<Tensor> {
        self.gradients.as_ref().map(|gradients| self.tensor(gradients, index))
    }

    /// A parameter as convolutions read it.
    pub fn operand(&self, index: usize) -> Tensor {
        let Some(shadow) = &self.shadow else { return self.value(index) };
        let Parameter { shape, offset, .. } = self.list[index];
        let part = shadow.part(offset / 2, shape.bytes_as(Dtype::F16));
        Tensor::view_as(part, shape, Dtype::F16)
    }

    /// The parameter of that name on a tape: differentiated by, if there is memory for gradients.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn var(&self, tape: &Tape, name: &str) -> Var {
        let index = self.index(name);
        match self.gradient(index) {
            Some(gradient) => tape.leaf_into(self.value(index), gradient, false),
            None => tape.constant(self.value(index)),
        }
    }

    fn tensor(&self, arena: &Slice, index: usize) -> Tensor {
        let Parameter { shape, offset, .. } = self.list[index];
        Tensor::view(arena.part(offset, shape.bytes()), shape)
    }

    /// Overwrites a parameter with numbers in torchvision's layout; [`Parameters::cast`] is to follow.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one number for each element.
    pub fn set(&self, gpu: &Gpu, index: usize, data: &[f32]) -> Result<()> {
        let parameter = &self.list[index];
        if data.len() != parameter.torch_shape.iter().product::<usize>() {
            let what = format!(
                "{} numbers given for {} {:?}",
                data.len(),
                parameter.name,
                parameter.torch_shape
            );
            return Err(Error::shape("parameters", what));
        }
        let data = to_device_layout(&parameter.torch_shape, data);
        self.value(index).upload(gpu, &data)
    }

    /// Numbers of an arena laid out as the values, one vector a parameter in torchvision's layout.
    ///
    /// # Errors
    /// What the device reported.
    pub fn download(&self, gpu: &Gpu, arena: &Slice) -> Result<Vec<Vec<f32>>> {
        gpu.download(arena).read_f32(|all| {
            let numbers = |Parameter { offset, shape, torch_shape, .. }: &Parameter| {
                let start = (offset / 4) as usize;
                to_torch_layout(torch_shape, &all[start..start + shape.vec4s() * 4])
            };
            self.list.iter().map(numbers).collect()
        })
    }
}

/// The device's shape of a parameter: `(r, s, in, out)` with the input channels padded for weights
/// of convolutions (O, I, R, S) and linear layers (O, I), a vector for the rest.
fn device_shape(torch: &[usize]) -> Shape {
    match *torch {
        [out, input, r, s] => Shape::new(r, s, input.next_multiple_of(4), out),
        [out, input] => Shape::new(1, 1, input.next_multiple_of(4), out),
        _ => Shape::vector(torch.iter().product()),
    }
}

/// Output channels, input channels, and window positions of a weight in torchvision's layout.
fn weight_sizes(torch: &[usize]) -> Option<(usize, usize, usize)> {
    match *torch {
        [out, input, r, s] => Some((out, input, r * s)),
        [out, input] => Some((out, input, 1)),
        _ => None,
    }
}

fn to_device_layout(torch: &[usize], data: &[f32]) -> Vec<f32> {
    let Some((out, input, taps)) = weight_sizes(torch) else { return data.to_vec() };
    let padded = input.next_multiple_of(4);
    let mut result = vec![0.0; taps * padded * out];
    in_blocks(out, input, |o, i| {
        for tap in 0..taps {
            result[(tap * padded + i) * out + o] = data[(o * input + i) * taps + tap];
        }
    });
    result
}

/// Of numbers with the device's padding.
fn to_torch_layout(torch: &[usize], data: &[f32]) -> Vec<f32> {
    let Some((out, input, taps)) = weight_sizes(torch) else {
        return data[..torch.iter().product()].to_vec();
    };
    let padded = input.next_multiple_of(4);
    let width = out.next_multiple_of(4);
    let mut result = vec![0.0; out * input * taps];
    in_blocks(out, input, |o, i| {
        for tap in 0..taps {
            result[(o * input + i) * taps + tap] = data[(tap * padded + i) * width + o];
        }
    });
    result
}

/// Every output with every input channel, block by block: neighbours in either layout soon after one another,
/// while a processor has their line of memory at hand.
fn in_blocks(out: usize, input: usize, mut each: impl FnMut(usize, usize)) {
    const SIDE: usize = 16;
    for first_o in (0..out).step_by(SIDE) {
        for first_i in (0..input).step_by(SIDE) {
            for o in first_o..out.min(first_o + SIDE) {
                for i in first_i..input.min(first_i + SIDE) {
                    each(o, i);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_round_trip_and_pad_input_channels() {
        let shape = [5, 3, 2, 2];
        let data: Vec<f32> = (0..60).map(|i| i as f32).collect();
        let device = to_device_layout(&shape, &data);
        assert_eq!(device.len(), 2 * 2 * 4 * 5);
        // Output 1, input 2, tap (0, 1).
        assert_eq!(device[(4 + 2) * 5 + 1], data[(3 + 2) * 4 + 1]);
        assert_eq!(device[(4 + 3) * 5..(4 + 4) * 5], [0.0; 5], "the padded input channel");
        let rows = device.chunks_exact(5).map(|row| [row, &[f32::NAN; 3]].concat());
        assert_eq!(to_torch_layout(&shape, &rows.collect::<Vec<_>>().concat()), data);
        assert_eq!(to_device_layout(&[3], &[1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
        assert_eq!(to_torch_layout(&[3], &[1.0, 2.0, 3.0, f32::NAN]), [1.0, 2.0, 3.0]);
        // More channels than a block has, and no multiple of it.
        let shape = [36, 20, 3, 3];
        let data: Vec<f32> = (0..36 * 20 * 9).map(|i| i as f32).collect();
        let device = to_device_layout(&shape, &data);
        assert_eq!(device[((4 + 1) * 20 + 19) * 36 + 35], data[((35 * 20) + 19) * 9 + 5]);
        assert_eq!(to_torch_layout(&shape, &device), data);
    }

    #[test]
    fn stages_follow_names() {
        for (name, stage) in [
            ("conv1.weight", Stage::Stem),
            ("bn1.bias", Stage::Stem),
            ("layer3.1.bn2.weight", Stage::Layer3),
            ("fc.bias", Stage::Head),
        ] {
            assert_eq!(Stage::of(name), stage);
        }
    }
}
