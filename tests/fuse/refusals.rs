//! What cannot be fused is named, and nothing is written; what hardly can be is warned of.

use wgrad::checkpoint::{Checkpoint, HostData};

use crate::program::Wgrad;

#[test]
fn what_does_not_go_together_is_named_and_nothing_written() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let deep = wgrad.train(
        "pretrain --lr 0.01 --label-smoothing 0 --arch resnet34-w8 --freeze-epochs 0 --max-steps 1",
        "deep",
    );
    let nan = wgrad.alter(&a, "nan.safetensors", |checkpoint| {
        let tensor = checkpoint.tensors.get_mut("layer2.0.conv1.weight").unwrap();
        if let HostData::F32(data) = &mut tensor.data {
            data[7] = f32::NAN;
        }
    });
    let others = wgrad.alter(&a, "others.safetensors", |checkpoint| {
        checkpoint.meta.classes = Some(vec!["a".into(), "wasp".into()]);
    });
    let scaled = wgrad.alter(&a, "scaled.safetensors", |checkpoint| {
        checkpoint.meta.mean = [0.5; 3];
    });
    let truncated = "truncated.safetensors";
    let bytes = std::fs::read(wgrad.path(&a)).unwrap();
    std::fs::write(wgrad.path(truncated), &bytes[..bytes.len() / 2]).unwrap();
    let headless = wgrad.alter(&a, "headless.safetensors", |checkpoint: &mut Checkpoint| {
        checkpoint.meta.classes = None;
        checkpoint.tensors.retain(|name, _| !name.starts_with("fc."));
    });
    for (culprit, words) in [
        (deep.as_str(), "is a resnet34-w8"),
        (&nan, "layer2.0.conv1.weight"),
        (&others, "wasp instead of b"),
        (&scaled, "normalises its input"),
        (truncated, "not a valid safetensors file"),
        (&headless, "no classifier"),
        ("none.safetensors", "no such file"),
    ] {
        for command in [&["interpolate"][..], &["soup", "--uniform"], &["soup", "--greedy"]] {
            // A line needs one classifier only.
            if command[0] == "interpolate" && (culprit == others || culprit == headless) {
                continue;
            }
            let ran = wgrad.fuse(&[command, &[&a, culprit]].concat());
            let error = ran.error(1);
            assert!(error.contains(culprit) && error.contains(words), "{command:?}: {error}");
            assert!(!wgrad.path("out").exists(), "{command:?} {culprit}");
        }
    }
    for (arguments, words) in [
        (&["interpolate", &a, &a, "--alpha", "1.5"][..], "--alpha 1.5"),
        (&["soup", "none"], "nothing to fuse"),
    ] {
        let ran = wgrad.fuse(arguments);
        assert!(ran.error(2).contains(words), "{}", ran.stderr);
    }
    let ran = wgrad.run(&["fuse", "soup", &a, "--data", "data", "--batch-size", "1"]);
    assert!(ran.error(2).contains("--batch-size 1"), "{}", ran.stderr);
    assert!(!wgrad.path("out").exists());
}

#[test]
fn networks_for_inputs_of_different_sizes_need_one_size() {
    let wgrad = Wgrad::with_base();
    let base = "base/weights/best.safetensors";
    let sized = |name: &str, size| wgrad.alter(base, name, |base| base.meta.image_size = size);
    let (large, open) = (sized("large.safetensors", Some(64)), sized("open.safetensors", None));
    let fuse = |method: &[&str], other: &str, options: &[&str]| {
        let own = ["--data", "data", "--output-dir", "out", "--json"];
        wgrad.run(&[&["fuse"], method, &[base, other], &own, options].concat())
    };
    for method in [&["interpolate"][..], &["soup", "--uniform"], &["ensemble"]] {
        let ran = fuse(method, &large, &[]);
        let error = ran.error(2);
        assert!(error.contains("32 and 64 px (base/weights/best.safetensors, large"), "{error}");
        assert!(error.contains("give one --image-size"), "{error}");
        assert!(!wgrad.path("out").exists(), "{method:?}");
    }
    for (other, options, size) in [(&large, &["--image-size", "48"][..], 48), (&open, &[], 32)] {
        fuse(&["soup", "--uniform"], other, options).answer();
        assert_eq!(wgrad.read("out/weights/fused.safetensors").meta.image_size, Some(size));
        std::fs::remove_dir_all(wgrad.path("out")).unwrap();

        // Whoever takes the ensemble's file reads images as they were read to measure it.
        let ran = fuse(&["ensemble"], other, options);
        ran.answer();
        let measured = ran.objects().pop().unwrap()["result"]["val"]["loss"].as_f64().unwrap();
        let weights = ["--weights", "out/ensemble.json"];
        let ran = wgrad.run(&[&["evaluate", "--data", "data", "--json"], &weights[..]].concat());
        ran.answer();
        let evaluated = ran.objects()[0]["loss"].as_f64().unwrap();
        assert!((evaluated - measured).abs() < 1e-6, "{size}: {evaluated} {measured}");
        let ran = wgrad.run(&[&["predict", "data/val/a/0.png"], &weights[..]].concat());
        ran.answer();
        assert!(ran.stderr.contains(&format!("{size} px")), "{}", ran.stderr);
        wgrad.run(&[&["export", "out.onnx"], &weights[..]].concat()).answer();
        std::fs::remove_dir_all(wgrad.path("out")).unwrap();
    }
    let manifest = format!(r#"{{"image_size": 1000000, "members": [{{"path": "{base}"}}]}}"#);
    std::fs::write(wgrad.path("huge.json"), manifest).unwrap();
    let ran = wgrad.run(&["predict", "data/val/a/0.png", "--weights", "huge.json"]);
    assert!(ran.error(1).contains("huge.json: --image-size 1000000"), "{}", ran.stderr);
}

#[test]
fn ids_for_other_outputs_than_there_are_name_no_class() {
    let wgrad = Wgrad::with_base();
    let surplus = wgrad.alter("base/weights/best.safetensors", "surplus.safetensors", |base| {
        base.meta.classes = Some(["ant", "bee"].map(String::from).into());
        base.meta.set_class_ids(&["x", "y", "a", "b"].map(String::from));
    });
    let ran = wgrad.run(&["evaluate", "--data", "data", "--weights", &surplus]);
    assert!(ran.error(1).contains("class \"a\" is unknown"), "{}", ran.stderr);
}

#[test]
fn strangers_are_warned_of() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let options = "pretrain --lr 0.01 --label-smoothing 0 --arch resnet18-w8 --freeze-epochs 0 --seed 9 --max-steps 1";
    let stranger = wgrad.train(options, "stranger");
    let ran = wgrad.fuse(&["soup", "--uniform", &a, &stranger]);
    ran.answer();
    assert!(ran.stderr.contains("no common ancestor"), "{}", ran.stderr);
    std::fs::remove_dir_all(wgrad.path("out")).unwrap();
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    let ran = wgrad.fuse(&["soup", "--uniform", &a, &b]);
    ran.answer();
    assert!(!ran.stderr.contains("no common ancestor"), "{}", ran.stderr);
    for command in [&["finetune"][..], &["fuse", "distill"]] {
        let ran = wgrad.run(&[command, &["--resume", "out"]].concat());
        assert!(ran.error(2).contains("fuse soup; that cannot be gone on with"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
}

/// A stem of the other sign computes the same, while its average with the first computes nothing.
#[test]
fn a_barrier_is_warned_of() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--epochs 12 --opt adam --lr 0.003 --augment none");
    let mirrored = wgrad.alter(&a, "mirrored.safetensors", |checkpoint| {
        for name in ["conv1.weight", "bn1.weight", "bn1.running_mean"] {
            if let HostData::F32(data) = &mut checkpoint.tensors.get_mut(name).unwrap().data {
                data.iter_mut().for_each(|value| *value = -*value);
            }
        }
    });
    for arguments in [
        &["soup", &a, &mirrored, "--uniform"][..],
        &["interpolate", &a, &mirrored, "--alpha", "0", "0.5", "1"],
    ] {
        let ran = wgrad.fuse(arguments);
        ran.answer();
        assert!(ran.stderr.contains("there is a barrier"), "{arguments:?}: {}", ran.stderr);
        std::fs::remove_dir_all(wgrad.path("out")).unwrap();
    }
    let ran = wgrad.fuse(&["soup", "--uniform", &a, &a]);
    ran.answer();
    assert!(!ran.stderr.contains("there is a barrier"), "{}", ran.stderr);
}
