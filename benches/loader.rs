//! An epoch of the bundled images, by the loader alone.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrad::Result;
use wgrad::data::{Augment, Dataset, Item, Loader, Order, ScanOptions, Transform, demo_root};

fn epoch(items: &Arc<[Item]>, transform: Transform) -> Result<usize> {
    let order = Order { seed: 0, epoch: 0, shuffle: true, batch_size: 32, drop_last: false };
    let mut images = 0;
    for batch in Loader::new(items.clone(), order.batches(items.len()), transform, 0, 0, 0)? {
        images += batch?.labels.len();
    }
    Ok(images)
}

fn loader(criterion: &mut Criterion) {
    let options = ScanOptions { val_fraction: 0.2, seed: 0 };
    let root = demo_root().expect("the bundled images");
    let items: Arc<[Item]> = Dataset::scan(&root, &options).expect("images").train.into();
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(items.len() as u64));
    for augment in [Augment::None, Augment::Light, Augment::Strong] {
        for size in [64, 224] {
            let transform = Transform { size, augment, auto_augment: None };
            group.bench_function(format!("{augment:?} {size} px"), |bencher| {
                bencher.iter(|| epoch(&items, transform).expect("an epoch"));
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
    targets = loader
}
criterion_main!(benches);
