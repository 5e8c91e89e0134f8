//! What networks were not trained on, where the folder does not say: it follows from their training.

use std::fs;

use serde_json::{Value, json};

use crate::kitchen::write_images;
use crate::program::{Ran, Wgrad};

/// What `wgrad evaluate --json` says.
fn evaluate(wgrad: &Wgrad, weights: &str, options: &[&str]) -> Value {
    let ran = wgrad.run(&[&["evaluate", "--json", "--weights", weights], options].concat());
    ran.answer();
    ran.objects().remove(0)
}

#[test]
fn evaluate_takes_what_training_held_out() {
    let wgrad = Wgrad::with_base();
    write_images(&wgrad.path("flat"), 10);
    let options = "pretrain --lr 0.01 --label-smoothing 0 --arch resnet18-w8 --freeze-epochs 0 --seed 3 \
                   --val-fraction 0.3 --data flat";
    let options: Vec<_> = options.split_whitespace().collect();
    let own = ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--output-dir", "a"];
    let ran = wgrad.run(&[&options, &own[..], &["--json"]].concat());
    ran.answer();
    let end = ran.objects().pop().unwrap();
    let a = "a/weights/best.safetensors";
    let evaluate = |weights: &str, options: &[&str]| evaluate(&wgrad, weights, options);

    let held_out = evaluate(a, &["--data", "flat"]);
    assert_eq!(held_out["images"], 6);
    assert_eq!((&held_out["loss"], &held_out["top1"]), (&end["loss"], &end["top1"]));
    assert_eq!(held_out["split"], "flat (held out by --val-fraction 0.3 --seed 3)");
    for (split, images) in [("val", 6), ("train", 14), ("all", 20)] {
        assert_eq!(evaluate(a, &["--data", "flat", "--split", split])["images"], images, "{split}");
    }
    let told = wgrad.run(&["evaluate", "--data", "flat", "--weights", a]);
    assert!(told.stderr.contains("--split all takes all"), "{}", told.stderr);
    let fitted = evaluate(a, &["--data", "flat", "--split", "all", "--temperature", "fit"]);
    assert_eq!(fitted["scaled"]["fitted_on"], held_out["split"]);

    let none = wgrad.alter(a, "none.safetensors", |a| {
        a.meta.provenance = Some(json!({ "seed": 3, "val_fraction": 0 }));
    });
    assert_eq!(evaluate(&none, &["--data", "flat"])["images"], 20);

    // So it is where the images lie in train/, and elsewhere not.
    fs::create_dir(wgrad.path("inner")).unwrap();
    fs::rename(wgrad.path("flat"), wgrad.path("inner/train")).unwrap();
    let inner = ["--data", "inner", "--split", "val"];
    assert_eq!(evaluate(a, &inner)["loss"], held_out["loss"]);
    // And wherever else they lie.
    for data in ["inner", "inner/train"] {
        assert_eq!(evaluate(a, &["--data", data])["loss"], held_out["loss"], "{data}");
    }
    // Older networks do not tell which images they were: a folder without splits that is not where theirs lay is
    // evaluated whole.
    let older = wgrad.alter(a, "older.safetensors", |a| {
        let provenance = a.meta.provenance.as_mut().unwrap().as_object_mut().unwrap();
        provenance.remove("images_sha256").expect("it is told");
    });
    let other = wgrad.run(&["evaluate", "--json", "--data", "inner/train", "--weights", &older]);
    other.answer();
    assert_eq!(other.objects()[0]["images"], 20);
    assert!(other.stderr.contains("the images of flat, --split val"), "{}", other.stderr);
    assert_eq!(evaluate(&older, &inner)["loss"], held_out["loss"]);
    assert_eq!(evaluate(a, &["--data", "data"])["images"], 12);
    let others = wgrad.run(&["evaluate", "--data", "data/val", "--weights", a]);
    assert!(others.stderr.contains("not just the images of flat that"), "{}", others.stderr);
    assert_eq!(evaluate("base/weights/best.safetensors", &["--data", "data/val"])["images"], 12);

    // What is fused is judged by what the fusion held out.
    let fuse = ["fuse", "soup", a, "--data", "inner", "--seed", "3", "--val-fraction", "0.3"];
    wgrad.run(&[&fuse[..], &["--output-dir", "out"]].concat()).answer();
    let fused = evaluate("out/weights/fused.safetensors", &["--data", "inner"]);
    assert_eq!(fused["loss"], held_out["loss"]);
}

/// Which images are held out follows from all of them, so that one more changes it.
#[test]
fn folders_that_have_changed_since_a_training_are_warned_of() {
    let wgrad = Wgrad::with_base();
    write_images(&wgrad.path("flat"), 10);
    let options = "--freeze-epochs 0 --epochs 1 --image-size 32 --data flat --weights";
    let finetune = |weights: &str, more: &[&str]| {
        let options: Vec<_> = options.split_whitespace().collect();
        let ran = wgrad.run(&[&["finetune"], &options[..], &[weights], more].concat());
        ran.answer();
        ran.stderr
    };
    let base = "base/weights/best.safetensors";
    let told = finetune(base, &["--output-dir", "a"]);
    assert!(!told.contains("has seen"), "{told}");
    let a = "a/weights/best.safetensors";
    let alike = finetune(a, &["--output-dir", "alike"]);
    assert!(!alike.contains("has seen"), "{alike}");
    let seed = finetune(a, &["--seed", "1", "--output-dir", "seed"]);
    assert!(seed.contains("trained with --seed 0, which held out others"), "{seed}");
    let more = finetune(a, &["--val-fraction", "0.4", "--output-dir", "more"]);
    assert!(more.contains("trained with --val-fraction 0.2, which held out fewer"), "{more}");

    let evaluate = || {
        let ran = wgrad.run(&["evaluate", "--json", "--data", "flat", "--weights", a]);
        ran.answer();
        (ran.objects()[0]["images"].as_u64().unwrap(), ran.stderr)
    };
    let (images, told) = evaluate();
    assert!(images == 4 && !told.contains("cannot be told"), "{images}: {told}");
    // Under the same names, but in another folder, lie others.
    fs::create_dir(wgrad.path("elsewhere")).unwrap();
    write_images(&wgrad.path("elsewhere/flat"), 10);
    let empty = |path: &str| image::RgbImage::new(32, 32).save(wgrad.path(path)).unwrap();
    empty("elsewhere/flat/b/0.png");
    let weights = wgrad.path(a);
    let arguments =
        ["evaluate", "--json", "--data", "flat", "--weights", weights.to_str().unwrap()];
    let mut command = wgrad.command(&arguments);
    let other = Ran::from(command.current_dir(wgrad.path("elsewhere")).output().unwrap());
    other.answer();
    assert_eq!(other.objects()[0]["images"], 20);

    let class = fs::read_dir(wgrad.path("flat")).unwrap().next().unwrap().unwrap().path();
    let image = fs::read_dir(&class).unwrap().next().unwrap().unwrap().path();
    fs::copy(&image, class.join("0new.png")).unwrap();
    let (images, told) = evaluate();
    assert!(images == 21 && told.contains("cannot be told"), "{images}: {told}");
    let told = finetune(a, &["--output-dir", "changed"]);
    assert!(told.contains("images have come, gone or been renamed since it was trained"), "{told}");
    let fuse = ["fuse", "soup", a, "--data", "flat", "--image-size", "32", "--output-dir", "out"];
    let fused = wgrad.run(&fuse);
    fused.answer();
    assert!(
        fused.stderr.contains("images have come, gone or been renamed since it was trained"),
        "{}",
        fused.stderr
    );
}

#[test]
fn images_that_a_network_was_trained_on_are_warned_of() {
    let wgrad = Wgrad::with_base();
    let children = ["1", "2"].map(|seed| wgrad.child(seed, &format!("--seed {seed}")));
    // One that held out less than is held out here, and one that held out more.
    let base = "base/weights/best.safetensors";
    let fraction = |name: &str, fraction: f64| {
        wgrad.alter(base, name, |base| {
            base.meta.provenance = Some(json!({ "seed": 1, "val_fraction": fraction }));
        })
    };
    let fractions = [fraction("less.safetensors", 0.1), fraction("more.safetensors", 0.4)];
    let networks: Vec<&str> = children.iter().chain(&fractions).map(String::as_str).collect();
    write_images(&wgrad.path("flat"), 10);
    write_images(&wgrad.path("inner/train"), 10);
    let mut archive = tar::Builder::new(fs::File::create(wgrad.path("data.tar")).unwrap());
    archive.append_dir_all("data", wgrad.path("data")).unwrap();
    archive.finish().unwrap();
    for method in ["soup", "ensemble"] {
        for (data, is_divided) in
            [("flat", true), ("inner", true), ("data", false), ("data.tar", false)]
        {
            let options = ["--seed", "1", "--data", data, "--image-size", "32", "--output-dir"];
            let out = format!("{method}-{data}");
            let ran = wgrad.run(&[&["fuse", method], &networks[..], &options, &[&out]].concat());
            ran.answer();
            let warned = |text: &str| ran.stderr.contains(text);
            assert_eq!(warned("trained with --seed 2, which held out other"), is_divided, "{data}");
            assert_eq!(warned("trained with --val-fraction 0.1, which"), is_divided, "{data}");
            assert!(!warned("trained with --seed 1,"), "{}", ran.stderr);
            assert!(!warned("trained with --val-fraction 0.4"), "{}", ran.stderr);
        }
    }
}

#[test]
fn folders_of_images_beside_train_are_warned_of() {
    let wgrad = Wgrad::with_base();
    write_images(&wgrad.path("data/others"), 1);
    let base = "base/weights/best.safetensors";
    for command in
        [&["finetune", "--max-steps", "1", "--weights", base][..], &["fuse", "soup", base]]
    {
        let ran = wgrad.run(&[command, &["--data", "data", "--output-dir", command[0]]].concat());
        ran.answer();
        assert!(ran.stderr.contains("warning: left out others: "), "{}", ran.stderr);
    }
}
