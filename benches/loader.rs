//! An epoch of the bundled images, or of the folder that `WGRAD_BENCH_IMAGES` names, by the loader
//! alone, without and with the decoded images in memory; and finding them on disk.

use std::path::PathBuf;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrad::Result;
use wgrad::data::{
    Augment, Dataset, Items, Keep, Loader, Order, Room, ScanOptions, Transform, demo_root,
};

fn epoch(items: &Items, transform: Transform) -> Result<usize> {
    let order = Order { seed: 0, epoch: 0, shuffle: true, batch_size: 32, drop_last: false };
    let mut images = 0;
    for batch in Loader::new(items.clone(), order.batches(items.len()), transform, 0, 0, 0)? {
        images += batch?.labels.len();
    }
    Ok(images)
}

fn loader(criterion: &mut Criterion) {
    let options = ScanOptions { val_fraction: 0.2, seed: 0 };
    let named = std::env::var_os("WGRAD_BENCH_IMAGES").map(PathBuf::from);
    let root = named.unwrap_or_else(|| demo_root().expect("the bundled images"));
    let scan = || Dataset::scan(&root, &options).expect("images");
    let items = scan().train;
    let room = Arc::new(Room::new(4 << 30));
    let keeps = |keep| Items::keeping(items.clone(), None, keep, &room);
    let mut group = criterion.benchmark_group("loader");
    group.bench_function("scan", |bencher| bencher.iter(scan));
    group.throughput(Throughput::Elements(items.len() as u64));
    for augment in [Augment::None, Augment::Light, Augment::Strong] {
        for size in [64, 224] {
            let transform = Transform { size, augment, auto_augment: None };
            for (keep, name) in [(Keep::Nothing, ""), (Keep::Decoded, ", decoded before")] {
                let items = keeps(keep);
                group.bench_function(format!("{augment:?} {size} px{name}"), |bencher| {
                    bencher.iter(|| epoch(&items, transform).expect("an epoch"));
                });
            }
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
