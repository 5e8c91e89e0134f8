//! Data sets on disk, decoding, resizing against torchvision's output, and the loader.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageFormat, Rgb, RgbImage};
use tempfile::TempDir;
use wgrad::Error;
use wgrad::data::{
    Augment, AutoAugment, Batch, Dataset, Item, Labelled, Loader, Order, ScanOptions, Transform,
    decode, decode_bytes, demo_root, image_files, resize_center_crop,
};

// Data sets on disk.

#[test]
fn the_bundled_set_is_found_and_whole() {
    let root = demo_root().unwrap();
    let dataset = scan(&root).unwrap();
    let classes = "bird bug clothing computer dessert drink flower fruit house mammal";
    assert_eq!(dataset.classes, classes.split(' ').collect::<Vec<_>>());
    assert_eq!(dataset.train.len() + dataset.val.len(), 402);
    assert_eq!(dataset.per_class(&dataset.val), per_class_on_disk(&root.join("val")));
    assert_eq!(dataset.per_class(&dataset.train), per_class_on_disk(&root.join("train")));
    assert!(dataset.test.is_empty() && dataset.skipped.is_empty());
}

#[test]
fn images_come_in_image_folder_order() {
    let folder = images(&[
        "b/2.png",
        "b/10.PNG",
        "b/nested/1.jpeg",
        "b/nested two/0.bmp",
        "b/z.webp",
        "B/1.gif",
        "a/1.jpg",
        "a/2.JPG",
        "a/3.tif",
        "a/4.ppm",
        "a/5.tiff",
        "a/6.pgm",
    ]);
    fs::copy(folder.path().join("a/1.jpg"), folder.path().join("a/3.jfif")).unwrap();
    let options = ScanOptions { val_fraction: 0.0, seed: 0 };
    let dataset = Dataset::scan(folder.path(), &options).unwrap();
    assert_eq!(dataset.classes, ["B", "a", "b"]);
    // os.walk's folders sorted as text, then file names: what torchvision does.
    let expected = [
        "B/1.gif",
        "a/1.jpg",
        "a/2.JPG",
        "a/3.jfif",
        "a/3.tif",
        "a/4.ppm",
        "a/5.tiff",
        "a/6.pgm",
        "b/10.PNG",
        "b/2.png",
        "b/z.webp",
        "b/nested/1.jpeg",
        "b/nested two/0.bmp",
    ];
    let mut expected: Vec<PathBuf> = expected.iter().map(|name| folder.path().join(name)).collect();
    assert_eq!(paths(&dataset.train), expected);
    assert_eq!(labels(&dataset.train), [0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    assert!(dataset.val.is_empty() && dataset.skipped.is_empty());
    expected.drain(..8);
    assert_eq!(image_files(&folder.path().join("b")).unwrap().0, expected);
}

#[test]
fn hidden_files_are_ignored_and_others_counted() {
    let folder = images(&[
        "a/1.png",
        "a/2.png",
        "b/1.png",
        "b/2.png",
        "a/.hidden.png",
        "b/.ipynb_checkpoints/1.png",
        ".git/1.png",
        "__MACOSX/1.png",
    ]);
    for other in ["a/.DS_Store", "a/Thumbs.db", "a/notes.txt", "a/1.HEIC", "b/2.heic", "b/LICENSE"]
    {
        fs::write(folder.path().join(other), "x").unwrap();
    }
    fs::write(folder.path().join("README.md"), "about").unwrap();
    let dataset = scan(folder.path()).unwrap();
    assert_eq!(dataset.classes, ["a", "b"]);
    assert_eq!((dataset.train.len(), dataset.val.len()), (2, 2));
    assert!(dataset.skipped.is_empty());
    assert_eq!(
        dataset.others.to_string(),
        "4 files that are no images by their names: 2 heic, 1 without an extension, 1 txt"
    );
}

#[test]
fn splits_go_by_their_usual_names() {
    for [train, val, test] in [
        ["train", "val", "test"],
        ["train", "valid", "test"],
        ["train", "validation", "test"],
        ["Train", "Val", "Test"],
        ["TRAIN", "VALID", "testing"],
        ["Training", "Validation", "Testing"],
    ] {
        let names =
            [format!("{train}/a/1.png"), format!("{train}/b/1.png"), format!("{test}/b/1.png")];
        let folder = images(&names.each_ref().map(String::as_str));
        image(&folder.path().join(val).join("b/2.png"));
        let classes = ["a", "b"].map(str::to_owned);
        for (split, images) in [(Some("train"), 2), (Some("val"), 1), (Some("test"), 1), (None, 1)]
        {
            let labelled = Labelled::scan(folder.path(), &classes, split, None).unwrap();
            assert_eq!(labelled.items.len(), images, "{split:?} of {train}, {val}, {test}");
        }
        let dataset = scan(folder.path()).unwrap();
        assert_eq!(labels(&dataset.train), [0, 1]);
        assert_eq!(paths(&dataset.val), [folder.path().join(val).join("b/2.png")]);
        assert_eq!(labels(&dataset.val), [1], "a class missing from {val} is fine");
        assert_eq!(labels(&dataset.test), [1]);
    }
}

#[test]
fn what_was_trained_in_a_folder_is_none_of_its_images() {
    let folder = images(&[
        "a/1.png",
        "b/1.png",
        "runs/finetune/results.png",
        "runs/finetune/state/1.png",
        "runs/other/weights/1.png",
        "own/results.png",
        "own/state/1.png",
    ]);
    assert_eq!(scan(folder.path()).unwrap().classes, ["a", "b", "own", "runs"]);
    for run in ["runs/finetune", "own"] {
        fs::write(folder.path().join(run).join("args.json"), "{}").unwrap();
    }
    let dataset = scan(folder.path()).unwrap();
    assert_eq!(dataset.classes, ["a", "b"]);
    assert!(dataset.left_out.is_empty());
    let (files, _) = image_files(folder.path()).unwrap();
    assert_eq!(files.len(), 2, "{files:?}");
}

#[test]
fn a_training_split_alone_is_divided() {
    let folder =
        images(&["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/1.png"]);
    let dataset = scan(folder.path()).unwrap();
    assert_eq!((labels(&dataset.train), labels(&dataset.val)), (vec![0, 1], vec![0, 1]));
    assert!(dataset.test.is_empty(), "images without classes are no labelled test split");
}

#[test]
fn a_class_may_be_called_train() {
    let folder = images(&["train/1.png", "train/2.png", "car/1.png", "car/2.png"]);
    assert_eq!(scan(folder.path()).unwrap().classes, ["car", "train"]);

    // Not if it has folders itself; then the others are not left out silently.
    let folder = images(&[
        "train/fast/1.png",
        "train/fast/2.png",
        "train/slow/1.png",
        "car/1.png",
        "bus/old/1.png",
        "test/1.png",
        "valid/slow/1.png",
    ]);
    fs::create_dir(folder.path().join("labels")).unwrap();
    fs::write(folder.path().join("labels/1.txt"), "slow").unwrap();
    let dataset = scan(folder.path()).unwrap();
    assert_eq!(dataset.classes, ["fast", "slow"]);
    assert_eq!(dataset.left_out, ["bus", "car"].map(|name| folder.path().join(name)));
    let warning = dataset.left_out_warning().unwrap();
    assert!(warning.starts_with("left out bus; car: "), "{warning}");
    fs::remove_dir_all(folder.path().join("car")).unwrap();
    fs::remove_dir_all(folder.path().join("bus")).unwrap();
    assert_eq!(scan(folder.path()).unwrap().left_out_warning(), None);
}

#[test]
fn holding_out_is_stratified_and_seeded() {
    let names =
        |class: &'static str, count| (0..count).map(move |at| format!("{class}/{at:02}.png"));
    let names: Vec<String> = names("many", 40)
        .chain(names("few", 5))
        .chain(names("pair", 2))
        .chain(names("one", 1))
        .collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let split = |val_fraction, seed| {
        Dataset::scan(folder.path(), &ScanOptions { val_fraction, seed }).unwrap()
    };
    let dataset = split(0.2, 7);
    assert_eq!(dataset.classes, ["few", "many", "one", "pair"]);
    assert_eq!(dataset.per_class(&dataset.val), [1, 8, 0, 1]);
    assert_eq!(dataset.per_class(&dataset.train), [4, 32, 1, 1]);
    let mut all = [dataset.train.clone(), dataset.val.clone()].concat();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(all, split(0.0, 0).train, "every image is in one of the lists");
    assert!(dataset.val.is_sorted_by(|a, b| a.path < b.path));
    assert_eq!(split(0.2, 7).val, dataset.val);
    assert_ne!(split(0.2, 8).val, dataset.val);
    assert_eq!(split(0.99, 7).per_class(&split(0.99, 7).train), [1, 1, 1, 1]);
    let third = split(0.33, 7);
    assert_eq!(third.per_class(&third.val), [2, 13, 0, 1], "1.65 of 5 are 2");
    for fraction in [1.0, -0.1, f64::NAN] {
        let options = ScanOptions { val_fraction: fraction, seed: 0 };
        assert!(matches!(Dataset::scan(folder.path(), &options), Err(Error::Usage(_))));
    }
}

#[test]
fn a_test_split_is_held_out_of_the_validation_images() {
    let names = ["a", "b"].map(|class| (0..20).map(move |at| format!("{class}/{at:02}.png")));
    let names: Vec<String> = names.into_iter().flatten().collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let whole = Dataset::scan(folder.path(), &ScanOptions { val_fraction: 0.5, seed: 0 }).unwrap();
    let held_out = |fraction, seed| {
        let mut dataset = whole.clone();
        dataset.hold_out_test(fraction, seed).map(|()| dataset)
    };
    let dataset = held_out(0.3, 0).unwrap();
    assert_eq!(dataset.per_class(&dataset.val), [7, 7]);
    assert_eq!(dataset.per_class(&dataset.test), [3, 3]);
    assert_eq!(dataset.train, whole.train);
    let mut all = [dataset.val.clone(), dataset.test.clone()].concat();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(all, whole.val, "every image is in one of the lists");
    assert_eq!(held_out(0.3, 0).unwrap().test, dataset.test);
    assert_ne!(held_out(0.3, 1).unwrap().test, dataset.test);
    assert!(held_out(0.0, 0).unwrap().test.is_empty());
    for fraction in [1.0, -0.1, f64::NAN] {
        assert!(message(held_out(fraction, 0)).contains("--test-fraction"));
    }
    let mut dataset = dataset;
    assert!(message(dataset.hold_out_test(0.5, 0)).contains("a test split already"));
}

#[test]
fn a_few_unreadable_images_are_skipped_and_many_are_an_error() {
    let names: Vec<String> = (0..60).map(|at| format!("{}/{at:02}.png", at % 2)).collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    fs::write(folder.path().join("0/02.png"), "").unwrap();
    fs::write(folder.path().join("1/text.jpg"), "this is no picture").unwrap();
    let dataset = scan(folder.path()).unwrap();
    assert_eq!(dataset.train.len() + dataset.val.len(), 59);
    let skipped: Vec<_> = dataset.skipped.iter().map(|skipped| &skipped.path).collect();
    assert_eq!(skipped, [&folder.path().join("0/02.png"), &folder.path().join("1/text.jpg")]);
    assert!(dataset.skipped[0].reason.contains("empty"), "{:?}", dataset.skipped);
    assert!(dataset.skipped[1].reason.contains("not an image"), "{:?}", dataset.skipped);

    // Four of 62 are too many.
    for name in ["0/04.png", "1/05.png"] {
        fs::write(folder.path().join(name), [0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0]).unwrap();
    }
    let error = message(scan(folder.path()));
    for part in ["4 of 61 images", "5 %", "02.png: the file is empty", "text.jpg", "05.png"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_validation_split_that_cannot_be_read_is_an_error() {
    let names: Vec<String> = (0..40).map(|at| format!("train/{}/{at:02}.png", at % 2)).collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    fs::create_dir_all(folder.path().join("val/0")).unwrap();
    fs::write(folder.path().join("val/0/0.png"), "this is no picture").unwrap();
    let error = message(scan(folder.path()));
    assert!(error.contains("val: none of the images can be read"), "{error}");
}

#[test]
fn a_long_list_of_unreadable_images_is_cut() {
    let folder = images(&["a/good.png", "b/good.png"]);
    for at in 0..50 {
        fs::write(folder.path().join(format!("a/{at:02}.png")), "").unwrap();
    }
    let error = message(scan(folder.path()));
    assert!(error.contains("50 of 52 images") && error.contains("and 30 more"), "{error}");
    assert_eq!(error.lines().count(), 22);
}

#[test]
fn unusable_folders_are_explained() {
    let empty = TempDir::new().unwrap();
    let cases = [
        (empty, "no images and no class folders"),
        (images(&["1.png", "2.png"]), "2 images, but not in class folders"),
        (images(&["a/1.png", "a/2.png"]), "only one class, \"a\"; training needs at least two"),
        (images(&["val/a/1.png", "val/b/1.png"]), "has val/ but no train/"),
        (images(&["train/1.png", "val/2.png"]), "not in class folders"),
        (images(&["train/a/1.png", "train/b/1.png", "val/c/1.png"]), "class \"c\" is unknown"),
        (
            images(&["train/a/1.png", "train/b/1.png", "test/c/1.png"]),
            "known ones are a; b. Rename",
        ),
        (images(&["train/a/1.png", "train/b/1.png", "val/1.png"]), "not in class folders"),
    ];
    for (folder, expected) in &cases {
        let error = message(scan(folder.path()));
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }
    let error = message(scan(cases[1].0.path()));
    assert!(error.contains("/cat/1.jpg") && error.contains("train/ and val/"), "{error}");

    let folder = images(&["a/1.png"]);
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/1.heic"), "x").unwrap();
    let error = message(scan(folder.path()));
    assert!(
        error.contains("holds no image (1 file that is no image by its name: 1 heic)"),
        "{error}"
    );

    let error = message(scan(&folder.path().join("missing")));
    assert!(error.contains("missing: no such folder"), "{error}");
    let error = message(scan(&folder.path().join("a/1.png")));
    assert!(error.contains("is a file"), "{error}");
}

#[test]
fn classes_whose_images_are_all_unreadable_are_an_error() {
    let names: Vec<String> = (0..60).map(|at| format!("a/{at:02}.png")).collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/1.png"), "").unwrap();
    let error = message(scan(folder.path()));
    assert!(error.contains("none of the class's images can be read"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_folder_without_permission_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let folder = images(&["a/1.png", "b/1.png"]);
    let locked = folder.path().join("a");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let allowed_anyway = locked.read_dir().is_ok();
    let result = scan(folder.path());
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    if allowed_anyway {
        println!("skipped: this user may read everything");
        return;
    }
    assert!(message(result).contains("listing the images"));
}

#[cfg(unix)]
#[test]
fn links_that_lead_in_circles_or_nowhere_are_harmless() {
    use std::os::unix::fs::symlink;
    let names: Vec<String> = (0..40).map(|at| format!("{}/{at:02}.png", at % 2)).collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    symlink(folder.path().join("0"), folder.path().join("0/again")).unwrap();
    symlink("/nowhere", folder.path().join("0/broken.png")).unwrap();
    let dataset = scan(folder.path()).unwrap();
    assert_eq!(dataset.train.len() + dataset.val.len(), 40);
    assert!(dataset.skipped[0].reason.contains("cannot be read"), "{:?}", dataset.skipped);
}

#[test]
fn evaluation_labels_by_the_given_classes() {
    let classes = ["a", "b", "c"].map(str::to_owned);
    let folder = images(&[
        "train/a/1.png",
        "valid/c/1.png",
        "valid/b/1.png",
        "test/a/1.png",
        "test/a/2.png",
    ]);
    let labelled = |split| Labelled::scan(folder.path(), &classes, split, None).unwrap();
    assert_eq!(labels(&labelled(None).items), [1, 2]);
    assert_eq!(labels(&labelled(Some("val")).items), [1, 2]);
    assert_eq!(labels(&labelled(Some("test")).items), [0, 0]);
    assert_eq!(labels(&labelled(Some("train")).items), [0]);
    assert_eq!(labelled(None).root, folder.path().join("valid"));
    let error = message(Labelled::scan(folder.path(), &classes, Some("dev"), None));
    assert!(error.contains("dev: no such split"), "{error}");
    for path in ["test/../valid", "./test", "test/", "..", "/", ""] {
        let error = message(Labelled::scan(folder.path(), &classes, Some(path), None));
        assert!(error.contains("it is a folder's name"), "{path}: {error}");
    }

    // Class folders directly; one class is enough.
    let root = folder.path().join("test");
    assert_eq!(Labelled::scan(&root, &classes, None, None).unwrap().items.len(), 2);
    let error = message(Labelled::scan(&root, &classes[1..], None, None));
    assert!(error.contains("class \"a\" is unknown; the 2 known ones are b; c"), "{error}");
    let error = message(Labelled::scan(&root.join("a"), &classes, None, None));
    assert!(error.contains("2 images, but not in class folders"), "{error}");

    let folder = images(&["train/a/1.png", "train/b/1.png"]);
    let error = message(Labelled::scan(folder.path(), &classes, None, None));
    assert!(error.contains("neither val/ nor test/"), "{error}");
}

#[test]
fn evaluation_divides_a_folder_as_training_did() {
    let names = ["a", "b"].map(|class| (0..9).map(move |at| format!("{class}/{at}.png")));
    let names: Vec<String> = names.into_iter().flatten().collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let options = ScanOptions { val_fraction: 0.3, seed: 5 };
    let trained_on = Dataset::scan(folder.path(), &options).unwrap();
    assert_eq!(trained_on.held_out, Some(options));
    // A network may have its classes in another order.
    let classes = ["b", "a"].map(str::to_owned);
    let labelled = |split| Labelled::scan(folder.path(), &classes, split, Some(options)).unwrap();
    for (split, items) in [
        (None, &trained_on.val),
        (Some("valid"), &trained_on.val),
        (Some("train"), &trained_on.train),
    ] {
        let found = labelled(split);
        assert_eq!(paths(&found.items), paths(items), "{split:?}");
        let swapped: Vec<u32> = labels(items).iter().map(|label| 1 - label).collect();
        assert_eq!(labels(&found.items), swapped, "{split:?}");
        assert_eq!(found.held_out, split != Some("train"));
    }
    assert_eq!(labelled(Some("all")).items.len(), 18);
    // A folder of some of the classes, or with a split, is another one than training had.
    let more = ["a", "b", "c"].map(str::to_owned);
    let other = Labelled::scan(folder.path(), &more, None, Some(options)).unwrap();
    assert_eq!((other.items.len(), other.held_out), (18, false));
    let other = ["a", "c"].map(str::to_owned);
    let error = message(Labelled::scan(folder.path(), &other, None, Some(options)));
    assert!(error.contains("class \"b\" is unknown"), "{error}");
    // The test split comes before what was held out of train/.
    let folder = images(&["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png"]);
    let found = |split| Labelled::scan(folder.path(), &classes, split, Some(options)).unwrap();
    assert_eq!((found(None).items.len(), found(None).held_out), (2, true));
    image(&folder.path().join("test/a/1.png"));
    assert_eq!((found(None).items.len(), found(None).held_out), (1, false));
    assert_eq!((found(Some("val")).items.len(), found(Some("val")).held_out), (2, true));
    assert_eq!(found(Some("test")).items.len(), 1);
    let folder = images(&["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/b/1.png"]);
    let labelled = |split| Labelled::scan(folder.path(), &classes, split, Some(options)).unwrap();
    for (split, count) in [(None, 1), (Some("train"), 2), (Some("test"), 1), (Some("all"), 4)] {
        assert_eq!(labelled(split).items.len(), count, "{split:?}");
    }
    assert_eq!(scan(folder.path()).unwrap().held_out, None);
}

#[test]
fn ten_thousand_files_are_scanned() {
    let folder = images(&["0/0.png", "1/0.png"]);
    let bytes = fs::read(folder.path().join("0/0.png")).unwrap();
    for at in 0..10_000 {
        fs::write(folder.path().join(format!("{}/{at}.png", at % 2)), &bytes).unwrap();
    }
    let start = std::time::Instant::now();
    let dataset = scan(folder.path()).unwrap();
    println!("scanned in {:.2} s", start.elapsed().as_secs_f64());
    assert_eq!(dataset.train.len() + dataset.val.len(), 10_001);
}

// Decoding.

#[test]
fn exif_orientation_is_applied() {
    // Stored: red at the top left, blue at the top right, else white.
    let mut stored = RgbImage::from_pixel(48, 32, Rgb([255; 3]));
    for y in 0..16 {
        for x in 0..16 {
            stored.put_pixel(x, y, Rgb([255, 0, 0]));
            stored.put_pixel(x + 32, y, Rgb([0, 0, 255]));
        }
    }
    let jpeg = encode(&stored, ImageFormat::Jpeg);
    // Where the standard says that red and blue are seen (t/b: top/bottom, l/r: left/right).
    let seen = [
        (1, "tl", "tr"),
        (2, "tr", "tl"),
        (3, "br", "bl"),
        (4, "bl", "br"),
        (5, "tl", "bl"),
        (6, "tr", "br"),
        (7, "br", "tr"),
        (8, "bl", "tl"),
    ];
    for (orientation, red, blue) in seen {
        let upright = decode_bytes(&with_orientation(&jpeg, orientation), "photo.jpg").unwrap();
        let (width, height) = if orientation < 5 { (48, 32) } else { (32, 48) };
        assert_eq!(upright.dimensions(), (width, height), "orientation {orientation}");
        let corner = |name: &str| {
            let y = if name.starts_with('t') { 5 } else { height - 6 };
            let x = if name.ends_with('l') { 5 } else { width - 6 };
            upright.get_pixel(x, y).0
        };
        assert_near(&corner(red), &[255, 0, 0], 3, &format!("red, orientation {orientation}"));
        assert_near(&corner(blue), &[0, 0, 255], 3, &format!("blue, orientation {orientation}"));
    }
}

#[test]
fn unusual_forms_decode_as_pil_reads_them() {
    // JPEG decoders differ in their inverse transform and upsampling; PNG is exact but for blending.
    for (file, decoded, tolerance) in [
        ("cmyk.jpg", "cmyk-decoded.png", 4),
        ("progressive.jpg", "progressive-decoded.png", 4),
        ("palette-alpha.png", "palette-alpha-decoded.png", 1),
    ] {
        let ours = decode(fixture(file)).unwrap();
        let theirs = decode(fixture(decoded)).unwrap();
        assert_eq!(ours.dimensions(), theirs.dimensions());
        let worst = assert_near(&ours, &theirs, tolerance, file);
        println!("{file}: at most {worst} levels from PIL");
    }
}

#[test]
fn grey_and_sixteen_bit_images_decode() {
    let grey = image::GrayImage::from_fn(16, 8, |x, y| [(100 + 5 * x + y) as u8].into());
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp] {
        let rgb = decode_bytes(&encode(&grey, format), "grey").unwrap();
        for (x, y, pixel) in rgb.enumerate_pixels() {
            let value = (100 + 5 * x + y) as u8;
            assert_near(&pixel.0, &[value; 3], 3, &format!("{format:?}"));
        }
    }
    let deep = image::ImageBuffer::<Rgb<u16>, Vec<u16>>::from_fn(4, 1, |x, _| {
        Rgb([257 * 80 * x as u16, 0x0101, 0xffff])
    });
    let rgb = decode_bytes(&encode(&deep, ImageFormat::Png), "deep.png").unwrap();
    assert_eq!(rgb.as_raw()[..], [0, 1, 255, 80, 1, 255, 160, 1, 255, 240, 1, 255]);
    let clear = image::ImageBuffer::<image::Rgba<u16>, Vec<u16>>::from_pixel(
        1,
        1,
        image::Rgba([0, 0xffff, 0, 0x8080]),
    );
    let rgb = decode_bytes(&encode(&clear, ImageFormat::Png), "clear.png").unwrap();
    assert_eq!(rgb.as_raw()[..], [127, 255, 127]);
}

#[test]
fn formats_are_told_from_the_content() {
    let picture = RgbImage::from_pixel(5, 4, Rgb([10, 200, 30]));
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::WebP,
        ImageFormat::Tiff,
        ImageFormat::Pnm,
    ] {
        let rgb = decode_bytes(&encode(&picture, format), "misnamed.jpg").unwrap();
        assert_near(&rgb, &picture, 3, &format!("{format:?}"));
    }
}

#[test]
fn broken_files_are_refused_with_a_reason() {
    let noise = decode(fixture("noise-97x61.png")).unwrap();
    let jpeg = encode(&noise, ImageFormat::Jpeg);
    let png = fs::read(fixture("noise-97x61.png")).unwrap();
    // A thumbnail's end marker is not the photo's.
    let thumbnail = [&jpeg[..2], &[0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9], &jpeg[2..]].concat();
    let refused = |bytes: &[u8]| message(decode_bytes(bytes, "bad.jpg"));
    for length in [jpeg.len() / 2, jpeg.len() - 100, jpeg.len() - 2] {
        assert!(refused(&jpeg[..length]).contains("truncated"), "{length}");
    }
    assert!(decode_bytes(&thumbnail, "thumbnail.jpg").is_ok());
    assert!(refused(&thumbnail[..thumbnail.len() - 50]).contains("truncated"));
    assert!(refused(b"").contains("bad.jpg: the file is empty"));
    assert!(refused(b"hello, world").contains("not an image"));
    // Whatever the cut and the damage: an error of one line or an image, never a panic.
    for bytes in [&jpeg, &png] {
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            for bytes in [&bytes[..at], &damaged] {
                if let Err(error) = decode_bytes(bytes, "broken") {
                    assert!(!error.to_string().contains('\n'), "{error:?}");
                }
            }
        }
    }
    assert!(message(decode_bytes(&png[..png.len() / 2], "cut.png")).contains("cut.png"));
    let error = message(decode(fixture("missing.png")));
    assert!(error.contains("cannot be read"), "{error}");
    let error = message(decode(fixture("")));
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn images_over_the_limit_are_refused_before_they_are_decoded() {
    let mut bmp = encode(&RgbImage::new(1, 1), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&20_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&20_000u32.to_le_bytes());
    let error = message(decode_bytes(&bmp, "huge.bmp"));
    assert!(error.contains("20000×20000 is 400 megapixels"), "{error}");
    // Of few bytes a pixel, or of many.
    for header in ["P6\n12000 10000\n255\n", "P6\n9900 9900\n65535\n"] {
        let error = message(decode_bytes(header.as_bytes(), "huge.ppm"));
        assert!(error.contains("too large"), "{error}");
    }
}

// Resizing.

#[test]
fn resizing_agrees_with_torchvision_within_a_level() {
    let (mut outputs, mut values, mut different) = (0, 0, 0);
    for entry in fs::read_dir(fixture("")).unwrap() {
        let output = entry.unwrap().path();
        let stem = output.file_stem().unwrap().to_str().unwrap();
        let Some((name, size)) = stem.split_once("-to-") else { continue };
        let input = match name.split_once('-').unwrap() {
            ("noise", _) => fixture(&format!("{name}.png")),
            (class, _) => demo_root().unwrap().join("val").join(class).join(format!("{name}.png")),
        };
        let ours = resize_center_crop(&decode(input).unwrap(), size.parse().unwrap()).unwrap();
        let theirs = decode(&output).unwrap();
        assert_near(&ours, &theirs, 1, stem);
        outputs += 1;
        values += ours.len();
        different += ours.iter().zip(theirs.as_raw()).filter(|(a, b)| a != b).count();
    }
    println!("{different} of {values} values differ from torchvision, by one level");
    assert_eq!(outputs, 12);
    // With the passes in the other order it would be one in seven.
    assert!(different * 100 < values, "{different} of {values}");
}

/// Resizing is exact to a level (above); the rest is the JPEG decoder, whose inverse transform rounds
/// otherwise than libjpeg's: one level of chroma is two of blue.
#[test]
fn photos_agree_with_torchvision_through_decoding_and_resizing() {
    let Some(photos) = ants_and_bees() else { return };
    let digests = fs::read_to_string(fixture("photos.json")).unwrap();
    let digests: serde_json::Value = serde_json::from_str(&digests).unwrap();
    let mut histogram = [0u32; 256];
    for digest in digests.as_array().unwrap() {
        let path = digest["path"].as_str().unwrap();
        let size = digest["size"].as_u64().unwrap() as usize;
        let ours = resize_center_crop(&decode(photos.join(path)).unwrap(), size as u32).unwrap();
        for (row, bytes) in digest["rows"].as_object().unwrap() {
            let start = 3 * size * row.parse::<usize>().unwrap();
            let theirs = from_hex(bytes.as_str().unwrap());
            for (ours, theirs) in ours[start..start + 3 * size].iter().zip(theirs) {
                histogram[usize::from(ours.abs_diff(theirs))] += 1;
            }
        }
    }
    let count: u32 = histogram.iter().sum();
    let share = |values: &[u32]| f64::from(values.iter().sum::<u32>()) / f64::from(count);
    let (different, further) = (share(&histogram[1..]), share(&histogram[2..]));
    println!("{count} values: {different:.4} differ from torchvision, {further:.5} by 2 or more");
    assert_eq!(count, 31_104);
    assert!(different < 0.05 && further < 0.003, "{different} {further}");
    assert_eq!(histogram[5..], [0; 251]);
}

#[test]
fn ants_and_bees_scan() {
    let Some(photos) = ants_and_bees() else { return };
    let dataset = scan(&photos).unwrap();
    assert_eq!(dataset.classes, ["ants", "bees"]);
    // One more than `ImageFolder` finds: a GIF, which it passes over.
    assert_eq!(dataset.per_class(&dataset.train), [124, 121]);
    assert_eq!(dataset.per_class(&dataset.val), [70, 83]);
    assert!(dataset.skipped.is_empty());
}

#[test]
fn images_of_the_input_size_are_left_alone() {
    let picture = decode(fixture("noise-40x40.png")).unwrap();
    assert_eq!(&resize_center_crop(&picture, 40).unwrap(), picture.as_raw());
}

#[test]
fn extreme_shapes_are_resized() {
    for (width, height) in [(1, 1), (10_000, 3), (3, 10_000), (1, 60_000), (2, 1)] {
        let picture = RgbImage::from_pixel(width, height, Rgb([9, 99, 199]));
        let mut rng = rand::rng();
        for augment in [Augment::None, Augment::Light] {
            for size in [1, 64, 224] {
                let pixels = Transform { size, augment, auto_augment: None }
                    .apply(&picture, &mut rng)
                    .unwrap();
                assert_eq!(pixels, [9, 99, 199].repeat((size * size) as usize));
            }
        }
        Transform { size: 64, augment: Augment::Strong, auto_augment: Some(AutoAugment::Ra) }
            .apply(&picture, &mut rng)
            .unwrap();
    }
    assert!(matches!(resize_center_crop(&RgbImage::new(3, 3), 0), Err(Error::Shape { .. })));
    assert!(matches!(resize_center_crop(&RgbImage::new(0, 3), 8), Err(Error::Shape { .. })));
}

// The loader.

#[test]
fn orders_visit_every_image_once() {
    let order = Order { seed: 3, epoch: 1, shuffle: true, batch_size: 4, drop_last: false };
    let batches = order.batches(10);
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
    let mut all = batches.concat();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    assert_eq!(order.batches(10), batches);
    assert_ne!(Order { epoch: 2, ..order }.batches(10), batches);
    assert_ne!(Order { seed: 4, ..order }.batches(10), batches);
    assert_eq!(Order { drop_last: true, ..order }.batches(10), batches[..2]);
    let in_order = Order { shuffle: false, ..order }.batches(10);
    assert_eq!(in_order, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    assert!(order.batches(0).is_empty());
}

#[test]
fn balanced_batches_hold_every_class_equally_often() {
    let order = Order { seed: 3, epoch: 1, shuffle: true, batch_size: 4, drop_last: false };
    // Two images of class 0, three of class 1, sixteen of class 2.
    let labels: Vec<u32> = [vec![0; 2], vec![1; 3], vec![2; 16]].concat();
    let batches = order.balanced_batches(&labels);
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 1]);
    assert_eq!(order.balanced_batches(&labels), batches);
    assert_ne!(Order { epoch: 2, ..order }.balanced_batches(&labels), batches);
    let mut draws = batches.concat();
    let of_class = |class| draws.iter().filter(|&draw| labels[draw % 21] == class).count();
    assert_eq!([0, 1, 2].map(of_class), [7; 3]);
    // An image comes again when all of its class have been drawn, as another view of it.
    let times = |image: usize| draws.iter().filter(|&draw| draw % 21 == image).count();
    assert!((0..2).all(|image| (3..=4).contains(&times(image))));
    assert!((2..5).all(|image| (2..=3).contains(&times(image))));
    assert!((5..21).all(|image| times(image) <= 1));
    draws.sort_unstable();
    draws.dedup();
    assert_eq!(draws.len(), 21);
    assert!(order.balanced_batches(&[]).is_empty());

    // One image more makes 8, 7 and 7 draws. Epoch by epoch, another class has the 8, and another part
    // of the large class is drawn.
    let labels = [labels, vec![2]].concat();
    let (mut largest, mut drawn) = (BTreeSet::new(), BTreeSet::new());
    for epoch in 0..20 {
        let mut draws = Order { epoch, ..order }.balanced_batches(&labels).concat();
        let classes: Vec<u32> = draws.iter().map(|draw| labels[draw % 22]).collect();
        let counts = [0, 1, 2].map(|class| classes.iter().filter(|&&of| of == class).count());
        assert_eq!((counts.iter().sum::<usize>(), counts.iter().min()), (22, Some(&7)));
        largest.extend(counts.iter().position(|&count| count == 8));
        assert!(classes.windows(2).filter(|pair| pair[0] != pair[1]).count() > 6, "{classes:?}");
        draws.sort_unstable();
        let has = |draw: usize| draws.binary_search(&draw).is_ok();
        assert!(draws.iter().all(|&draw| draw < 22 || has(draw - 22)), "{draws:?}");
        drawn.extend(draws.into_iter().filter(|&draw| (5..22).contains(&draw)));
    }
    assert_eq!((largest.len(), drawn.len()), (3, 17));
}

#[test]
fn bytes_do_not_depend_on_the_number_of_workers() {
    let items: Arc<[Item]> = scan(&demo_root().unwrap()).unwrap().train[..90].into();
    let load = |epoch, batch_size, workers| -> Vec<Batch> {
        let order = Order { seed: 5, epoch, shuffle: true, batch_size, drop_last: false };
        let transform =
            Transform { size: 48, augment: Augment::Strong, auto_augment: Some(AutoAugment::Ra) };
        let batches = order.batches(items.len());
        let loader = Loader::new(items.clone(), batches, transform, 5, epoch, workers).unwrap();
        loader.map(Result::unwrap).collect()
    };
    let batches = load(0, 16, 1);
    assert_eq!(batches.iter().map(|batch| batch.items.len()).sum::<usize>(), 90);
    for (index, batch) in batches.iter().enumerate() {
        assert_eq!(batch.index, index);
        assert_eq!(batch.pixels.len(), batch.items.len() * 48 * 48 * 3);
        let labels: Vec<u32> = batch.items.iter().map(|&item| items[item].label).collect();
        assert_eq!(batch.labels, labels);
    }
    for workers in [2, 5, 0, 99_999] {
        assert_eq!(load(0, 16, workers), batches, "{workers} workers");
    }
    // Nor on the batch an image is in; but on the epoch.
    let pixels = |batches: &[Batch]| -> Vec<(usize, Vec<u8>)> {
        let image = |batch: &Batch, at: usize| {
            (batch.items[at], batch.pixels[at * 6912..(at + 1) * 6912].to_vec())
        };
        let mut all: Vec<_> = batches
            .iter()
            .flat_map(|batch| (0..batch.items.len()).map(move |at| image(batch, at)))
            .collect();
        all.sort();
        all
    };
    assert_eq!(pixels(&load(0, 7, 2)), pixels(&batches));
    let next: Vec<_> = pixels(&load(1, 16, 2));
    assert!(pixels(&batches).iter().zip(&next).all(|(a, b)| a != b));
}

#[test]
fn files_that_fail_to_decode_make_the_batch_smaller() {
    let names: Vec<String> = (0..40).map(|at| format!("{}/{at:02}.png", at % 2)).collect();
    let folder = images(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let truncated = |name: &str| {
        let noise = encode(&decode(fixture("noise-97x61.png")).unwrap(), ImageFormat::Jpeg);
        fs::write(folder.path().join(name), &noise[..noise.len() / 2]).unwrap();
    };
    let load = || -> Vec<wgrad::Result<Batch>> {
        let options = ScanOptions { val_fraction: 0.0, seed: 0 };
        let items: Arc<[Item]> = Dataset::scan(folder.path(), &options).unwrap().train.into();
        let order = Order { seed: 0, epoch: 0, shuffle: false, batch_size: 8, drop_last: false };
        let transform = Transform { size: 8, augment: Augment::None, auto_augment: None };
        let batches = order.batches(items.len());
        Loader::new(items, batches, transform, 0, 0, 2).unwrap().collect()
    };
    // The header of a truncated file is fine: the scan keeps it.
    truncated("0/20.png");
    let batches = load();
    let second = batches[1].as_ref().unwrap();
    assert_eq!(second.items, [8, 9, 11, 12, 13, 14, 15]);
    assert_eq!((second.labels.len(), second.pixels.len()), (7, 7 * 8 * 8 * 3));
    assert_eq!(second.failed[0].path, folder.path().join("0/20.png"));
    assert!(second.failed[0].reason.contains("truncated"), "{:?}", second.failed);

    // One is not too many of the four images that may be left of an epoch, or drawn ever again.
    let options = ScanOptions { val_fraction: 0.0, seed: 0 };
    let items: Arc<[Item]> = Dataset::scan(folder.path(), &options).unwrap().train.into();
    let transform = Transform { size: 8, augment: Augment::None, auto_augment: None };
    let part = |batches| Loader::new(items.clone(), batches, transform, 0, 0, 2).unwrap();
    let counts = |loader: Loader| -> wgrad::Result<Vec<usize>> {
        loader.map(|batch| Ok(batch?.items.len())).collect()
    };
    assert_eq!(counts(part(vec![vec![8, 9, 10, 11]])).unwrap(), [3]);
    assert_eq!(counts(part(vec![vec![10, 50, 90], vec![8, 130]])).unwrap(), [0, 1]);

    // More than 5 % end the epoch.
    truncated("1/01.png");
    truncated("1/39.png");
    let batches = load();
    assert_eq!(batches.len(), 5);
    let error = batches[4].as_ref().unwrap_err().to_string();
    assert!(error.contains("3 of 40 images") && error.contains("39.png: truncated"), "{error}");
    let bad = vec![vec![10, 20, 39]];
    assert!(counts(part(bad.clone())).is_err());
    assert_eq!(part([bad.clone(), vec![vec![0], vec![1]]].concat()).count(), 1, "nothing follows");
    assert_eq!(counts(part(bad).lenient()).unwrap(), [0]);
}

#[test]
fn a_loader_refuses_what_it_cannot_do() {
    let items: Arc<[Item]> = [Item::file("a.png", 0)].into();
    let load = |size, batches| {
        let transform = Transform { size, augment: Augment::None, auto_augment: None };
        Loader::new(items.clone(), batches, transform, 0, 0, 1).map(|_| ())
    };
    assert!(matches!(load(0, vec![vec![0]]), Err(Error::Usage(_))));
}

// Helpers.

fn scan(root: &Path) -> wgrad::Result<Dataset> {
    Dataset::scan(root, &ScanOptions::default())
}

fn message<T>(result: wgrad::Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.to_string(),
    }
}

fn paths(items: &[Item]) -> Vec<PathBuf> {
    items.iter().map(|item| item.path.clone()).collect()
}

fn labels(items: &[Item]) -> Vec<u32> {
    items.iter().map(|item| item.label).collect()
}

fn per_class_on_disk(split: &Path) -> Vec<usize> {
    let mut folders: Vec<_> =
        fs::read_dir(split).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.iter().map(|folder| fs::read_dir(folder).unwrap().count()).collect()
}

/// PyTorch's ants and bees, which are not in the repository.
fn ants_and_bees() -> Option<PathBuf> {
    let shared = std::env::var_os("WGRAD_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let photos = shared.join("data/hymenoptera");
    if photos.is_dir() {
        return Some(photos);
    }
    println!("skipped: no photos at {}", photos.display());
    None
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// A temporary folder with a small image for each name.
fn images(names: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    names.iter().for_each(|name| image(&folder.path().join(name)));
    folder
}

fn image(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let format = ImageFormat::from_path(path).unwrap();
    fs::write(path, encode(&RgbImage::from_pixel(4, 3, Rgb([200, 100, 50])), format)).unwrap();
}

fn encode<P>(image: &image::ImageBuffer<P, Vec<P::Subpixel>>, format: ImageFormat) -> Vec<u8>
where
    P: image::PixelWithColorType,
    [P::Subpixel]: image::EncodableLayout,
{
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Puts an EXIF segment with nothing but the orientation behind a JPEG's first marker.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    // Tag 0x0112, type SHORT, one value, padded to four bytes; then no further directory.
    exif.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Fails where bytes differ by more than `tolerance`; returns the largest difference.
fn assert_near(ours: &[u8], theirs: &[u8], tolerance: u8, name: &str) -> u8 {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let differences = ours.iter().zip(theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
    let (at, worst) = differences.enumerate().max_by_key(|&(_, difference)| difference).unwrap();
    assert!(worst <= tolerance, "{name}: byte {at} is {}, not {}", ours[at], theirs[at]);
    worst
}
