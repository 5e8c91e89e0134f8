//! wgrad fine-tunes residual networks on any GPU that WebGPU reaches: handwritten WGSL kernels, a
//! small autograd graph, ResNets, safetensors in and out. The command line is a thin layer over
//! this library; `ARCHITECTURE.md` is the map.
//!
//! Five steps of gradient descent on the classifier of a narrow ResNet-18:
//!
//! ```
//! use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
//! use wgrad::nn::{Arch, BnPolicy, Mode, ResNet, Stage};
//! use wgrad::ops::{CrossEntropy, cross_entropy, labels};
//! use wgrad::optim::{Algorithm, Optimizer, Settings};
//! use wgrad::{Shape, Tape, Tensor};
//!
//! let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default())?;
//! let mut net = ResNet::new(&gpu, Arch::from_name("resnet18-w8")?, 2, 0)?;
//! net.parameters_mut().require_gradients(&gpu);
//! let settings = Settings {
//!     algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
//!     weight_decay: 1e-4,
//!     norm_weight_decay: 0.0,
//!     clip_grad_norm: None,
//!     l2_sp: 0.0,
//! };
//! let mut optimizer = Optimizer::new(&gpu, net.parameters(), settings, Stage::Head, |_| 1.0)?;
//! let pixels: Vec<f32> = (0..4 * 32 * 32 * 3).map(|i| (i % 97) as f32 / 97.0).collect();
//! let images = Tensor::from_host(&gpu, Shape::new(4, 32, 32, 3), &pixels)?;
//! let targets = labels(&gpu, &[0, 1, 0, 1])?;
//! let one = Tensor::from_host(&gpu, Shape::vector(1), &[1.0])?;
//! for _ in 0..5 {
//!     optimizer.begin_step(&gpu, 0.1)?;
//!     let tape = Tape::new(&gpu);
//!     let mode = Mode::train_from(Stage::Head, BnPolicy::Frozen);
//!     let logits = net.forward(&tape, &tape.constant(images.clone()), mode)?;
//!     let options = CrossEntropy { label_smoothing: 0.0, divisor: 4.0 };
//!     let output = cross_entropy(&tape, &logits, &targets, options)?;
//!     tape.backward(&output.loss, one.clone())?;
//!     optimizer.step(&gpu)?;
//!     println!("loss {:?}", output.loss.value().download(&gpu)?);
//! }
//! # Ok::<(), wgrad::Error>(())
//! ```
#![warn(missing_docs)]

// In order of dependency: a room may use those above it.
pub mod error;

pub mod cache;

pub mod metrics;

pub mod gpu;

pub mod tensor;

pub mod autograd;

pub mod checkpoint;
pub mod data;
pub mod ops;

pub mod nn;

pub mod optim;

pub mod provenance;

pub mod report;

pub mod train;

pub mod fuse;

pub mod tune;
pub mod verify;

pub mod bench;

pub mod cli;

pub use autograd::{Grads, Tape, Var};
pub use error::{Error, Result};
pub use tensor::{Dtype, Shape, Tensor};
