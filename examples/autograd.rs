//! The autograd graph by itself: no network, no images, three numbers.
//!
//!     cargo run --release --example autograd
//!
//! 1. A value used twice collects two gradients.
//! 2. An operation of your own: four lines that watch a gradient pass.
//! 3. Gradient descent on three logits, whose gradient is known in closed form.

use wgrad::autograd::{Backward, Slot};
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::ops::{CrossEntropy, add, cross_entropy, labels, relu};
use wgrad::{Error, Grads, Result, Shape, Tape, Tensor, Var};

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    }
}

fn run() -> Result<()> {
    let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default())?;
    println!("on {}\n", gpu.report().name);
    use_twice(&gpu)?;
    watch(&gpu)?;
    descend(&gpu)
}

/// y = relu(x) + x. Operations compute at once and push a node on the tape; walking the tape back,
/// x gets a gradient from the sum and another through the ReLU, and they add up.
fn use_twice(gpu: &Gpu) -> Result<()> {
    let tape = Tape::new(gpu);
    let x = tape.leaf(vector(gpu, [-1.0, 2.0, 3.0])?);
    let y = add(&tape, &relu(&tape, &x)?, &x)?;
    let mut grads = tape.backward(&y, vector(gpu, [1.0; 3])?)?;
    println!("x           {:?}", x.value().download(gpu)?);
    println!("relu(x) + x {:?}", y.value().download(gpu)?);
    println!("its d/dx    {:?}\n", gradient(gpu, &mut grads, &x)?);
    Ok(())
}

/// The identity, which tells of the gradient that passes through it.
struct Watched {
    input: Slot,
}

impl Backward for Watched {
    fn backward(self: Box<Self>, d_out: Tensor, grads: &mut Grads) -> Result<()> {
        println!("passing by  {:?}", d_out.download(grads.gpu())?);
        grads.give(self.input, d_out)
    }
}

fn watched(tape: &Tape, x: &Var) -> Var {
    tape.output("watched", x.value().clone(), &[x], || Watched { input: x.slot() })
}

/// y = relu(watched(x + c)). The constant c gets no node and no gradient.
fn watch(gpu: &Gpu) -> Result<()> {
    let tape = Tape::new(gpu);
    let x = tape.leaf(vector(gpu, [-1.0, 2.0, 3.0])?);
    let c = tape.constant(vector(gpu, [0.0, -5.0, 0.0])?);
    let y = relu(&tape, &watched(&tape, &add(&tape, &x, &c)?))?;
    let mut grads = tape.backward(&y, vector(gpu, [1.0, 10.0, 100.0])?)?;
    println!("d/dx        {:?}", gradient(gpu, &mut grads, &x)?);
    println!("c has one   {}\n", grads.take(&c).is_some());
    Ok(())
}

/// Descends the cross-entropy of three logits to the second class. Its gradient is
/// softmax(z) − (0, 1, 0), which the host computes beside the graph.
fn descend(gpu: &Gpu) -> Result<()> {
    let targets = labels(gpu, &[1])?;
    let options = CrossEntropy { label_smoothing: 0.0, divisor: 1.0 };
    let mut z = [0.0, 0.0, 1.0];
    println!("step   loss   gradient by the graph        by its formula");
    for step in 0..=20 {
        let tape = Tape::new(gpu);
        let logits = tape.leaf(vector(gpu, z)?);
        let loss = cross_entropy(&tape, &logits, &targets, options)?.loss;
        let mut grads = tape.backward(&loss, Tensor::from_host(gpu, Shape::vector(1), &[1.0])?)?;
        let d_z = gradient(gpu, &mut grads, &logits)?;
        if step % 5 == 0 {
            let loss = loss.value().download(gpu)?[0];
            println!("{step:>4}  {loss:.3}   {:6.3?}   {:6.3?}", d_z, by_formula(z));
        }
        for (z, d_z) in z.iter_mut().zip(d_z) {
            *z -= 0.5 * d_z;
        }
    }
    Ok(())
}

fn by_formula(z: [f32; 3]) -> [f32; 3] {
    let sum: f32 = z.iter().map(|z| z.exp()).sum();
    let [a, b, c] = z.map(|z| z.exp() / sum);
    [a, b - 1.0, c]
}

fn vector(gpu: &Gpu, numbers: [f32; 3]) -> Result<Tensor> {
    Tensor::from_host(gpu, Shape::vector(3), &numbers)
}

/// What flowed to a leaf, on the host.
fn gradient(gpu: &Gpu, grads: &mut Grads, leaf: &Var) -> Result<Vec<f32>> {
    let gradient = grads.take(leaf).ok_or_else(|| Error::Usage("no gradient".into()))?;
    gradient.download(gpu)
}
