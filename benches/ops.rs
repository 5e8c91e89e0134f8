//! The operations that a step spends its time in, forward and backward, on the default adapter.

use criterion::{Criterion, criterion_group, criterion_main};
use wgrad::gpu::{AdapterChoice, Gpu, GpuOptions};
use wgrad::ops::OPS;
use wgrad::ops::case::{Array, Case, Fill, filled};
use wgrad::{Result, Tape, Tensor, Var};

const MEASURED: [&str; 3] = ["conv2d", "batch_norm", "max_pool2d"];

fn upload(gpu: &Gpu, array: &Array) -> Tensor {
    Tensor::from_host(gpu, array.shape, &array.to_f32()).expect("a tensor fits")
}

fn both_ways(gpu: &Gpu, case: &Case, inputs: &[Tensor], d_y: &Tensor) -> Result<()> {
    let tape = Tape::new(gpu);
    let inputs: Vec<Var> = inputs.iter().map(|input| tape.leaf(input.clone())).collect();
    let outputs = (case.run)(&tape, &inputs)?;
    tape.backward(&outputs[0], d_y.clone())?;
    gpu.finish()
}

fn ops(criterion: &mut Criterion) {
    let gpu = Gpu::open(AdapterChoice::default(), GpuOptions::default()).expect("an adapter");
    for op in OPS.iter().filter(|op| MEASURED.contains(&op.name)) {
        for case in (op.cases)()
            .iter()
            .filter(|case| case.benchmark && !case.for_gpus && case.gradient.is_some())
        {
            let inputs: Vec<_> = case.fill().iter().map(|input| upload(&gpu, input)).collect();
            let outputs = case.execute(&gpu, &case.fill(), None).expect("the case runs").0;
            let d_y = filled(outputs[0].shape(), Fill::Uniform(-1.0, 1.0), 99);
            let d_y = upload(&gpu, &d_y);
            criterion.bench_function(&format!("{} {}", op.name, case.name), |bencher| {
                bencher.iter(|| both_ways(&gpu, case, &inputs, &d_y).expect("the case runs"));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = ops
}
criterion_main!(benches);
