//! Reverse-mode differentiation over tensors. Nothing here knows an operation.
//!
//! Operations compute their output at once (they record kernels) and push a node that knows how to
//! turn the gradient of the output into gradients of the inputs. [`Tape::backward`] walks the nodes
//! from the last to the first. A value used twice has its gradients added up; a value that needs
//! none costs nothing, because no node is pushed for it and operations ask before they compute.
//!
//! ```
//! use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
//! use wgrad::{Shape, Tape, Tensor, ops};
//!
//! // d/dx of relu(x) + x: two where x is positive, one elsewhere.
//! let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default())?;
//! let tape = Tape::new(&gpu);
//! let x = tape.leaf(Tensor::from_host(&gpu, Shape::vector(3), &[-1.0, 2.0, 3.0])?);
//! let y = ops::add(&tape, &ops::relu(&tape, &x)?, &x)?;
//! let seed = Tensor::from_host(&gpu, Shape::vector(3), &[1.0; 3])?;
//! let mut grads = tape.backward(&y, seed)?;
//! let d_x = grads.take(&x).expect("x was differentiated");
//! assert_eq!(d_x.download(&gpu)?, [1.0, 2.0, 2.0]);
//! # Ok::<(), wgrad::Error>(())
//! ```

use std::cell::RefCell;

use crate::gpu::Gpu;
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

/// A value on the tape.
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    slot: Slot,
}

impl Var {
    /// The numbers.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.value.shape()
    }

    /// Whether a gradient flows to this value.
    pub fn needs_grad(&self) -> bool {
        self.slot.node.is_some()
    }

    /// Where this value's gradient goes, without the numbers: what a node keeps of an input whose
    /// value its backward does not need.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

/// The place of a value's gradient.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    node: Option<usize>,
    shape: Shape,
    dtype: Dtype,
}

impl Slot {
    /// Of a value that needs no gradient.
    fn none(value: &Tensor) -> Self {
        Self { node: None, shape: value.shape(), dtype: value.dtype() }
    }

    /// Whether a gradient is wanted at all.
    pub fn needs_grad(&self) -> bool {
        self.node.is_some()
    }

    /// Whether a gradient is wanted, and goes to the same place.
    pub fn is(&self, other: Self) -> bool {
        self.node.is_some() && self.node == other.node
    }
}

/// How an operation passes a gradient back.
pub trait Backward {
    /// Records the kernels that turn the gradient of the output into gradients of the inputs, and
    /// hands those to `grads`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the operation was put together wrongly.
    fn backward(self: Box<Self>, d_out: Tensor, grads: &mut Grads) -> Result<()>;
}

enum Node {
    /// A value to differentiate by; its gradient goes to the tensor given, if one is, and is added
    /// to what is there if the flag says so.
    Leaf(Option<(Tensor, bool)>),
    /// An operation's output.
    Op(Box<dyn Backward>),
}

/// The operations done, in order.
pub struct Tape {
    gpu: Gpu,
    nodes: RefCell<Vec<Node>>,
    recording: bool,
    watch: Option<RefCell<Watch>>,
}

/// Where a tape that looks for the first value that is not finite has got to.
#[derive(Default)]
struct Watch {
    layer: String,
    found: Option<String>,
}

impl Tape {
    /// A tape that records for differentiation.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), nodes: RefCell::default(), recording: true, watch: None }
    }

    /// A tape on which nothing is differentiated: values are freed as soon as they are used up.
    pub fn no_grad(gpu: &Gpu) -> Self {
        Self { recording: false, ..Self::new(gpu) }
    }

    /// A tape on which nothing is differentiated and every output is read back at once, to find the
    /// operation that goes wrong first; see [`Tape::first_non_finite`].
    pub fn watching(gpu: &Gpu) -> Self {
        Self { watch: Some(RefCell::default()), ..Self::no_grad(gpu) }
    }

    /// Names the layer whose operations follow, for [`Tape::first_non_finite`].
    pub fn enter(&self, layer: &str) {
        if let Some(watch) = &self.watch {
            layer.clone_into(&mut watch.borrow_mut().layer);
        }
    }

    /// The layer and operation whose output first held NaN or an infinity, on a tape made by
    /// [`Tape::watching`].
    pub fn first_non_finite(&self) -> Option<String> {
        self.watch.as_ref()?.borrow().found.clone()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A value that is not differentiated by.
    pub fn constant(&self, value: Tensor) -> Var {
        let slot = Slot::none(&value);
        Var { value, slot }
    }

    /// A value to differentiate by.
    pub fn leaf(&self, value: Tensor) -> Var {
        self.attach(value, || Node::Leaf(None))
    }

    /// A value to differentiate by whose gradient is written to `grad`, or added to what `grad`
    /// holds if `accumulate` is set. A weight in f16 has its gradient in f32.
    pub fn leaf_into(&self, value: Tensor, grad: Tensor, accumulate: bool) -> Var {
        self.attach(value, || Node::Leaf(Some((grad, accumulate))))
    }

    /// The output of operation `op` on `inputs`. `backward` is called, and its result kept, only if a
    /// gradient has to flow to one of the inputs.
    pub fn output<B: Backward + 'static>(
        &self,
        op: &'static str,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce() -> B,
    ) -> Var {
        if inputs.iter().any(|input| input.needs_grad()) {
            self.attach(value, || Node::Op(Box::new(backward())))
        } else {
            self.untracked(op, value)
        }
    }

    /// The output of operation `op`, through which nothing is differentiated.
    pub fn untracked(&self, op: &'static str, value: Tensor) -> Var {
        if let Some(watch) = &self.watch {
            watch.borrow_mut().look(&self.gpu, op, &value);
        }
        self.constant(value)
    }

    /// The output of `forward` on `input`, of which nothing but the input is kept: [`Tape::backward`]
    /// runs `forward` again, this time recording what it needs (PyTorch's `checkpoint`). Whether it is
    /// run again is the last argument of `forward`, which must give the same bits both times.
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn recompute<F>(&self, input: &Var, forward: F) -> Result<Var>
    where
        F: Fn(&Tape, &Var, bool) -> Result<Var> + 'static,
    {
        if !self.recording {
            return forward(self, input, false);
        }
        // On a tape of its own, dropped at once: operations may choose other kernels where nothing is
        // differentiated.
        let tape = Self::new(&self.gpu);
        let value = input.value.clone();
        let alike = if input.needs_grad() { tape.leaf(value) } else { tape.constant(value) };
        let output = forward(&tape, &alike, false)?;
        let (input, slot) = (input.value.clone(), input.slot);
        let node = Recompute { input, slot, forward };
        Ok(self.attach(output.value, || Node::Op(Box::new(node))))
    }

    fn attach(&self, value: Tensor, node: impl FnOnce() -> Node) -> Var {
        let mut slot = Slot::none(&value);
        if self.recording {
            let mut nodes = self.nodes.borrow_mut();
            slot.node = Some(nodes.len());
            nodes.push(node());
        }
        Var { value, slot }
    }

    /// Records the kernels that compute the gradients of `output`, whose own gradient is `seed`.
    /// Consumes the tape: what an operation kept is freed as soon as its gradient is done.
    ///
    /// # Errors
    /// [`Error::Shape`] if the seed is not like the output, and those of the operations.
    pub fn backward(self, output: &Var, seed: Tensor) -> Result<Grads> {
        let nodes = self.nodes.into_inner();
        let mut grads =
            Grads { gpu: self.gpu, entries: nodes.iter().map(|_| Entry::default()).collect() };
        for (entry, node) in grads.entries.iter_mut().zip(&nodes) {
            if let Node::Leaf(Some((grad, accumulate))) = node {
                *entry = Entry { grad: Some(grad.clone()), written: *accumulate, fixed: true };
            }
        }
        grads.give(output.slot, seed)?;
        for (index, node) in nodes.into_iter().enumerate().rev() {
            if let Node::Op(backward) = node
                && let Some(d_out) = grads.entries[index].grad.take()
            {
                backward.backward(d_out, &mut grads)?;
            }
        }
        Ok(grads)
    }
}

struct Recompute<F> {
    input: Tensor,
    slot: Slot,
    forward: F,
}

impl<F: Fn(&Tape, &Var, bool) -> Result<Var>> Backward for Recompute<F> {
    fn backward(self: Box<Self>, d_out: Tensor, grads: &mut Grads) -> Result<()> {
        let tape = Tape::new(grads.gpu());
        let input = match grads.target(self.slot) {
            Some(Target { tensor, accumulate }) => tape.leaf_into(self.input, tensor, accumulate),
            None => tape.constant(self.input),
        };
        let output = (self.forward)(&tape, &input, true)?;
        tape.backward(&output, d_out).map(|_| ())
    }
}

impl Watch {
    fn look(&mut self, gpu: &Gpu, op: &str, value: &Tensor) {
        let broken = |values: Vec<f32>| values.iter().any(|value| !value.is_finite());
        // A device that fails here fails again, and says so, at the next submission.
        if self.found.is_none() && value.download(gpu).is_ok_and(broken) {
            self.found = Some(format!("{op} of {}", self.layer));
        }
    }
}

/// The gradients gathered while walking back.
pub struct Grads {
    gpu: Gpu,
    entries: Vec<Entry>,
}

#[derive(Default)]
struct Entry {
    grad: Option<Tensor>,
    /// `grad` holds something that further gradients are added to.
    written: bool,
    /// `grad` is the caller's, who holds another handle to it.
    fixed: bool,
}

/// Where an operation is to write a gradient.
pub struct Target {
    /// The memory.
    pub tensor: Tensor,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

impl Grads {
    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Where to write the gradient of the value at `slot`; none if it needs none.
    pub fn target(&mut self, slot: Slot) -> Option<Target> {
        let entry = &mut self.entries[slot.node?];
        let accumulate = std::mem::replace(&mut entry.written, true);
        let shared = entry.grad.as_ref().is_some_and(|grad| !entry.fixed && !grad.is_unique());
        let grad =
            entry.grad.get_or_insert_with(|| Tensor::empty_as(&self.gpu, slot.shape, slot.dtype));
        if shared {
            // Another value's gradient is the same tensor: it must not see what is added here.
            *grad = grad.duplicate(&self.gpu);
        }
        Some(Target { tensor: grad.clone(), accumulate })
    }

    /// Hands over a finished gradient of the value at `slot`.
    ///
    /// # Errors
    /// [`Error::Shape`] if its shape is not the value's, or its type not that of the gradient.
    pub fn give(&mut self, slot: Slot, gradient: Tensor) -> Result<()> {
        let Some(node) = slot.node else { return Ok(()) };
        let entry = &mut self.entries[node];
        let dtype = entry.grad.as_ref().map_or(slot.dtype, Tensor::dtype);
        if gradient.shape() != slot.shape || gradient.dtype() != dtype {
            let [found, expected] = [(gradient.shape(), gradient.dtype()), (slot.shape, dtype)]
                .map(|(shape, dtype)| format!("{shape} in {dtype}"));
            return Err(Error::shape("gradient", format!("{found} for a value of {expected}")));
        }
        if entry.grad.is_none() {
            *entry = Entry { grad: Some(gradient), written: true, fixed: false };
            return Ok(());
        }
        let Some(Target { tensor, accumulate }) = self.target(slot) else { return Ok(()) };
        if accumulate {
            tensor.add_assign(&self.gpu, &gradient)
        } else {
            self.gpu.copy(gradient.memory(), tensor.memory());
            Ok(())
        }
    }

    /// The gradient of a leaf; none if nothing flowed to it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        let entry = &mut self.entries[leaf.slot.node?];
        entry.written.then(|| entry.grad.take()).flatten()
    }
}
