//! Reading and writing the bundled checkpoint.

use criterion::{Criterion, criterion_group, criterion_main};
use wgrad::checkpoint::{Checkpoint, Dtype, Source};

fn checkpoint(criterion: &mut Criterion) {
    let path = Source::Bundled.resolve(&mut |_| ()).expect("the bundled weights");
    let path = path.expect("the bundled weights are a file");
    criterion.bench_function("read resnet18, f16", |bencher| {
        bencher.iter(|| Checkpoint::read(&path).expect("it can be read"));
    });
    let read = Checkpoint::read(&path).expect("it can be read");
    let folder = tempfile::tempdir().expect("a folder");
    criterion.bench_function("write resnet18, f32", |bencher| {
        let path = folder.path().join("written.safetensors");
        bencher.iter(|| read.write(&path, Dtype::F32).expect("it can be written"));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = checkpoint
}
criterion_main!(benches);
