//! Images in tar archives: the same as in folders, and what archives that nobody vouches for may do.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ImageFormat, Rgb, RgbImage};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use wgrad::data::{
    Archives, Augment, Batch, Dataset, Item, Labelled, Loader, Order, ScanOptions, Transform,
};

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;
/// An archive's name and what it holds.
type Named = (&'static str, Files);

// The same as in folders.

#[test]
fn a_folder_and_its_archives_give_the_same_batches() {
    let folder = TempDir::new().unwrap();
    let files = set(&["train", "val"], 12);
    let unpacked = folder.path().join("unpacked");
    for (name, bytes) in &files {
        let path = unpacked.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let expected = scan(&unpacked).unwrap();
    assert_eq!((expected.train.len(), expected.val.len()), (24, 24));
    assert_eq!(expected.archives, Archives::default());

    let tar = archive(&files);
    write(&folder.path().join("one/data.tar"), &tar);
    write(&folder.path().join("two/data.tgz"), &gzip(&tar));
    // Dealt out to archives in no order at all, beside a file that is none.
    for (part, name) in ["part-0.tar.gz", "part-1.tar", "part-2.tar.gz"].iter().enumerate() {
        let part: Vec<_> = files.iter().skip(part).step_by(3).cloned().collect();
        let tar = archive(&part);
        let bytes = if name.ends_with("gz") { gzip(&tar) } else { tar };
        write(&folder.path().join("three").join(name), &bytes);
    }
    write(&folder.path().join("three/classes.tsv"), b"a\tA\n");
    for (root, archives) in [("one/data.tar", 1), ("one", 1), ("two/data.tgz", 1), ("three", 3)] {
        // Again, by the index.
        for _ in 0..2 {
            let dataset = scan(&folder.path().join(root)).unwrap();
            assert_eq!(dataset.archives.count, archives, "{root}");
            let zipped = |part: usize| part % 3 != 1;
            let in_memory = match root {
                "two/data.tgz" => files.iter().map(|(_, bytes)| bytes.len()).sum(),
                "three" => {
                    let parts = files.iter().enumerate().filter(|&(at, _)| zipped(at));
                    parts.map(|(_, (_, bytes))| bytes.len()).sum()
                }
                _ => 0,
            };
            assert_eq!(dataset.archives.bytes_in_memory, in_memory as u64, "{root}");
            assert_eq!(dataset.classes, expected.classes);
            for (ours, theirs) in [(&dataset.train, &expected.train), (&dataset.val, &expected.val)]
            {
                assert_eq!(names(&dataset.root, ours), names(&expected.root, theirs), "{root}");
                assert!(batches(ours) == batches(theirs), "{root}");
                let size = |item: &Item| item.bytes().unwrap();
                assert!(ours.iter().map(size).eq(theirs.iter().map(size)));
            }
        }
        let classes = ["z", "a", "b"].map(str::to_owned);
        let labelled = Labelled::scan(&folder.path().join(root), &classes, None, None).unwrap();
        assert_eq!(names(&labelled.root, &labelled.items)[0], "a/00.png");
        assert_eq!((labelled.items.len(), labelled.items[0].label), (24, 1));
    }
}

#[test]
fn archives_may_be_made_of_any_folder_or_of_a_split() {
    let two = |prefix: &str| -> Files {
        let inner = set(&["."], 2).into_iter();
        inner.map(|(name, bytes)| (format!("{prefix}{}", &name[2..]), bytes)).collect()
    };
    let with_val = [two("set/train/"), two("set/val/")].concat();
    let cases: [(&[Named], [usize; 2]); 7] = [
        (&[("data.tar", two("./"))], [2, 2]),
        (&[("data.tar", two("pictures/of/things/"))], [2, 2]),
        (&[("data.tar", with_val.clone())], [4, 4]),
        (&[("train.tar", two("")), ("val.tar.gz", two("./"))], [4, 4]),
        (&[("train.tar", two("train/")), ("validation.tgz", two(""))], [4, 4]),
        // Called like a split, and yet with more than one.
        (&[("train.tar", with_val)], [4, 4]),
        (&[("a.tar", two("")[..2].to_vec()), ("b.tar", two("")[2..].to_vec())], [2, 2]),
    ];
    for (archives, expected) in &cases {
        let folder = TempDir::new().unwrap();
        for (name, files) in *archives {
            let tar = archive(files);
            let bytes = if name.ends_with(".tar") { tar } else { gzip(&tar) };
            write(&folder.path().join(name), &bytes);
        }
        let dataset = scan(folder.path()).unwrap();
        let shown: Vec<_> = archives.iter().map(|(name, _)| name).collect();
        assert_eq!(dataset.classes, ["a", "b"], "{shown:?}");
        assert_eq!([dataset.train.len(), dataset.val.len()], *expected, "{shown:?}");
    }

    // Folders win over archives that lie beside them.
    let folder = TempDir::new().unwrap();
    for (name, bytes) in two("") {
        write(&folder.path().join(name), &bytes);
    }
    write(&folder.path().join("more.tar"), &archive(&two("c/")));
    assert_eq!(scan(folder.path()).unwrap().archives.count, 0);
}

#[test]
fn what_is_no_image_is_left_out_as_in_folders() {
    let mut files = set(&["."], 40);
    for (name, content) in [
        ("./a/notes.txt", "notes"),
        ("./README.md", "about"),
        ("./a/._00.png", "a leftover of macOS"),
        ("./.git/x.png", "hidden"),
        ("./__MACOSX/a/00.png", "hidden"),
        ("./b/fake.jpg", "this is no picture"),
        ("./b/empty.png", ""),
    ] {
        files.push((name.into(), content.into()));
    }
    // Of two files of one name the last counts.
    files.push(("./a/00.png".into(), files[1].1.clone()));
    let mut builder = Builder::new(Vec::new());
    files.iter().for_each(|(name, bytes)| append(&mut builder, name, bytes));
    for kind in [EntryType::Symlink, EntryType::Link] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        let name = format!("a/link-{}.png", kind.as_byte());
        builder.append_link(&mut header, name, "/etc/passwd").unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let folder = TempDir::new().unwrap();
    for (name, bytes) in [("x.tar.gz", gzip(&tar)), ("x.tar", tar)] {
        let path = folder.path().join(name);
        write(&path, &bytes);
        for _ in 0..2 {
            let dataset = scan(&path).unwrap();
            assert_eq!(dataset.train.len() + dataset.val.len(), 80);
            let skipped = |name: &str| {
                let found = dataset.skipped.iter().find(|it| it.path.ends_with(name));
                &found.unwrap_or_else(|| panic!("{name} was not skipped")).reason
            };
            assert!(skipped("b/fake.jpg").contains("not an image"), "{}", skipped("b/fake.jpg"));
            assert!(skipped("b/fake.jpg").contains(path.to_str().unwrap()));
            assert!(skipped("b/empty.png").contains("empty"));
            assert!(skipped("a/link-49.png").contains("link"));
            assert!(skipped("a/link-50.png").contains("link"));
            assert_eq!(dataset.skipped.len(), 4);
            let all: Vec<Item> = [&dataset.train[..], &dataset.val].concat();
            let at = |name: &str| all.iter().position(|item| item.path.ends_with(name)).unwrap();
            let loaded = batches(&all);
            let pixels: Vec<&[u8]> =
                loaded.iter().flat_map(|batch| batch.pixels.chunks(8 * 8 * 3)).collect();
            assert!(pixels[at("a/00.png")] == pixels[at("a/01.png")], "the first counted");
            assert!(pixels[at("a/00.png")] != pixels[at("a/02.png")]);
        }
    }

    let two = TempDir::new().unwrap();
    for name in ["x.tar", "y.tar"] {
        write(&two.path().join(name), &archive(&files));
    }
    let error = message(scan(two.path()));
    assert!(error.contains("y.tar: holds") && error.contains("as does"), "{error}");
}

#[test]
fn names_are_text_of_bounded_length() {
    let folder = TempDir::new().unwrap();
    let files = set(&["."], 10);
    for (name, expected) in [
        (b"a/\xff.png".to_vec(), Ok("its name is not valid UTF-8")),
        ([&b"a/"[..], &[b'x'; 4095]].concat(), Err("holds a name of 4097 bytes; 4096 are allowed")),
    ] {
        let mut builder = Builder::new(Vec::new());
        files.iter().for_each(|(name, bytes)| append(&mut builder, name, bytes));
        if name.len() > 100 {
            let mut long = header(EntryType::GNULongName, name.len() as u64 + 1);
            long.set_cksum();
            builder.append(&long, &[&name[..], &[0]].concat()[..]).unwrap();
        }
        let mut header = header(EntryType::Regular, files[0].1.len() as u64);
        let start = name.len().min(100);
        header.as_mut_bytes()[..start].copy_from_slice(&name[..start]);
        header.set_cksum();
        builder.append(&header, &files[0].1[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        for (file, bytes) in [("x.tar.gz", gzip(&tar)), ("x.tar", tar)] {
            write(&folder.path().join(file), &bytes);
            match (scan(&folder.path().join(file)), expected) {
                (Ok(dataset), Ok(reason)) => {
                    assert_eq!(dataset.train.len() + dataset.val.len(), 20);
                    assert!(dataset.skipped[0].reason.contains(reason), "{:?}", dataset.skipped);
                }
                (found, expected) => {
                    let error = message(found);
                    assert!(error.contains(expected.unwrap_err()), "{error}");
                }
            }
        }
    }
}

// The index.

#[test]
fn an_index_is_used_until_the_archive_changes() {
    let folder = TempDir::new().unwrap();
    let (tar, index) = (folder.path().join("x.tar"), folder.path().join("x.tar.index"));
    let images = |path: &Path| {
        let dataset = scan(path).unwrap();
        dataset.train.len() + dataset.val.len()
    };
    write(&tar, &archive(&set(&["."], 10)));
    assert_eq!(images(&tar), 20);
    let written = fs::read_to_string(&index).unwrap();
    assert_eq!(written.lines().count(), 21);

    // An index that tells of one image less is believed, so it is read; then it is not, being none.
    let shorter = written.replace("\"members\":20", "\"members\":19");
    let shorter = shorter.trim_end().rsplit_once('\n').unwrap().0.to_owned();
    fs::write(&index, &shorter).unwrap();
    assert_eq!(images(&tar), 19);
    for damaged in [
        shorter.replace("\"members\":19", "\"members\":20"),
        shorter.replace("a/03.png", "../03.png"),
        shorter.replace("a/03.png", "/03.png"),
        shorter.replace("[\"a/03.png\",", "[\"a/03.png\",9"),
        shorter.replace("\"wgrad_index\":2", "\"wgrad_index\":0"),
        shorter[..shorter.len() / 2].to_owned(),
        String::new(),
    ] {
        assert_ne!(damaged, shorter);
        fs::write(&index, &damaged).unwrap();
        assert_eq!(images(&tar), 20, "{damaged}");
        assert_eq!(fs::read_to_string(&index).unwrap(), written, "made again");
    }

    // Another time, then another size.
    fs::write(&index, &shorter).unwrap();
    let earlier = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(&tar).unwrap().set_modified(earlier).unwrap();
    assert_eq!(images(&tar), 20);
    write(&tar, &archive(&set(&["."], 11)));
    File::options().write(true).open(&tar).unwrap().set_modified(earlier).unwrap();
    assert_eq!(images(&tar), 22);
}

#[test]
fn a_file_with_the_name_of_an_index_stays() {
    let folder = TempDir::new().unwrap();
    let (tar, index) = (folder.path().join("x.tar"), folder.path().join("x.tar.index"));
    write(&tar, &archive(&set(&["."], 10)));
    for text in ["notes of mine\n", "{\"mine\": 1}\n"] {
        fs::write(&index, text).unwrap();
        scan(&tar).unwrap();
        assert_eq!(fs::read_to_string(&index).unwrap(), text);
    }
}

// Archives that nobody vouches for.

#[test]
fn archives_that_are_cut_short_or_damaged_are_refused() {
    let folder = TempDir::new().unwrap();
    let tar = archive(&set(&["."], 3));
    let zipped = gzip(&tar);
    let refusal = |name: &str, bytes: &[u8]| {
        write(&folder.path().join(name), bytes);
        message(scan(&folder.path().join(name)))
    };
    // Two empty blocks end an archive; one has to be there.
    for length in (1..=tar.len() - 1024).step_by(97).chain([512, tar.len() - 1024]) {
        let error = refusal("x.tar", &tar[..length]);
        assert!(error.contains("cut short") || error.contains("no tar archive"), "{error}");
    }
    let error = refusal("x.tar", &tar[..600]);
    assert!(error.contains("x.tar: is cut short within \"./a/00.png\""), "{error}");
    for length in (2..zipped.len()).step_by(31).chain([zipped.len() - 1]) {
        let error = refusal("x.tar.gz", &zipped[..length]);
        assert!(error.contains("cut short") || error.contains("no tar archive"), "{error}");
    }
    let mut damaged = tar.clone();
    damaged[1024 + 3] ^= 1;
    let error = refusal("x.tar", &damaged);
    assert!(error.contains("damaged after \"a/00.png\""), "{error}");
    let mut damaged = zipped.clone();
    let end = damaged.len();
    damaged[end - 8] ^= 1;
    assert!(refusal("x.tar.gz", &damaged).contains("is damaged"), "the checksum is not checked");
    assert!(refusal("x.tar", b"<html>404</html>").contains("no tar archive"));
    assert!(refusal("x.tar", &[]).contains("cut short"));
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0];
    assert!(refusal("x.tar", &zstd).contains("compressed with zstd"));
    // What the content is counts, not the name.
    write(&folder.path().join("y.tar"), &zipped);
    assert!(scan(&folder.path().join("y.tar")).is_ok());
    assert!(!folder.path().join("x.tar.index").exists(), "an index of what was refused");
}

#[test]
fn paths_that_lead_outside_are_refused() {
    let names = ["../a/x.png", "a/../../x.png", "/a/x.png", "a/..", "../notes.txt"];
    for (name, long) in names.iter().flat_map(|name| [(name, false), (name, true)]) {
        let folder = TempDir::new().unwrap();
        let inside = folder.path().join("inside");
        let mut builder = Builder::new(Vec::new());
        set(&["."], 2).iter().for_each(|(name, bytes)| append(&mut builder, name, bytes));
        let mut header = header(EntryType::Regular, 4);
        if long {
            builder.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        } else {
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, &b"evil"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        for (file, bytes) in [("x.tar", tar.clone()), ("x.tar.gz", gzip(&tar))] {
            write(&inside.join(file), &bytes);
            let error = message(scan(&inside.join(file)));
            assert!(error.contains(&format!("{name:?}")) && error.contains("refused"), "{error}");
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{name} was written");
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 2, "{name} was written");
    }
}

#[test]
fn small_files_that_unpack_to_gigabytes_are_refused() {
    let folder = TempDir::new().unwrap();
    let zeros = |bytes: usize| vec![0; bytes];
    let claims = |size: u64, kind: EntryType, name: &str| {
        let mut header = header(kind, size);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let cases: [(&str, Vec<u8>, &str); 5] = [
        (
            "an image of 30 GiB",
            [claims(30 << 30, EntryType::Regular, "a/x.png"), zeros(1 << 20)].concat(),
            "times its size (at \"a/x.png\")",
        ),
        (
            "many zeros that are no image",
            [claims(40 << 20, EntryType::Regular, "a/x.bin"), zeros(40 << 20)].concat(),
            "times its size (at \"a/x.bin\")",
        ),
        (
            "zeros after the end",
            [archive(&set(&["."], 1)), zeros(40 << 20)].concat(),
            "times its size",
        ),
        (
            "a long name",
            [claims(8 << 20, EntryType::GNULongName, "name"), vec![b'x'; 8 << 20]].concat(),
            "describes a member in more than",
        ),
        (
            "an image a little too large",
            // What does not shrink keeps the expansion small.
            [claims(300 << 20, EntryType::Regular, "a/x.png"), noise(4 << 20)].concat(),
            "holds \"a/x.png\" of 300 MiB",
        ),
    ];
    for (what, tar, expected) in cases {
        let path = folder.path().join("x.tar.gz");
        write(&path, &gzip(&tar));
        let size = path.metadata().unwrap().len();
        assert!(size < 5 << 20, "{what} is no bomb: {size} bytes");
        let error = message(scan(&path));
        assert!(error.contains(expected), "{what}: {error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{what} left something");
    }
    // A sparse file makes an archive in place as large as one likes.
    let path = folder.path().join("x.tar");
    write(&path, &claims(30 << 30, EntryType::Regular, "a/x.png"));
    File::options().write(true).open(&path).unwrap().set_len(40 << 30).unwrap();
    let error = message(scan(&path));
    assert!(error.contains("holds \"a/x.png\" of 30720 MiB"), "{error}");

    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 400 << 10, "{kib} KiB of memory at the peak");
    }
}

// Helpers.

fn scan(root: &Path) -> wgrad::Result<Dataset> {
    Dataset::scan(root, &ScanOptions { val_fraction: 0.5, seed: 0 })
}

fn message<T>(result: wgrad::Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.to_string(),
    }
}

fn names(root: &Path, items: &[Item]) -> Vec<String> {
    let name = |item: &Item| item.path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    items.iter().map(name).collect()
}

/// All images, augmented, in batches.
fn batches(items: &[Item]) -> Vec<Batch> {
    let items: Arc<[Item]> = items.into();
    let order = Order { seed: 1, epoch: 2, shuffle: false, batch_size: 5, drop_last: false };
    let transform = Transform { size: 8, augment: Augment::Strong, auto_augment: None };
    let transform = if items.len() > 40 {
        // Where single images are compared.
        Transform { augment: Augment::None, ..transform }
    } else {
        transform
    };
    let loader = Loader::new(items.clone(), order.batches(items.len()), transform, 1, 2, 3);
    loader.unwrap().map(Result::unwrap).collect()
}

/// `count` images, all different, of each of two classes in each of `splits`.
fn set(splits: &[&str], count: u8) -> Files {
    let mut files = Vec::new();
    for (split, name) in (0..).zip(splits) {
        for (label, class) in ["a", "b"].iter().enumerate() {
            for at in 0..count {
                let pixel = |x, y| Rgb([at * 3, split * 70 + label as u8 * 30 + x as u8, y as u8]);
                let mut bytes = std::io::Cursor::new(Vec::new());
                RgbImage::from_fn(9, 11, pixel).write_to(&mut bytes, ImageFormat::Png).unwrap();
                files.push((format!("{name}/{class}/{at:02}.png"), bytes.into_inner()));
            }
        }
    }
    files
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    files.iter().for_each(|(name, bytes)| append(&mut builder, name, bytes));
    builder.into_inner().unwrap()
}

fn append(builder: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = header(EntryType::Regular, bytes.len() as u64);
    // As it is, which `Builder::append_data` would tidy up.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    builder.append(&header, bytes).unwrap();
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not shrink.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap_or(&PathBuf::new())).unwrap();
    fs::write(path, bytes).unwrap();
}
