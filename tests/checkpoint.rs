//! Checkpoints in and out: every layout and dtype, what we write, and every lie a file can tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use wgrad::Error;
use wgrad::checkpoint::{
    Checkpoint, Dtype, HeadPolicy, HostData, HostTensor, IMAGENET_MEAN, Meta, Source, describe,
    write_atomically,
};
use wgrad::nn::arch::Arch;

/// Names and shapes in a library's own order, as tests/fixtures/checkpoint/make.py wrote them.
type Listing = Vec<(String, Vec<usize>)>;

fn listing(name: &str) -> Listing {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/checkpoint/{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

const NARROW: usize = 16;

/// The listing of the same network with a sixteenth of the channels, so that files stay small.
fn narrow(listing: Listing) -> Listing {
    let shrink = |(name, shape): (String, Vec<usize>)| {
        let is_head = name.starts_with("fc.") || name.starts_with("classifier.");
        let shape = shape.iter().enumerate().map(|(axis, &size)| {
            if is_head && axis == 0 {
                10
            } else if size >= 64 {
                size / NARROW
            } else {
                size
            }
        });
        (name, shape.collect())
    };
    listing.into_iter().map(shrink).collect()
}

/// Numbers that tell tensors and elements apart and that f16 and bf16 hold exactly.
fn values(tensor: usize, shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product()).map(|i| ((tensor + i) % 127) as f32 - 63.0).collect()
}

/// A tensor to put into a file: name, dtype, shape, bytes.
type Raw = (String, &'static str, Vec<usize>, Vec<u8>);

fn encode(values: &[f32], dtype: &str) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        "F16" => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

/// The tensors of a listing, filled with [`values`].
fn raw(listing: &Listing, dtype: &'static str) -> Vec<Raw> {
    let tensor = |(index, (name, shape)): (usize, &(String, Vec<usize>))| {
        if name.ends_with("num_batches_tracked") {
            return (name.clone(), "I64", shape.clone(), (index as i64).to_le_bytes().to_vec());
        }
        (name.clone(), dtype, shape.clone(), encode(&values(index, shape), dtype))
    };
    listing.iter().enumerate().map(tensor).collect()
}

/// A safetensors file, put together by hand so that it can also be wrong.
fn file(tensors: &[Raw], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let strings = metadata.iter().map(|(key, text)| (key.to_string(), json!(text)));
        header.insert("__metadata__".into(), Value::Object(strings.collect()));
    }
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header
            .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A small valid network, as tensors to put into a file.
fn resnet18() -> Vec<Raw> {
    raw(&narrow(listing("torchvision_resnet18")), "F32")
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path("model.safetensors");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn read(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = Folder::new();
    Checkpoint::read(folder.write(bytes))
}

/// The message with which a file is refused; it must come from the checkpoint, not the system.
#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(error @ Error::Checkpoint { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {:?}", other.map(|checkpoint| checkpoint.arch)),
    }
}

fn without(tensors: Vec<Raw>, gone: impl Fn(&str) -> bool) -> Vec<Raw> {
    tensors.into_iter().filter(|(name, ..)| !gone(name)).collect()
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// A small network made in memory.
fn checkpoint(arch: &str, classes: usize) -> Checkpoint {
    let arch = Arch::from_name(arch).unwrap();
    let tensors = arch.entries(classes).into_iter().enumerate().map(|(index, entry)| {
        let tensor = match entry.name.ends_with("num_batches_tracked") {
            true => HostTensor::scalar(index as i64),
            false => HostTensor::f32(entry.shape.clone(), values(index, &entry.shape)),
        };
        (entry.name, tensor)
    });
    Checkpoint {
        arch,
        tensors: tensors.collect(),
        meta: Meta::default(),
        dtype: Dtype::F32,
        missing: vec![],
        unexpected: vec![],
    }
}

// ---- what torchvision, timm and transformers have ----

#[test]
fn entries_are_torchvisions_state_dicts_in_order() {
    for name in ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] {
        let ours = Arch::from_name(name).unwrap().entries(1000);
        let ours: Listing = ours.into_iter().map(|entry| (entry.name, entry.shape)).collect();
        assert_eq!(ours, listing(&format!("torchvision_{name}")), "{name}");
    }
}

#[test]
fn every_network_is_recognised_by_its_tensors() {
    for name in ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] {
        let shapes = listing(&format!("torchvision_{name}")).into_iter().collect();
        assert_eq!(Arch::infer(&shapes).unwrap().to_string(), name);
        let shapes = narrow(listing(&format!("torchvision_{name}"))).into_iter().collect();
        assert_eq!(Arch::infer(&shapes).unwrap().to_string(), format!("{name}-w4"));
    }
}

/// A Hugging Face listing in torchvision's order: the shortcut after the rest of its block.
fn in_torchvisions_order(listing: Listing) -> Listing {
    let mut blocks: Vec<(String, Listing, Listing)> = Vec::new();
    for (name, shape) in listing {
        let shortcut = name.contains(".shortcut.");
        let block = name.split(".shortcut.").next().unwrap().split(".layer.").next().unwrap();
        if blocks.last().is_none_or(|(last, ..)| last != block) {
            blocks.push((block.to_owned(), vec![], vec![]));
        }
        let (_, main, downsample) = blocks.last_mut().unwrap();
        if shortcut { downsample.push((name, shape)) } else { main.push((name, shape)) }
    }
    blocks
        .into_iter()
        .flat_map(|(_, main, downsample)| main.into_iter().chain(downsample))
        .collect()
}

#[test]
fn every_layout_and_dtype_reads_to_the_same_tensors() {
    for (depth, layout) in [
        (18, "torchvision"),
        (18, "timm"),
        (18, "hf"),
        (50, "torchvision"),
        (50, "timm"),
        (50, "hf"),
    ] {
        let canonical = narrow(listing(&format!("torchvision_resnet{depth}")));
        let stored = in_torchvisions_order(narrow(listing(&format!("{layout}_resnet{depth}"))));
        for prefix in ["", "model.", "module.", "backbone.", "module.model.", "model.backbone."] {
            for (dtype, stored_dtype) in
                [("F32", Dtype::F32), ("F16", Dtype::F16), ("BF16", Dtype::Bf16)]
            {
                let mut tensors = raw(&stored, dtype);
                tensors.iter_mut().for_each(|(name, ..)| name.insert_str(0, prefix));
                let checkpoint = read(&file(&tensors, &[])).unwrap();
                assert_eq!(checkpoint.arch.name, format!("resnet{depth}"));
                assert_eq!(checkpoint.dtype, stored_dtype);
                assert_eq!((checkpoint.missing.len(), checkpoint.unexpected.len()), (0, 0));
                assert_eq!(checkpoint.tensors.len(), canonical.len());
                for (index, (name, shape)) in canonical.iter().enumerate() {
                    let expected = match name.ends_with("num_batches_tracked") {
                        true => HostTensor::scalar(index as i64),
                        false => HostTensor::f32(shape.clone(), values(index, shape)),
                    };
                    assert_eq!(checkpoint.tensors[name], expected, "{layout} {prefix} {name}");
                }
            }
        }
    }
}

/// A file begins with the length of its header, whose bytes may be those that JSON, a web page or a pickle
/// begin with.
#[test]
fn no_length_of_a_header_passes_for_another_format() {
    let good = file(&resnet18(), &[]);
    let (header, data) =
        good[8..].split_at(u64::from_le_bytes(good[..8].try_into().unwrap()) as usize);
    let header = std::str::from_utf8(header).unwrap();
    for first in [&b"{"[..], b"<", &[0x80, 2], &[0x80, 3], &[0x80, 4], &[0x80, 5]] {
        let lengths = header.len()..header.len() + (1 << 16);
        let length =
            lengths.into_iter().find(|length| length.to_le_bytes().starts_with(first)).unwrap();
        let blanks = " ".repeat(length - header.len());
        let bytes = with_header(&format!("{header}{blanks}"), data);
        assert!(bytes.starts_with(first) && read(&bytes).is_ok(), "{first:?}");
    }
}

#[test]
fn transformers_bare_model_has_no_head_and_reads() {
    let tensors = raw(&narrow(listing("hf_resnet18")), "F32");
    let mut tensors = without(tensors, |name| name.starts_with("classifier."));
    tensors.iter_mut().for_each(|(name, ..)| *name = name.strip_prefix("resnet.").unwrap().into());
    let checkpoint = read(&file(&tensors, &[])).unwrap();
    assert_eq!(checkpoint.missing, ["fc.weight", "fc.bias"]);
    assert_eq!(checkpoint.num_classes(), None);
    let (tensors, report) =
        checkpoint.fit(&checkpoint.arch, &strings(&["a", "b"]), HeadPolicy::Auto).unwrap();
    assert_eq!(report.reset, ["fc.weight", "fc.bias"]);
    assert_eq!(report.loaded, tensors.len());
    assert!(checkpoint.fit(&checkpoint.arch, &strings(&["a", "b"]), HeadPolicy::Keep).is_err());
}

#[test]
fn batch_counters_may_be_absent() {
    let tensors = without(resnet18(), |name| name.ends_with("num_batches_tracked"));
    let checkpoint = read(&file(&tensors, &[])).unwrap();
    assert_eq!(checkpoint.missing.len(), 20);
    assert_eq!(checkpoint.tensors["bn1.num_batches_tracked"], HostTensor::scalar(0));
    let (tensors, report) =
        checkpoint.fit(&checkpoint.arch, &vec![String::new(); 10], HeadPolicy::Keep).unwrap();
    assert_eq!((tensors.len(), report.loaded), (122, 102));
    assert!(report.to_string().contains("and 12 more"), "{report}");
}

#[test]
fn tensors_outside_the_network_are_named_and_ignored() {
    let mut tensors = resnet18();
    tensors.push(("model.projector.weight".into(), "F64", vec![1], vec![0; 8]));
    let checkpoint = read(&file(&tensors, &[])).unwrap();
    assert_eq!(checkpoint.unexpected, ["model.projector.weight"]);
}

// ---- tensors that do not fit ----

#[test]
fn tensors_that_do_not_fit_are_named() {
    let missing =
        without(resnet18(), |name| name == "layer2.0.bn1.running_var" || name == "fc.bias");
    let message = refusal(&file(&missing, &[]));
    assert!(message.contains("missing layer2.0.bn1.running_var, fc.bias"), "{message}");

    let mut renamed = without(resnet18(), |name| name == "fc.bias");
    renamed.push(("head.bias".into(), "F32", vec![1], vec![0; 4]));
    let message = refusal(&file(&renamed, &[]));
    assert!(message.contains("missing fc.bias; unexpected head.bias"), "{message}");

    let mut wide = resnet18();
    wide[6].2 = vec![4, 4, 9, 1];
    let message = refusal(&file(&wide, &[]));
    assert!(message.contains("layer1.0.conv1.weight [4, 4, 9, 1] where [4, 4, 3, 3]"), "{message}");

    let mut excited = resnet18();
    excited.push(("layer1.0.se.fc1.weight".into(), "F32", vec![1], vec![0; 4]));
    let message = refusal(&file(&excited, &[]));
    assert!(message.contains("unexpected layer1.0.se.fc1.weight"), "{message}");

    let short = without(resnet18(), |name| name.starts_with("layer4.1."));
    assert!(refusal(&file(&short, &[])).contains("[2, 2, 2, 1]"));

    let other = [("encoder.weight".to_owned(), "F32", vec![1], vec![0; 4])];
    assert!(refusal(&file(&other, &[])).contains("no conv1.weight"));

    let mut grey = resnet18();
    grey[0].2 = vec![4, 1, 7, 21];
    assert!(refusal(&file(&grey, &[])).contains("conv1.weight has shape [4, 1, 7, 21]"));

    let mut twice = resnet18();
    twice.push(("module.bn1.bias".into(), "F32", vec![4], vec![0; 16]));
    let message = refusal(&file(&twice, &[]));
    assert!(message.contains("both bn1.bias and module.bn1.bias"), "{message}");
}

#[test]
fn wrong_dtypes_are_refused_by_name() {
    let mut tensors = resnet18();
    let (_, dtype, shape, bytes) = &mut tensors[0];
    (*dtype, *bytes) = ("F64", vec![0; 8 * shape.iter().product::<usize>()]);
    assert!(refusal(&file(&tensors, &[])).contains("conv1.weight is F64"));

    let mut tensors = resnet18();
    (tensors[5].1, tensors[5].3) = ("F32", vec![0; 4]);
    assert!(refusal(&file(&tensors, &[])).contains("bn1.num_batches_tracked is F32"));
}

#[test]
fn folded_batch_norm_is_refused_with_the_reason() {
    let is_norm = |name: &str| name.contains("bn") || name.contains("downsample.1");
    let mut folded = without(resnet18(), is_norm);
    assert!(refusal(&file(&folded, &[])).contains("folded"));
    for name in ["layer2.0.downsample.0.bias", "conv1.bias"] {
        folded.push((name.into(), "F32", vec![4], vec![0; 16]));
        let message = refusal(&file(&folded, &[]));
        assert!(message.contains("folded") && message.contains(&format!("({name})")), "{message}");
        folded.pop();
    }
}

#[test]
fn a_classifier_without_outputs_is_refused() {
    let mut tensors = resnet18();
    for (name, _, shape, bytes) in &mut tensors {
        if name.starts_with("fc.") {
            shape[0] = 0;
            bytes.clear();
        }
    }
    assert!(refusal(&file(&tensors, &[])).contains("without outputs"));
}

#[test]
fn metadata_that_contradicts_or_makes_no_sense_is_refused_by_key() {
    for (key, text, part) in [
        ("wgrad.arch", "resnet34", "wgrad.arch says \"resnet34\""),
        ("wgrad.classes", "cat, dog", "wgrad.classes cannot be read"),
        ("wgrad.classes", "[\"cat\"]", "names 1 classes, but its classifier has 10"),
        ("wgrad.image_size", "-1", "wgrad.image_size cannot be read"),
        ("wgrad.image_size", "0", "wgrad.image_size is 0"),
        ("wgrad.image_size", "4294967295", "wgrad.image_size is 4294967295"),
        ("wgrad.mean", "[0.5, 0.5]", "wgrad.mean cannot be read"),
        ("wgrad.mean", "[0.5, 0.5, 1e99]", "wgrad.mean"),
        ("wgrad.std", "[0.2, 0.2, 0]", "wgrad.std"),
    ] {
        let message = refusal(&file(&resnet18(), &[(key, text)]));
        assert!(message.contains(part), "{key}={text}: {message}");
    }
}

#[test]
fn values_that_are_not_finite_are_reported_by_tensor() {
    let mut tensors = resnet18();
    tensors[0].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors[3].3[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let reported = read(&file(&tensors, &[])).unwrap().non_finite();
    let reported: Vec<_> = reported.iter().map(|tensor| tensor.to_string()).collect();
    assert_eq!(reported, ["bn1.running_mean (1 of 4 values)", "conv1.weight (1 of 588 values)"]);
    assert_eq!(read(&file(&resnet18(), &[])).unwrap().non_finite(), []);
}

// ---- a test per lie ----

#[test]
fn hostile_and_broken_files_are_refused() {
    let good = file(&resnet18(), &[]);
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |entry: String, bytes: usize| with_header(&format!("{{{entry}}}"), &vec![0; bytes]);
    let two = |a: String, b: String, bytes: usize| one(format!("{a},{b}"), bytes);
    let length = |claimed: u64| [&claimed.to_le_bytes(), &good[8..]].concat();
    let mut not_utf8 = good.clone();
    not_utf8[10] = 0xff;

    for (lie, bytes, part) in [
        ("empty", vec![], "is empty"),
        ("shorter than its length field", good[..5].to_vec(), "too few"),
        ("truncated in the header", good[..header_length / 2].to_vec(), "only"),
        ("truncated in the data", good[..good.len() - 1].to_vec(), "not fully covered"),
        ("bytes after the data", [&good[..], &[0]].concat(), "not fully covered"),
        ("header length 2^60", length(1 << 60), "claims 1152921504606846976 bytes"),
        ("header length 2^64 - 1", length(u64::MAX), "claims 18446744073709551615 bytes"),
        ("header length 0", length(0), "not a valid safetensors"),
        ("header one byte short", length(header_length as u64 - 1), "not a valid safetensors"),
        ("header not UTF-8", not_utf8, "not a valid safetensors"),
        ("header not JSON", with_header("{\"conv1.weight\":", &[]), "not a valid safetensors"),
        ("header a list", with_header("[]", &[]), "not a valid safetensors"),
        ("header deeply nested", with_header(&"[".repeat(100_000), &[]), "not a valid safetensors"),
        ("header without tensors", with_header("{}", &[]), "no tensor at all"),
        (
            "overlapping offsets",
            two(entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12), 12),
            "invalid offset",
        ),
        (
            "a hole between tensors",
            two(entry("a", "F32", "[1]", 0, 4), entry("b", "F32", "[1]", 8, 12), 12),
            "invalid offset",
        ),
        ("offsets backwards", one(entry("a", "F32", "[1]", 4, 0), 4), "invalid offset"),
        ("offsets beyond the file", one(entry("a", "F32", "[2]", 0, 8), 4), "not fully covered"),
        (
            "offsets at the end of the address space",
            one(entry("a", "U8", "[18446744073709551615]", 0, u64::MAX), 4),
            "not a valid safetensors",
        ),
        ("shape larger than its bytes", one(entry("a", "F32", "[3]", 0, 8), 8), "invalid shape"),
        (
            "shape that overflows",
            one(entry("a", "F32", "[4294967296,4294967296]", 0, 0), 0),
            "overflow",
        ),
        ("shape negative", one(entry("a", "F32", "[-1]", 0, 4), 4), "not a valid safetensors"),
        ("unknown dtype", one(entry("a", "F31", "[1]", 0, 4), 4), "not a valid safetensors"),
        ("dtype of another width", one(entry("a", "F16", "[1]", 0, 4), 4), "invalid shape"),
        (
            "one name twice",
            two(entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 0, 4), 4),
            "a is listed twice",
        ),
        (
            "metadata not strings",
            with_header(r#"{"__metadata__":{"format":1}}"#, &[]),
            "not a valid safetensors",
        ),
        ("a zip of pickles (.pth)", b"PK\x03\x04\0\0\x08\x08\0\0rest".to_vec(), "PyTorch pickle"),
        ("an old pickle (.pth)", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "save_file"),
        (
            "a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(),
            "git lfs pull",
        ),
        ("an ensemble", br#"{ "average": "logits", "members": [] }"#.to_vec(), "fuse distill"),
        ("an ONNX file", b"\x08\x08\x12\x05wgrad\x1a\x050.1.0:\xff\xff\x10".to_vec(), "ONNX file"),
        ("a web page", b"<!DOCTYPE html><title>404</title>".to_vec(), "web page"),
    ] {
        let message = refusal(&bytes);
        assert!(message.contains(part), "{lie}: {message}");
        assert!(message.contains("model.safetensors"), "{lie} does not name the file: {message}");
    }
}

#[test]
fn folders_and_absent_files_are_errors() {
    let folder = Folder::new();
    let error = Checkpoint::read(folder.0.path()).unwrap_err();
    assert!(error.to_string().contains("is a folder"), "{error}");
    std::fs::write(folder.path("args.json"), "{}").unwrap();
    let error = Checkpoint::read(folder.0.path()).unwrap_err();
    assert!(error.to_string().contains("is a run without weights"), "{error}");
    let error = Checkpoint::read(folder.path("absent.safetensors")).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("absent.safetensors")));
}

#[cfg(unix)]
#[test]
fn devices_are_refused_before_they_are_read() {
    let error = Checkpoint::read("/dev/zero").unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn a_sparse_file_of_any_length_is_not_read_into_memory() {
    let folder = Folder::new();
    let path = folder.path("huge.safetensors");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = Checkpoint::read(&path).unwrap_err();
    assert!(error.to_string().contains("more than any ResNet needs"), "{error}");
}

// ---- what we write ----

#[test]
fn writing_and_reading_gives_the_same_checkpoint_and_the_same_bytes() {
    let folder = Folder::new();
    for (arch, dtype) in
        [("resnet18-w4", Dtype::F32), ("resnet50-w4", Dtype::F16), ("resnet34-w2", Dtype::Bf16)]
    {
        let mut written = checkpoint(arch, 3);
        written.dtype = dtype;
        written.meta = Meta {
            classes: Some(strings(&["ant", "bee \"quoted\"", "Käfer"])),
            image_size: Some(64),
            mean: [0.1, 0.2, 1e-7],
            std: [0.3, 0.25, 1.0],
            provenance: Some(json!({"epochs": 5, "from": ["a", "b"]})),
            extra: [("author".to_owned(), "me".to_owned())].into(),
        };
        let (first, second) = (folder.path("first"), folder.path("second"));
        written.write(&first, dtype).unwrap();
        let again = Checkpoint::read(&first).unwrap();
        assert_eq!(again, written, "{arch}");
        again.write(&second, dtype).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap(), "{arch}");
    }
}

#[test]
fn the_file_is_what_the_safetensors_crate_and_torchvision_expect() {
    let folder = Folder::new();
    let path = folder.path("model.safetensors");
    let mut network = checkpoint("resnet18-w4", 2);
    network.meta.classes = Some(strings(&["ant", "bee"]));
    network.meta.image_size = Some(224);
    network.meta.provenance = Some(json!("test"));
    network.write(&path, Dtype::F16).unwrap();

    let bytes = fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
    let expected = [
        ("format", "pt"),
        ("wgrad.arch", "resnet18-w4"),
        ("wgrad.classes", r#"["ant","bee"]"#),
        ("wgrad.image_size", "224"),
        ("wgrad.mean", "[0.485, 0.456, 0.406]"),
        ("wgrad.provenance", "\"test\""),
        ("wgrad.std", "[0.229, 0.224, 0.225]"),
    ];
    assert_eq!(metadata, expected.map(|(key, text)| (key.to_owned(), text.to_owned())).into());
    let names: std::collections::BTreeSet<_> = header.tensors().into_keys().collect();
    let torchvision = listing("torchvision_resnet18").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, torchvision);
    let dtype_and_shape =
        |name| header.info(name).map(|info| (info.dtype, info.shape.clone())).unwrap();
    assert_eq!(dtype_and_shape("bn1.num_batches_tracked"), (safetensors::Dtype::I64, vec![]));
    assert_eq!(dtype_and_shape("conv1.weight"), (safetensors::Dtype::F16, vec![4, 3, 7, 7]));
    assert_eq!(dtype_and_shape("bn1.running_var"), (safetensors::Dtype::F32, vec![4]));

    // So narrow that in torchvision's order hardly a counter would be aligned.
    checkpoint("resnet18-w1", 3).write(&path, Dtype::F16).unwrap();
    let bytes = fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    for (name, info) in header.tensors() {
        let start = bytes.len() - header.data_len() + info.data_offsets.0;
        assert_eq!(start % (info.dtype.bitsize() / 8), 0, "{name} is not aligned");
    }
}

#[test]
fn halves_round_to_nearest_and_never_overflow_silently() {
    let folder = Folder::new();
    let path = folder.path("model.safetensors");
    let mut network = checkpoint("resnet18-w4", 2);
    let set = |network: &mut Checkpoint, name: &str, value: f32| match &mut network
        .tensors
        .get_mut(name)
        .unwrap()
        .data
    {
        HostData::F32(data) => data[0] = value,
        HostData::I64(_) => unreachable!(),
    };
    set(&mut network, "conv1.weight", 0.1);
    set(&mut network, "bn1.running_var", 1e-9);
    network.write(&path, Dtype::F16).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.tensors["conv1.weight"].as_f32().unwrap()[0], 0.099_975_586);
    assert_eq!(read.tensors["bn1.running_var"].as_f32().unwrap()[0], 1e-9);

    set(&mut network, "fc.weight", 65_520.0);
    let error = network.write(&path, Dtype::F16).unwrap_err().to_string();
    assert!(error.contains("fc.weight holds values beyond ±65504"), "{error}");
    network.write(&path, Dtype::Bf16).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        set(&mut network, "fc.weight", value);
        network.write(&path, Dtype::F16).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap().non_finite().len(), 1);
    }
}

#[test]
fn a_checkpoint_that_makes_no_sense_is_not_written() {
    let folder = Folder::new();
    let path = folder.path("model.safetensors");
    let spoil = |change: &dyn Fn(&mut Checkpoint)| {
        let mut network = checkpoint("resnet18-w4", 2);
        change(&mut network);
        network.write(&path, Dtype::F32).unwrap_err().to_string()
    };
    let message = spoil(&|network| drop(network.tensors.remove("bn1.bias")));
    assert!(message.contains("bn1.bias is missing"), "{message}");
    let message = spoil(&|network| network.tensors.get_mut("bn1.bias").unwrap().shape = vec![5]);
    assert!(message.contains("bn1.bias has shape [5]"), "{message}");
    let message = spoil(&|network| {
        network.tensors.insert("layer5".into(), HostTensor::scalar(0));
    });
    assert!(message.contains("layer5 is no tensor"), "{message}");
    let message = spoil(&|network| network.meta.classes = Some(strings(&["one"])));
    assert!(message.contains("names 1 classes"), "{message}");
    for value in [f32::NAN, f32::INFINITY] {
        let message = spoil(&|network| network.meta.std = [1.0, value, 1.0]);
        assert!(message.contains("wgrad.std"), "{message}");
        let message = spoil(&|network| network.meta.mean = [0.5, 0.5, value]);
        assert!(message.contains("wgrad.mean"), "{message}");
    }
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[test]
fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
    let folder = Folder::new();
    let path = folder.write(b"old");
    let full = |file: &mut std::io::BufWriter<&fs::File>| {
        std::io::Write::write_all(file, &[0; 3 << 20])?;
        Err(std::io::ErrorKind::StorageFull.into())
    };
    let error = write_atomically(&path, full).unwrap_err();
    assert!(matches!(&error, Error::Io { path: at, .. } if *at == path), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(folder.names(), ["model.safetensors"]);

    let network = checkpoint("resnet18-w4", 2);
    fs::create_dir(folder.path("taken")).unwrap();
    for place in ["absent/model.safetensors", "model.safetensors/model.safetensors", "taken"] {
        let error = network.write(folder.path(place), Dtype::F32).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{place}: {error}");
        assert!(!error.to_string().contains(".wgrad-"), "a name that nobody knows: {error}");
    }
    assert_eq!(folder.names().len(), 2, "{:?}", folder.names());
}

#[cfg(unix)]
#[test]
fn files_get_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let plain = folder.write(b"");
    let written = folder.path("written");
    checkpoint("resnet18-w4", 2).write(&written, Dtype::F32).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&written), mode(&plain));
}

// ---- fitting to data ----

#[test]
fn the_head_is_kept_only_when_it_means_the_same_classes() {
    let named = {
        let mut network = checkpoint("resnet18-w4", 2);
        network.meta.classes = Some(strings(&["ant", "bee"]));
        network
    };
    let unnamed = checkpoint("resnet18-w4", 2);
    let (same, renamed, more) =
        (&["ant", "bee"][..], &["bee", "ant"][..], &["ant", "bee", "fly"][..]);
    // (checkpoint, classes of the data, policy, whether the head is kept; None: an error)
    for (network, classes, policy, kept) in [
        (&named, same, HeadPolicy::Auto, Some(true)),
        (&named, renamed, HeadPolicy::Auto, Some(false)),
        (&named, more, HeadPolicy::Auto, Some(false)),
        (&named, renamed, HeadPolicy::Keep, Some(true)),
        (&named, more, HeadPolicy::Keep, None),
        (&named, same, HeadPolicy::Reset, Some(false)),
        (&unnamed, renamed, HeadPolicy::Auto, Some(true)),
        (&unnamed, more, HeadPolicy::Auto, Some(false)),
    ] {
        let fitted = network.fit(&network.arch, &strings(classes), policy);
        let Some(kept) = kept else {
            let error = fitted.unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("2 classes in the checkpoint, 3 in the data"));
            continue;
        };
        let (tensors, report) = fitted.unwrap();
        assert_eq!(tensors.contains_key("fc.weight"), kept, "{classes:?} {policy:?}");
        assert_eq!(tensors.contains_key("fc.bias"), kept, "{classes:?} {policy:?}");
        assert_eq!(report.loaded, if kept { 122 } else { 120 });
        assert_eq!(report.reset.len(), if kept { 0 } else { 2 });
        assert_eq!(report.mis_shaped.len(), if classes.len() == 3 { 2 } else { 0 });
    }
    let (_, report) = named.fit(&named.arch, &strings(more), HeadPolicy::Auto).unwrap();
    assert_eq!(
        report.to_string(),
        "120 tensors loaded\n\
         reset: fc.weight, fc.bias (2 classes in the checkpoint, 3 in the data)\n\
         of another shape: fc.weight [2, 32] where [3, 32] is needed, fc.bias [2] where [3] is needed"
    );
}

#[test]
fn classes_go_by_their_ids_where_the_data_do() {
    let with_ids = || {
        let mut network = checkpoint("resnet18-w4", 2);
        network.meta.classes = Some(strings(&["ant", "bee"]));
        network.meta.set_class_ids(&strings(&["n1", "n2"]));
        network
    };
    for (data, called, ids) in [
        (&["n1", "n2"][..], &["n1", "n2"][..], &[][..]),
        (&["n2", "n1"], &["n1", "n2"], &[]),
        (&["ant", "bee"], &["ant", "bee"], &["n1", "n2"]),
        (&["n1", "n3"], &["ant", "bee"], &["n1", "n2"]),
        (&[], &["ant", "bee"], &["n1", "n2"]),
    ] {
        let mut network = with_ids();
        network.call_classes_like(&strings(data));
        assert_eq!(network.meta.classes, Some(strings(called)), "{data:?}");
        assert_eq!(network.class_ids(), strings(ids), "{data:?}");
    }
    // Rows that change places take their ids along.
    let mut network = with_ids();
    network.order_classes(&strings(&["bee", "ant"]), &"the data").unwrap();
    assert_eq!(network.class_ids(), strings(&["n2", "n1"]));
    // A header may say anything.
    for ids in [&["n1"][..], &["n1", "n2", "n3"]] {
        network.meta.set_class_ids(&strings(ids));
        assert_eq!(network.class_ids(), strings(&[]), "{ids:?}");
        network.call_classes_like(&strings(&["n1"]));
        assert_eq!(network.meta.classes, Some(strings(&["bee", "ant"])), "{ids:?}");
    }
}

#[test]
fn another_network_is_wrong_usage() {
    let network = checkpoint("resnet18-w4", 2);
    let other = Arch::from_name("resnet34").unwrap();
    let error = network.fit(&other, &strings(&["a", "b"]), HeadPolicy::Auto).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("resnet18-w4, not a resnet34"), "{error}");
}

// ---- inspect ----

#[test]
fn inspection_shows_what_the_file_holds() {
    let mut tensors = raw(&narrow(listing("hf_resnet18")), "BF16");
    tensors.push(("projector".into(), "F32", vec![1], vec![0; 4]));
    let folder = Folder::new();
    let inspection = describe(folder.write(&file(&tensors, &[("author", "me")]))).unwrap();
    let shown = inspection.to_string();
    for part in [
        "resnet18-w4",
        "10 classes",
        "bf16",
        "author",
        "from resnet.embedder",
        "ignored        projector",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["tensors"][0]["name"], "conv1.weight");
    assert_eq!(json["tensors"][0]["shape"], json!([4, 3, 7, 7]));
    assert_eq!(json["dtype"], "bf16");
    assert_eq!(json["num_classes"], 10);
    let learnt = checkpoint("resnet18-w4", 10)
        .tensors
        .into_iter()
        .filter(|(name, _)| !name.contains("running") && !name.contains("tracked"));
    let parameters: usize = learnt.map(|(_, tensor)| tensor.len()).sum();
    assert_eq!(inspection.parameters, parameters);
}

// ---- the bundled weights ----

#[test]
fn the_bundled_weights_are_as_their_readme_says() {
    let path = Source::Bundled.resolve(&mut |_| {}).unwrap().unwrap();
    let checkpoint = Checkpoint::read(&path).unwrap();
    assert_eq!(checkpoint.arch, Arch::from_name("resnet18").unwrap());
    assert_eq!(checkpoint.dtype, Dtype::F16);
    assert_eq!(checkpoint.num_classes(), Some(200));
    assert_eq!(checkpoint.meta.classes.as_ref().unwrap()[0], "goldfish, Carassius auratus");
    assert_eq!(checkpoint.meta.image_size, Some(64));
    assert_eq!(checkpoint.meta.mean, IMAGENET_MEAN);
    assert_eq!(checkpoint.non_finite(), []);

    use sha2::Digest;
    let digest = sha2::Sha256::digest(fs::read(&path).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let readme = fs::read_to_string(path.with_file_name("README.md")).unwrap();
    assert!(readme.contains(&digest), "weights/README.md does not say sha256 {digest}");
}

// ---- properties ----

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes).is_err());
        let _ = read(&with_header(&String::from_utf8_lossy(&bytes), &bytes));
    }

    #[test]
    fn a_mutated_file_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_header in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(&resnet18(), &[("wgrad.image_size", "64"), ("wgrad.mean", "[0.5,0.5,0.5]")]);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let reach = if in_header { header } else { bytes.len() };
        for (index, byte) in edits {
            bytes[index.index(reach)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(checkpoint) = read(&bytes) {
            for (name, tensor) in checkpoint.tensors {
                prop_assert_eq!(tensor.len(), tensor.shape.iter().product::<usize>(), "{}", name);
            }
        }
    }

    #[test]
    fn any_values_round_trip_bit_for_bit(
        bits in prop::collection::vec(any::<u32>(), 1..64),
        counter in any::<i64>(),
        classes in prop::collection::vec(any::<String>(), 2),
        extra in prop::collection::btree_map("[a-z]{1,8}", any::<String>(), 0..4),
    ) {
        let mut network = checkpoint("resnet18-w1", 2);
        for tensor in network.tensors.values_mut() {
            match &mut tensor.data {
                HostData::F32(data) => {
                    data.iter_mut().zip(bits.iter().cycle()).for_each(|(v, b)| *v = f32::from_bits(*b));
                }
                HostData::I64(data) => data[0] = counter,
            }
        }
        network.meta.classes = Some(classes);
        network.meta.extra = extra.into_iter().filter(|(key, _)| key != "format").collect();
        let folder = Folder::new();
        let path = folder.path("model.safetensors");
        network.write(&path, Dtype::F32).unwrap();
        let again = Checkpoint::read(&path).unwrap();
        prop_assert_eq!(&again.meta, &network.meta);
        for (name, tensor) in &network.tensors {
            let bits = |tensor: &HostTensor| -> Vec<u32> {
                tensor.as_f32().unwrap_or_default().iter().map(|v| v.to_bits()).collect()
            };
            prop_assert_eq!(bits(&again.tensors[name]), bits(tensor), "{}", name);
        }
        prop_assert_eq!(&again.tensors["bn1.num_batches_tracked"], &HostTensor::scalar(counter));
    }
}
