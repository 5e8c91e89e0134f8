//! A training step of a narrow ResNet-18, where the host's own work shows, on the default adapter.

use criterion::{Criterion, criterion_group, criterion_main};
use wgrad::Result;
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::nn::{Arch, BnPolicy, Mode, ResNet, Stage};
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::verify::network::{Batch, gradients};

const IMAGES: usize = 8;

fn step(criterion: &mut Criterion) {
    let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default()).expect("an adapter");
    for arch in ["resnet18-w8", "resnet18"] {
        let mut training = Training::new(&gpu, arch).expect("a network");
        criterion.bench_function(&format!("{arch} 64 px batch {IMAGES}"), |bencher| {
            bencher.iter(|| training.step().expect("a step"));
        });
    }
}

struct Training<'a> {
    gpu: &'a Gpu,
    net: ResNet,
    optimizer: Optimizer,
}

impl<'a> Training<'a> {
    fn new(gpu: &'a Gpu, arch: &str) -> Result<Self> {
        let mut net = ResNet::new(gpu, Arch::from_name(arch)?, 10, 0)?;
        net.parameters_mut().require_gradients(gpu);
        let settings = Settings {
            algorithm: Algorithm::Sgd { momentum: 0.9, nesterov: false },
            weight_decay: 1e-4,
            norm_weight_decay: 0.0,
            clip_grad_norm: None,
            l2_sp: 0.0,
        };
        let optimizer = Optimizer::new(gpu, net.parameters(), settings, Stage::Stem, |_| 1.0)?;
        Ok(Self { gpu, net, optimizer })
    }

    fn step(&mut self) -> Result<Vec<f32>> {
        let Self { gpu, net, optimizer } = self;
        optimizer.begin_step(gpu, 1e-3)?;
        let batch = Batch::new(gpu, 0, IMAGES, 64)?;
        let mode = Mode::train_from(Stage::Stem, BnPolicy::Train);
        let passed = gradients(gpu, net, &batch, mode, 0.0, IMAGES)?;
        optimizer.step(gpu)?;
        passed.loss.wait_f32()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_secs(1))
        .measurement_time(std::time::Duration::from_secs(5));
    targets = step
}
criterion_main!(benches);
