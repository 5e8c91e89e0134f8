//! Batch-norm statistics after averaging, class lists, and lineage.

use wgrad::checkpoint::{Checkpoint, HostData};

use crate::kitchen::bits;
use crate::program::Wgrad;

#[test]
fn recalibrated_statistics_are_those_of_the_training_images() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    let fuse =
        |extra: &[&str]| wgrad.fused(&[&["interpolate", &a, &b, "--alpha", "0.5"], extra].concat());
    let (fused, averaged) = (fuse(&[]), fuse(&["--no-recalibrate"]));
    for (name, tensor) in &fused.tensors {
        let (fused, averaged) = (&tensor.data, &averaged.tensors[name].data);
        match name.contains("running_") || name.ends_with("num_batches_tracked") {
            // 18 images in batches of 8 make three.
            true if name.ends_with("tracked") => assert_eq!(*fused, HostData::I64(vec![3])),
            true => assert_ne!(fused, averaged, "{name}"),
            false => assert_eq!(fused, averaged, "{name}"),
        }
    }
    // The stem's statistics follow from its weights and the pixels alone.
    let expected = stem_statistics(&wgrad, &fused);
    let of = |leaf: &str| fused.tensors[&format!("bn1.{leaf}")].as_f32().unwrap().to_vec();
    for (leaf, expected) in ["running_mean", "running_var"].iter().zip(expected) {
        for (found, expected) in of(leaf).into_iter().zip(expected) {
            // 16 × 16 × 8 outputs of 147 products each, in f32.
            let allowance = 1e-4 * expected.abs().max(0.1);
            assert!((f64::from(found) - expected).abs() < allowance, "{leaf}: {found} {expected}");
        }
    }
    assert_eq!(bits(&fused), bits(&fuse(&[])), "the same again");
}

/// Means over batches of the mean and the unbiased variance of the first convolution's outputs, which
/// without a seam between batches do not depend on the order within them: with batches of 8 they do,
/// so the order is taken from the library.
fn stem_statistics(wgrad: &Wgrad, network: &Checkpoint) -> [Vec<f64>; 2] {
    use wgrad::data::{Dataset, Order, ScanOptions, decode};
    let dataset = Dataset::scan(&wgrad.path("data"), &ScanOptions::default()).unwrap();
    let order = Order { seed: 0, epoch: 0, shuffle: true, batch_size: 8, drop_last: false };
    let batches = order.batches(dataset.train.len());
    let weight = network.tensors["conv1.weight"].as_f32().unwrap();
    let (mean, std) = (network.meta.mean, network.meta.std);
    let channels = weight.len() / 147;
    let mut means = vec![0.0; channels];
    let mut variances = vec![0.0; channels];
    for batch in &batches {
        let images: Vec<_> =
            batch.iter().map(|&item| decode(&dataset.train[item].path).unwrap()).collect();
        for (channel, weight) in weight.chunks(147).enumerate() {
            let mut values = Vec::new();
            for image in &images {
                for (y, x) in (0..16i64).flat_map(|y| (0..16i64).map(move |x| (y, x))) {
                    let mut sum = 0.0;
                    for (c, r, s) in (0..147).map(|at| (at / 49, at as i64 / 7 % 7, at as i64 % 7))
                    {
                        let (v, u) = (2 * y + r - 3, 2 * x + s - 3);
                        if (0..32).contains(&v) && (0..32).contains(&u) {
                            let byte = image.get_pixel(u as u32, v as u32)[c];
                            let pixel =
                                (f64::from(byte) / 255.0 - f64::from(mean[c])) / f64::from(std[c]);
                            let at = c * 49 + (r * 7 + s) as usize;
                            sum += pixel * f64::from(weight[at]);
                        }
                    }
                    values.push(sum);
                }
            }
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let squares = values.iter().map(|value| (value - mean) * (value - mean));
            means[channel] += mean / batches.len() as f64;
            variances[channel] += squares.sum::<f64>() / (count - 1.0) / batches.len() as f64;
        }
    }
    [means, variances]
}

#[test]
fn classes_are_matched_by_name() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let swapped = wgrad.alter(&a, "swapped.safetensors", |checkpoint| {
        checkpoint.meta.classes = Some(vec!["b".into(), "a".into()]);
        for (name, width) in [("fc.weight", 64), ("fc.bias", 1)] {
            let tensor = checkpoint.tensors.get_mut(name).unwrap();
            if let HostData::F32(data) = &mut tensor.data {
                data.rotate_left(width);
            }
        }
    });
    assert_eq!(wgrad.read(&a).tensors["fc.weight"].shape, [2, 64]);
    let soup = wgrad.fused(&["soup", "--uniform", &a, &swapped]);
    assert_eq!(bits(&soup), bits(&wgrad.read(&a)));
    let soup = wgrad.fused(&["soup", "--uniform", &swapped, &a]);
    assert_eq!(bits(&soup), bits(&wgrad.read(&swapped)), "the first network's order stays");
    assert_eq!(soup.meta.classes.unwrap(), ["b", "a"]);
}

#[test]
fn classes_are_matched_by_their_ids_where_the_folders_go_by_them() {
    let wgrad = Wgrad::with_base();
    let base = "base/weights/best.safetensors";
    let named = wgrad.alter(base, "named.safetensors", |base| {
        base.meta.classes = Some(["bee", "ant"].map(String::from).into());
        base.meta.set_class_ids(&["a", "b"].map(String::from));
    });
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    for (method, option) in [
        (["interpolate"], ["--alpha=0.5"]),
        (["soup"], ["--uniform"]),
        (["ensemble"], ["--average=logits"]),
    ] {
        let scores = [base, &named].map(|first| {
            let ran = wgrad.fuse(&[&method[..], &[first, &a], &option].concat());
            ran.answer();
            assert!(!ran.stderr.contains("for other classes"), "{}", ran.stderr);
            if method == ["ensemble"] {
                wgrad
                    .run(&["evaluate", "--data", "data", "--weights", "out/ensemble.json"])
                    .answer();
            }
            std::fs::remove_dir_all(wgrad.path("out")).unwrap();
            ran.objects().pop().unwrap()["result"].clone()
        });
        assert_eq!(scores[0], scores[1], "{method:?}");
    }
}

#[test]
fn a_pretrained_network_lends_its_backbone() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let parent = wgrad.alter("base/weights/best.safetensors", "parent.safetensors", |parent| {
        parent.meta.classes = Some(["x", "y", "z"].map(String::from).to_vec());
        for (name, rows) in [("fc.weight", 64), ("fc.bias", 1)] {
            let tensor = parent.tensors.get_mut(name).unwrap();
            tensor.shape[0] = 3;
            if let HostData::F32(data) = &mut tensor.data {
                data.extend(vec![0.0; rows]);
            }
        }
    });
    let alphas = ["--alpha", "0.5", "0", "0.5001", "--save-all"];
    let ran = wgrad.fuse(&[&["interpolate", &parent, &a], &alphas[..]].concat());
    ran.answer();
    assert!(ran.stderr.contains("classifier"), "{}", ran.stderr);
    let (parent, child) = (wgrad.read(&parent), wgrad.read(&a));
    let half = wgrad.read("out/weights/alpha-0.500.safetensors");
    let first = |checkpoint: &Checkpoint| checkpoint.tensors["conv1.weight"].as_f32().unwrap()[0];
    assert_eq!(first(&half), (first(&parent) + first(&child)) / 2.0);
    let near = wgrad.read("out/weights/alpha-0.5001.safetensors");
    assert_eq!(near.meta.provenance.unwrap()["fuse"]["alpha"], 0.5001);
    let start = wgrad.read("out/weights/alpha-0.000.safetensors");
    for name in parent.tensors.keys() {
        let from = if name.starts_with("fc.") { &child } else { &parent };
        assert_eq!(start.tensors[name], from.tensors[name], "{name}");
    }
    assert_eq!(half.tensors["fc.weight"], child.tensors["fc.weight"]);
    assert_eq!(half.meta.classes.unwrap(), ["a", "b"]);
    let picture = image::open(wgrad.path("out/curve.png")).unwrap();
    assert!(picture.width() > 3 * picture.height(), "three charts side by side");
    let curve = std::fs::read_to_string(wgrad.path("out/curve.csv")).unwrap();
    assert_eq!(curve.lines().count(), 4, "{curve}");
    assert!(curve.starts_with("alpha,val/accuracy_top1,val/loss,val/ece,"), "{curve}");
}

#[test]
fn a_file_names_its_ancestors() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    wgrad.fuse(&["soup", "--uniform", &a, &b]).answer();
    std::fs::rename(wgrad.path("out"), wgrad.path("soup")).unwrap();
    let soup = "soup/weights/fused.safetensors";
    wgrad.fuse(&["interpolate", soup, &a, "--alpha", "0.25"]).answer();
    let fused = "out/weights/fused.safetensors";
    let provenance = wgrad.read(fused).meta.provenance.unwrap();
    assert_eq!(provenance["fuse"]["alpha"], 0.25);
    assert_eq!(provenance["batch_norm"]["recalibration"]["images"], 18);
    let sha256 = |name: &str| wgrad::checkpoint::file_sha256(&wgrad.path(name)).unwrap();
    let parents = provenance["parents"].as_array().unwrap();
    for (parent, (path, coefficient)) in parents.iter().zip([(soup, 0.75), (a.as_str(), 0.25)]) {
        assert_eq!(parent["path"], path);
        assert_eq!(parent["sha256"], sha256(path));
        assert_eq!(parent["coefficient"], coefficient);
    }
    assert_eq!(parents[0]["provenance"]["parents"][1]["sha256"], sha256(&b));
    let shown = wgrad.run(&["inspect", fused]);
    for line in [
        "├─ 0.7500 × soup/weights/fused.safetensors",
        "│  └─ 0.5000 × b/weights/best.safetensors",
        "└─ 0.2500 × a/weights/best.safetensors",
    ] {
        assert!(shown.answer().contains(line), "{}", shown.stdout);
    }
}
