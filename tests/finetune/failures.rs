//! What goes wrong outside the program ends it with one line that says what to do, never with a panic.

use std::fs;
use std::path::Path;

use image::{DynamicImage, RgbImage};
use wgrad::checkpoint::{Checkpoint, Dtype, HostData};

use crate::program::Wgrad;
use crate::resume::assert_same;
use crate::run::{numbers, write_images};

#[test]
fn data_that_cannot_be_trained_on_is_told() {
    let wgrad = Wgrad::with_images();
    fs::create_dir(wgrad.path("empty")).unwrap();
    write_images(&wgrad.path("one-class"), &[3], 32);
    write_images(&wgrad.path("empty-class"), &[3], 32);
    fs::create_dir(wgrad.path("empty-class/b")).unwrap();
    write_images(&wgrad.path("unknown/train"), &[3, 3], 32);
    write_images(&wgrad.path("unknown/val"), &[1, 1, 1], 32);
    for (data, texts) in [
        ("missing", &["missing: no such folder", "--data"][..]),
        ("data/train/a/0.png", &["0.png: is a file"]),
        ("empty", &["empty: no images and no class folders"]),
        ("one-class", &["only one class, \"a\"", "two class folders"]),
        ("empty-class", &["empty-class/b: the class folder holds no image"]),
        ("unknown", &["unknown/val/c: class \"c\" is unknown", "Rename or remove"]),
    ] {
        let ran = wgrad.finetune("run", &format!("--data {data}"));
        let error = ran.error(1);
        assert!(error.starts_with("error: looking for images in "), "{error}");
        for text in texts {
            assert!(error.contains(text), "{data}: no {text:?} in {error}");
        }
        assert!(!wgrad.path("run").exists(), "{data}: nothing was begun");
    }
}

/// An image whose header can still be read where its end is missing.
fn jpeg() -> Vec<u8> {
    let mut jpeg = Vec::new();
    let noise =
        RgbImage::from_fn(90, 90, |x, y| image::Rgb([(x * y) as u8, (x + y) as u8, y as u8]));
    let image = DynamicImage::ImageRgb8(noise);
    image.write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    jpeg
}

#[test]
fn images_that_cannot_be_read_are_counted_among_all() {
    let wgrad = Wgrad::with_images();
    write_images(&wgrad.path("data/train"), &[16, 15], 32);
    let jpeg = jpeg();
    let cut = |name: &str| fs::write(wgrad.path(name), &jpeg[..jpeg.len() / 2]).unwrap();
    // In the last batch of eight, which is all that is left.
    cut("data/train/b/cut.jpg");
    let options = "--epochs 1 --no-shuffle";
    wgrad.finetune("whole", options).answer();
    wgrad.finetune("run", &format!("{options} --max-steps 7")).answer();
    wgrad.resume("run", "--max-steps 8").answer();
    assert_eq!(numbers(&wgrad.lines("run/steps.jsonl"), "images").last(), Some(&3.0));
    assert_same(&wgrad, "run", "whole");

    // In the first batch, which is drawn.
    fs::rename(wgrad.path("data/train/b/cut.jpg"), wgrad.path("data/train/a/0.jpg")).unwrap();
    let ran = wgrad.finetune("drawn", &format!("{options} --tensorboard"));
    ran.answer();
    for name in ["train_batch0.jpg", "report.html", "tensorboard"] {
        assert!(wgrad.path("drawn").join(name).exists(), "{name}: {}", ran.stderr);
    }
}

#[test]
fn validation_without_images_is_told() {
    let wgrad = Wgrad::with_images();
    let options = "--val-fraction 0 --data data/train --epochs 1 --patience 2";
    let ran = wgrad.finetune("run", options);
    ran.answer();
    assert!(ran.stderr.contains("warning: --patience 2 does nothing"), "{}", ran.stderr);

    write_images(&wgrad.path("data/train"), &[16, 15], 32);
    fs::remove_dir_all(wgrad.path("data/val/b")).unwrap();
    fs::remove_file(wgrad.path("data/val/a/1.png")).unwrap();
    fs::write(wgrad.path("data/val/a/0.png"), "hello").unwrap();
    let ran = wgrad.finetune("unreadable", "--epochs 1");
    assert!(ran.error(1).contains("data/val: none of the images can be read"), "{}", ran.stderr);
}

#[test]
fn images_that_cannot_be_read_are_listed() {
    let jpeg = jpeg();
    for (name, bytes, text) in [
        ("text.jpg", &b"hello"[..], "not an image"),
        ("cut.jpg", &jpeg[..jpeg.len() / 2], "truncated"),
        ("nothing.png", b"", "empty (0 bytes)"),
    ] {
        let wgrad = Wgrad::with_images();
        fs::write(wgrad.path("data/train/a").join(name), bytes).unwrap();
        let ran = wgrad.finetune("run", "--epochs 1");
        ran.error(1);
        for text in [name, text, "more than 5 %", "repair or remove"] {
            assert!(ran.stderr.contains(text), "no {text:?} in {}", ran.stderr);
        }

        // Among many good ones it is left out.
        write_images(&wgrad.path("data/train"), &[16, 15], 32);
        let ran = wgrad.finetune("many", "--epochs 1 --freeze-epochs 1");
        ran.answer();
        let warnings: Vec<_> = ran.stderr.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(warnings.len(), 1, "told once: {}", ran.stderr);
        assert!(warnings[0].starts_with("warning: ") && warnings[0].contains(text));
        let images: f64 = numbers(&wgrad.lines("many/steps.jsonl"), "images").iter().sum();
        assert_eq!(images, 62.0, "31 in each epoch");
    }
}

#[test]
fn images_of_odd_shapes_are_images() {
    let wgrad = Wgrad::with_images();
    RgbImage::new(1, 1).save(wgrad.path("data/train/a/dot.png")).unwrap();
    RgbImage::new(10_000, 3).save(wgrad.path("data/train/b/line.png")).unwrap();
    let images = |name: &str, options: &str| -> f64 {
        numbers(&wgrad.steps(name, options), "images").iter().sum()
    };
    assert_eq!(images("plain", "--epochs 1"), 12.0);
    assert_eq!(images("strong", "--epochs 1 --augment strong"), 12.0);
}

#[test]
fn one_image_a_class_is_enough() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data"), &[1, 1], 32);
    let ran = wgrad.finetune("run", "--json --freeze-epochs 1 --epochs 1 --batch-size 1");
    // At 32 px the last batch norm sees one value a channel of one image.
    assert!(ran.error(2).contains("raise --batch-size"), "{}", ran.stderr);
    let ran = wgrad.finetune("run", "--epochs 1 --batch-size 3 --drop-last");
    assert!(ran.error(2).contains("leave --drop-last out"), "{}", ran.stderr);
    assert!(!wgrad.path("run").exists(), "nothing was begun");
    wgrad.finetune("head", "--freeze-epochs 1 --epochs 0 --batch-size 1").answer();
    let ran = wgrad.finetune("two", "--json --freeze-epochs 1 --epochs 1");
    ran.answer();
    let events = ran.objects();
    assert_eq!(events.last().unwrap()["event"], "end");
    assert!(events.last().unwrap()["best_epoch"].is_null(), "there is nothing to validate with");
    assert!(ran.stderr.contains("warning: no class has an image to spare for validation"));
    assert!(wgrad.path("two/weights/best.safetensors").is_file());
}

#[test]
fn weights_that_cannot_be_started_from_are_told() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("start", "--max-steps 1").answer();
    let good = wgrad.path("start/weights/last.safetensors");
    let bytes = fs::read(&good).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(wgrad.path(name), bytes).unwrap();
    let raw = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let edit = |name: &str, change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = Checkpoint::read(&good).unwrap();
        change(&mut checkpoint);
        checkpoint.write(wgrad.path(name), Dtype::F32).unwrap();
    };
    let stem = |number: f32| {
        move |checkpoint: &mut Checkpoint| {
            let stem = checkpoint.tensors.get_mut("conv1.weight").unwrap();
            let HostData::F32(data) = &mut stem.data else { unreachable!() };
            data[7] = number;
        }
    };
    write("cut", &bytes[..bytes.len() / 2]);
    write("huge", &[&(1u64 << 60).to_le_bytes()[..], b"{}"].concat());
    let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    write("overlap", &[raw(overlap), vec![0; 4]].concat());
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = (str::from_utf8(&bytes[8..end]).unwrap(), &bytes[end..]);
    let integers = header.replace("\"F32\"", "\"I32\"");
    write("integers", &[raw(&integers), data.to_vec()].concat());
    let reshaped = header.replacen("[8,3,7,7]", "[8,7,3,7]", 1);
    write("reshaped", &[raw(&reshaped), data.to_vec()].concat());
    edit("nan", &stem(f32::NAN));
    edit("inf", &stem(f32::INFINITY));
    for (name, texts) in [
        ("none-here", &["none-here: there is no such file", "bundled, imagenet"][..]),
        ("cut", &["cut: ", "incomplete", "copy it again"]),
        ("huge", &["huge: "]),
        ("overlap", &["overlap: "]),
        ("integers", &["integers: ", "I32"]),
        ("reshaped", &["reshaped: ", "conv1.weight", "[8, 7, 3, 7]"]),
        ("nan", &["nan: ", "NaN", "conv1.weight", "earlier checkpoint"]),
        ("inf", &["inf: ", "infinite", "conv1.weight"]),
        ("data", &["data: "]),
    ] {
        let ran = wgrad.finetune("run", &format!("--weights ./{name}"));
        let error = ran.error(1);
        for text in [&["error: ", "weights"], texts].concat() {
            assert!(error.contains(text), "{name}: no {text:?} in {error}");
        }
        assert!(!wgrad.path("run").exists(), "{name}: nothing was begun");
    }
    let ran =
        wgrad.finetune("run", "--weights ./start/weights/last.safetensors --arch resnet34-w8");
    assert!(ran.error(2).contains("resnet34"), "{}", ran.stderr);
}

#[test]
fn a_run_that_diverges_says_when_and_where() {
    let wgrad = Wgrad::with_images();
    // Which layer overflows first depends on the order of sums, but not which is the only one trained.
    let layers: &[&str] = &["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"];
    for (name, options, places) in [
        ("sgd", "--lr 1e30 --lr-scheduler constant", layers),
        ("adam", "--opt adam --lr 1e30 --lr-scheduler constant", layers),
        ("head", "--freeze-epochs 1 --head-lr 1e38 --lr-scheduler constant", &["fc"]),
    ] {
        let ran = wgrad.finetune(name, options);
        let error = ran.error(1);
        for text in ["the loss is ", "at step ", "learning rate 1e3", " is in ", "try a lower --lr"]
        {
            assert!(error.contains(text), "{name}: no {text:?} in {error}");
        }
        assert!(places.iter().any(|place| error.contains(place)), "{name}: no layer in {error}");
        let steps = wgrad.lines(&format!("{name}/steps.jsonl"));
        let (last, before) = steps.split_last().unwrap();
        assert!(last["loss"].is_null(), "{last}");
        assert!(error.contains(&format!("at step {} ", last["step"])), "{error}");
        assert!(before.iter().all(|step| step["loss"].is_f64()));
    }
}

/// A network whose running means are so large that only evaluation, which goes by them, overflows.
#[test]
fn a_network_without_answers_is_wrong_and_told_of() {
    let wgrad = Wgrad::with_images();
    wgrad.finetune("start", "--max-steps 1").answer();
    let mut checkpoint = Checkpoint::read(wgrad.path("start/weights/last.safetensors")).unwrap();
    for (name, tensor) in &mut checkpoint.tensors {
        if let (true, HostData::F32(data)) = (name.ends_with("running_mean"), &mut tensor.data) {
            data.fill(-3e38);
        }
    }
    checkpoint.write(wgrad.path("huge.safetensors"), Dtype::F32).unwrap();
    let options = "--weights huge.safetensors --freeze-epochs 0 --lr 0 --epochs 3 --json";
    let ran = wgrad.finetune("run", &format!("{options} --max-steps 3"));
    ran.answer();
    assert!(
        ran.stderr.contains("after epoch 1 is NaN, and the network has no answer to 4 of 4 images"),
        "{}",
        ran.stderr
    );
    let val = |ran: &crate::program::Ran, epoch: usize| {
        let events = ran.objects();
        let mut epochs = events.iter().filter(|event| event["event"] == "epoch");
        epochs.nth(epoch).unwrap()["epoch"]["val"].clone()
    };
    assert_eq!(val(&ran, 0), serde_json::json!({ "loss": null, "top1": 0.0, "top5": 0.0 }));
    // It can be gone on with.
    let ran = wgrad.resume("run", "--json --max-steps 6");
    ran.answer();
    assert!(ran.stderr.contains("validation loss after epoch 2 is NaN"), "{}", ran.stderr);

    let image = "data/val/a/0.png";
    for arguments in [
        &["predict", image][..],
        &["explain", image],
        &["evaluate", "--data", "data"],
        &["evaluate", "--data", "data", "--temperature", "fit"],
    ] {
        let ran = wgrad.run(&[arguments, &["--weights", "huge.safetensors"]].concat());
        let error = ran.error(1);
        assert!(error.contains(image) && ran.stderr.contains("is no number"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let wgrad = Wgrad::with_images();
    fs::write(wgrad.path("file"), "").unwrap();
    for folder in ["file", "file/run"] {
        let ran = wgrad.finetune(folder, "--epochs 1");
        let error = ran.error(1);
        assert!(error.starts_with("error: making the output folder: file"), "{error}");
    }
    let explain = ["explain", "data/val/a/0.png", "--weights", "bundled", "--output-dir", "file"];
    let ran = wgrad.run(&explain);
    assert!(ran.error(1).starts_with("error: making the output folder: file"), "{}", ran.stderr);
}

/// A limit on the size of files stands in for a full disk.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_is_told_and_nothing_half_written_is_left() {
    let wgrad = Wgrad::with_images();
    let script = format!(
        "trap '' XFSZ; ulimit -f 100; exec '{}' finetune --data data --weights none --arch \
         resnet18-w8 --image-size 32 --epochs 1 --output-dir run",
        env!("CARGO_BIN_EXE_wgrad")
    );
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(["-c", &script]).current_dir(wgrad.path("")).output().unwrap();
    let ran = crate::program::Ran::from(output);
    let error = ran.error(1);
    assert!(
        error.starts_with("error: saving the weights: run/weights/last.safetensors: "),
        "{error}"
    );
    assert_eq!(fs::read_dir(wgrad.path("run/weights")).unwrap().count(), 0);
    assert!(!wgrad.path("run/state/state.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn a_folder_without_permission_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();

    let wgrad = Wgrad::with_images();
    let locked = wgrad.path("data/train/b");
    set(&locked, 0o000);
    if fs::read_dir(&locked).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let ran = wgrad.finetune("run", "--epochs 1");
    set(&locked, 0o755);
    let error = ran.error(1);
    assert!(error.contains("data/train/b: Permission denied"), "{error}");

    fs::create_dir(wgrad.path("locked")).unwrap();
    set(&wgrad.path("locked"), 0o555);
    let ran = wgrad.finetune("locked/run", "--epochs 1");
    assert!(ran.error(1).contains("making the output folder: locked/run: Permission denied"));
}
