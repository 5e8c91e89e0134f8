//! What `wgrad export` writes: the ONNX graph, done node by node in f64, gives the network's answers.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/program.rs"]
mod program;

use std::collections::HashMap;
use std::path::Path;

use program::Wgrad;
use prost::Message;
use rand::{RngExt, SeedableRng};
use wgrad::checkpoint::onnx::{Model, Node};
use wgrad::checkpoint::{Checkpoint, Dtype, HostTensor, IMAGENET_MEAN, IMAGENET_STD, Meta};
use wgrad::nn::Arch;
use wgrad::nn::arch::Kind;

const SIZE: usize = 32;
const CLASSES: [&str; 3] = ["ant", "bee", "wasp"];

/// A narrow network whose every tensor matters.
fn checkpoint(arch: &str) -> Checkpoint {
    let arch = Arch::from_name(arch).unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut tensor = |shape: &[usize], kind: Kind| {
        let reach = match kind {
            Kind::NumBatches => return HostTensor::scalar(3),
            Kind::Conv => (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt(),
            _ => 0.5,
        };
        let middle = if matches!(kind, Kind::NormWeight | Kind::RunningVar) { 1.0 } else { 0.0 };
        let number = |_| middle + random.random_range(-reach..reach);
        HostTensor::f32(shape, (0..shape.iter().product()).map(number).collect())
    };
    let entries = arch.entries(CLASSES.len()).into_iter();
    Checkpoint {
        arch,
        tensors: entries.map(|it| (it.name, tensor(&it.shape, it.kind))).collect(),
        meta: Meta {
            classes: Some(CLASSES.map(String::from).into()),
            image_size: Some(SIZE as u32),
            ..Meta::default()
        },
        dtype: Dtype::F32,
        missing: Vec::new(),
        unexpected: Vec::new(),
    }
}

/// Numbers in ONNX's order: images, channels, rows, columns.
#[derive(Clone)]
struct Array {
    sizes: Vec<usize>,
    data: Vec<f64>,
}

fn integers(node: &Node, name: &str) -> Vec<usize> {
    let attribute = node.attribute.iter().find(|attribute| attribute.name == name);
    attribute.expect(name).ints.iter().map(|&value| value as usize).collect()
}

/// Every window of `x` as the node moves it: output index, and the input's rows and columns.
fn windows(
    x: &Array,
    node: &Node,
    mut each: impl FnMut(usize, [Option<usize>; 2], usize, usize),
) -> [usize; 2] {
    let [kernel, strides, pads] =
        ["kernel_shape", "strides", "pads"].map(|name| integers(node, name));
    let size = |axis: usize| {
        (x.sizes[2 + axis] + pads[axis] + pads[2 + axis] - kernel[axis]) / strides[axis] + 1
    };
    let (height, width) = (size(0), size(1));
    for at in 0..height * width {
        for tap in 0..kernel[0] * kernel[1] {
            let inside = |axis: usize, out: usize, tap: usize| {
                let place = (out * strides[axis] + tap).checked_sub(pads[axis])?;
                (place < x.sizes[2 + axis]).then_some(place)
            };
            let place =
                [inside(0, at / width, tap / kernel[1]), inside(1, at % width, tap % kernel[1])];
            each(at, place, tap, kernel[0] * kernel[1]);
        }
    }
    [height, width]
}

/// What `join` makes of the numbers at every place of arrays; an array of one number a channel has it everywhere.
fn with_others(arrays: &[&Array], join: impl Fn(&[f64]) -> f64) -> Array {
    let first = arrays[0];
    let number = |array: &Array, at: usize| match array.sizes[..] {
        [1, channels, 1, 1] if first.sizes[2..] != [1, 1] => {
            array.data[at * channels / first.data.len()]
        }
        _ => array.data[at],
    };
    let place = |at| join(&arrays.iter().map(|array| number(array, at)).collect::<Vec<_>>());
    Array { sizes: first.sizes.clone(), data: (0..first.data.len()).map(place).collect() }
}

/// The output of a node for a single image.
fn run(node: &Node, inputs: &[&Array]) -> Array {
    let x = inputs[0];
    let plane = |array: &Array| array.sizes[2..].iter().product::<usize>();
    let like = |data| Array { sizes: x.sizes.clone(), data };
    match node.op_type.as_str() {
        "Conv" => {
            let w = inputs[1];
            let (c_out, c_in) = (w.sizes[0], w.sizes[1]);
            assert_eq!(x.sizes[1], c_in, "{}", node.name);
            let mut sums: Vec<Vec<f64>> = vec![Vec::new(); c_out];
            let [height, width] = windows(x, node, |at, place, tap, taps| {
                for (co, sums) in sums.iter_mut().enumerate() {
                    sums.resize(at + 1, 0.0);
                    let [Some(h), Some(v)] = place else { continue };
                    for ci in 0..c_in {
                        let x = x.data[(ci * x.sizes[2] + h) * x.sizes[3] + v];
                        sums[at] += x * w.data[(co * c_in + ci) * taps + tap];
                    }
                }
            });
            Array { sizes: vec![1, c_out, height, width], data: sums.concat() }
        }
        "BatchNormalization" => {
            let epsilon = f64::from(node.attribute[0].f);
            assert_eq!(node.attribute[0].name, "epsilon");
            let normal = |(at, value): (usize, &f64)| {
                let c = at / plane(x);
                let [scale, shift, mean, variance] = [1, 2, 3, 4].map(|i| inputs[i].data[c]);
                scale * (value - mean) / (variance + epsilon).sqrt() + shift
            };
            like(x.data.iter().enumerate().map(normal).collect())
        }
        "Relu" => like(x.data.iter().map(|value| value.max(0.0)).collect()),
        "Add" => with_others(inputs, |numbers| numbers.iter().sum()),
        "Sub" => with_others(inputs, |numbers| numbers[0] - numbers[1]),
        "Mul" => with_others(inputs, |numbers| numbers[0] * numbers[1]),
        "Mean" => with_others(inputs, |numbers| numbers.iter().sum::<f64>() / numbers.len() as f64),
        "Max" => with_others(inputs, |numbers| numbers.iter().copied().fold(f64::MIN, f64::max)),
        "Exp" => like(x.data.iter().map(|value| value.exp()).collect()),
        "Log" => like(x.data.iter().map(|value| value.ln()).collect()),
        "LogSoftmax" => {
            assert_eq!((node.attribute[0].name.as_str(), node.attribute[0].i), ("axis", 1));
            let sum: f64 = x.data.iter().map(|value| value.exp()).sum();
            like(x.data.iter().map(|value| value - sum.ln()).collect())
        }
        "MaxPool" => {
            let mut most: Vec<Vec<f64>> = vec![Vec::new(); x.sizes[1]];
            let [height, width] = windows(x, node, |at, place, _, _| {
                for (c, most) in most.iter_mut().enumerate() {
                    most.resize(at + 1, f64::NEG_INFINITY);
                    let [Some(h), Some(v)] = place else { continue };
                    most[at] = most[at].max(x.data[(c * x.sizes[2] + h) * x.sizes[3] + v]);
                }
            });
            Array { sizes: vec![1, x.sizes[1], height, width], data: most.concat() }
        }
        "GlobalAveragePool" => {
            let means =
                x.data.chunks(plane(x)).map(|all| all.iter().sum::<f64>() / all.len() as f64);
            Array { sizes: vec![1, x.sizes[1], 1, 1], data: means.collect() }
        }
        "Flatten" => Array { sizes: vec![1, x.data.len()], data: x.data.clone() },
        "Gemm" => {
            assert_eq!((node.attribute[0].name.as_str(), node.attribute[0].i), ("transB", 1));
            let rows = inputs[1].data.chunks(inputs[1].sizes[1]).zip(&inputs[2].data);
            let dot = |row: &[f64]| row.iter().zip(&x.data).map(|(w, x)| w * x).sum::<f64>();
            let data: Vec<_> = rows.map(|(row, bias)| dot(row) + bias).collect();
            Array { sizes: vec![1, data.len()], data }
        }
        other => panic!("{}: {other} is none of the network's operations", node.name),
    }
}

fn logits(model: &Model, image: Array) -> Vec<f64> {
    let graph = model.graph.as_ref().unwrap();
    let mut values = HashMap::from([(graph.input[0].name.clone(), image)]);
    for tensor in &graph.initializer {
        let numbers = tensor.raw_data.as_chunks().0.iter();
        let data: Vec<_> = numbers.map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect();
        let sizes: Vec<_> = tensor.dims.iter().map(|&size| size as usize).collect();
        assert_eq!(data.len(), sizes.iter().product::<usize>(), "{}", tensor.name);
        values.insert(tensor.name.clone(), Array { sizes, data });
    }
    for node in &graph.node {
        let inputs: Vec<_> = node.input.iter().map(|name| &values[name]).collect();
        let output = run(node, &inputs);
        values.insert(node.output[0].clone(), output);
    }
    values[&graph.output[0].name].data.clone()
}

/// A folder with a picture of the networks' size.
struct Gallery {
    wgrad: Wgrad,
    picture: image::RgbImage,
}

impl Gallery {
    fn new() -> Self {
        let wgrad = Wgrad::new();
        let picture = image::RgbImage::from_fn(SIZE as u32, SIZE as u32, |x, y| {
            image::Rgb([(x * 8) as u8, (y * 8) as u8, (x * y % 251) as u8])
        });
        picture.save(wgrad.path("picture.png")).unwrap();
        Self { wgrad, picture }
    }

    /// Exports `weights`, and sees that the graph says of the picture what `wgrad predict` says.
    fn export(&self, weights: &str) -> Model {
        let Self { wgrad, picture } = self;
        wgrad.run(&["export", "out.onnx", "--weights", weights]).answer();
        let model = Model::decode(&*std::fs::read(wgrad.path("out.onnx")).unwrap()).unwrap();

        let arguments = ["predict", "picture.png", "--weights", weights, "--json"];
        let answer: serde_json::Value =
            serde_json::from_str(wgrad.run(&arguments).answer().trim()).unwrap();
        let expected: Vec<f64> =
            answer["logits"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();

        let normal = |c: usize| {
            let (mean, std) = (f64::from(IMAGENET_MEAN[c]), f64::from(IMAGENET_STD[c]));
            picture.pixels().map(move |pixel| (f64::from(pixel.0[c]) / 255.0 - mean) / std)
        };
        let data = (0..3).flat_map(normal).collect();
        let found = logits(&model, Array { sizes: vec![1, 3, SIZE, SIZE], data });
        let largest = expected.iter().fold(0.0, |most: f64, logit| most.max(logit.abs()));
        assert!(largest > 0.1, "{expected:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5 * largest, "{weights}: {found} for {expected}");
        }
        assert_eq!(found.len(), expected.len());
        model
    }
}

fn property<'a>(model: &'a Model, key: &str) -> Option<&'a str> {
    model.metadata_props.iter().find(|it| it.key == key).map(|it| it.value.as_str())
}

#[test]
fn the_onnx_graph_is_the_network() {
    let gallery = Gallery::new();
    for arch in ["resnet18-w8", "resnet50-w8"] {
        checkpoint(arch).write(gallery.wgrad.path("narrow.safetensors"), Dtype::F32).unwrap();
        let model = gallery.export("narrow.safetensors");
        assert_eq!(property(&model, "wgrad.classes"), Some(r#"["ant","bee","wasp"]"#));
        assert_eq!(property(&model, "wgrad.image_size"), Some("32"));
        assert_eq!(property(&model, "wgrad.arch"), Some(arch));
    }
}

#[test]
fn the_onnx_graph_of_an_ensemble_answers_for_all() {
    let gallery = Gallery::new();
    let path = |name: &str| gallery.wgrad.path(name);
    checkpoint("resnet18-w8").write(path("first.safetensors"), Dtype::F32).unwrap();
    // Other layers, other preprocessing, and the classes in another order.
    let mut other = checkpoint("resnet50-w8");
    other.meta.classes = Some(["wasp", "ant", "bee"].map(String::from).into());
    (other.meta.mean, other.meta.std) = ([0.5; 3], [0.25, 0.5, 1.0]);
    other.write(path("other.safetensors"), Dtype::F32).unwrap();
    for average in ["probabilities", "logits"] {
        let members = ["first", "other", "first"];
        let members =
            members.map(|name| serde_json::json!({ "path": format!("{name}.safetensors") }));
        let ensemble = serde_json::json!({ "average": average, "members": members });
        std::fs::write(path("ensemble.json"), ensemble.to_string()).unwrap();
        let model = gallery.export("ensemble.json");
        assert_eq!(property(&model, "wgrad.classes"), Some(r#"["ant","bee","wasp"]"#));
        let arch = "ensemble of resnet18-w8, resnet50-w8, resnet18-w8";
        assert_eq!(property(&model, "wgrad.arch"), Some(arch));
        let provenance = property(&model, "wgrad.provenance").unwrap();
        let provenance: serde_json::Value = serde_json::from_str(provenance).unwrap();
        assert_eq!(provenance["fuse"]["average"], average);
        assert_eq!(provenance["parents"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn safetensors_are_written_in_any_precision() {
    let wgrad = Wgrad::new();
    let original = checkpoint("resnet18-w8");
    original.write(wgrad.path("narrow.safetensors"), Dtype::F32).unwrap();
    for (name, dtype) in [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::Bf16)] {
        let arguments =
            ["export", "out.safetensors", "--weights", "narrow.safetensors", "--dtype", name];
        let ran = wgrad.run(&[&arguments[..], &["--json"]].concat());
        let told: serde_json::Value = serde_json::from_str(ran.answer()).unwrap();
        assert_eq!(
            (&told["arch"], &told["to"]),
            (&"resnet18-w8".into(), &"out.safetensors".into())
        );
        let written = Checkpoint::read(wgrad.path("out.safetensors")).unwrap();
        assert_eq!(written.dtype, dtype);
        assert_eq!(written.meta, original.meta);
        assert_eq!(written.tensors == original.tensors, dtype == Dtype::F32);
    }
}

#[test]
fn what_cannot_be_exported_is_told() {
    let wgrad = Wgrad::new();
    checkpoint("resnet18-w8").write(wgrad.path("narrow.safetensors"), Dtype::F32).unwrap();
    let export = |arguments: &[&str]| wgrad.run(&[&["export"], arguments].concat());
    let weights = ["--weights", "narrow.safetensors"];
    let told = |arguments: &[&str], code, text: &str| {
        let ran = export(arguments);
        assert!(ran.error(code).contains(text), "{}", ran.stderr);
    };
    told(&[&["network.pt"][..], &weights].concat(), 2, "must end in .onnx or .safetensors");
    told(
        &[&["x.onnx", "--dtype", "f16"][..], &weights].concat(),
        2,
        "ONNX files are written in f32",
    );
    told(&["x.onnx", "--weights", "absent.safetensors"], 1, "absent.safetensors");
    told(&["x.onnx"], 1, "runs");
    let mut large = checkpoint("resnet18-w8");
    large.meta.image_size = Some(64);
    large.write(wgrad.path("large.safetensors"), Dtype::F32).unwrap();
    let members = r#"{"members": [{"path": "narrow.safetensors"}, {"path": "large.safetensors"}]}"#;
    std::fs::write(wgrad.path("ensemble.json"), members).unwrap();
    told(&["x.onnx", "--weights", "ensemble.json"], 2, "32 and 64 px");
    told(&["x.safetensors", "--weights", "ensemble.json"], 2, "several networks");
    told(&[&["absent/x.onnx"][..], &weights].concat(), 1, "absent");
    assert!(!Path::exists(&wgrad.path("x.onnx")));
    // Who means to look at a file with `export` keeps it.
    let before = std::fs::read(wgrad.path("narrow.safetensors")).unwrap();
    told(&[&["narrow.safetensors", "--dtype", "f16"][..], &weights].concat(), 2, "another FILE");
    assert!(std::fs::read(wgrad.path("narrow.safetensors")).unwrap() == before);
    std::fs::create_dir_all(wgrad.path("run/weights")).unwrap();
    std::fs::write(wgrad.path("run/args.json"), "{}").unwrap();
    std::fs::write(wgrad.path("run/weights/best.safetensors"), before).unwrap();
    told(&[&["run/weights/best.safetensors"][..], &weights].concat(), 2, "another FILE");
}
