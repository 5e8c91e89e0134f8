//! The program from the outside: exit codes, messages, what is on which stream.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use program::{Ran, Wgrad};

const BUNDLED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/weights/resnet18-tiny-imagenet.safetensors");
const CLIPART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/clipart");

/// Every command.
const COMMANDS: [&str; 14] = [
    "finetune",
    "pretrain",
    "evaluate",
    "predict",
    "explain",
    "fuse interpolate",
    "fuse soup",
    "fuse ensemble",
    "fuse distill",
    "verify",
    "bench",
    "devices",
    "inspect",
    "export",
];

/// Runs a command with one more argument.
fn ask(wgrad: &Wgrad, command: &str, argument: &str) -> Ran {
    wgrad.run(&command.split(' ').chain([argument]).collect::<Vec<_>>())
}

#[test]
fn help_and_version_succeed() {
    let wgrad = Wgrad::new();
    assert_eq!(
        wgrad.run(&["--version"]).answer().trim(),
        concat!("wgrad ", env!("CARGO_PKG_VERSION"))
    );
    let help = wgrad.run(&["--help"]);
    for command in COMMANDS {
        let (first, method) = command.split_once(' ').unwrap_or((command, ""));
        assert!(help.answer().contains(&format!("\n  {first} ")), "{command}: {}", help.stdout);
        assert!(wgrad.run(&[first, "--help"]).answer().contains(method));
        assert!(ask(&wgrad, command, "--version").answer().contains(env!("CARGO_PKG_VERSION")));
    }
    let commands = help.answer().split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut known: Vec<_> = COMMANDS.map(|command| command.split(' ').next().unwrap()).into();
    known.dedup();
    assert_eq!(commands.trim().lines().count(), known.len() + 1, "and help: {commands}");
}

#[test]
fn every_command_takes_the_shared_options() {
    let wgrad = Wgrad::new();
    for command in COMMANDS {
        let ran = ask(&wgrad, command, "--help");
        for option in ["--json", "-q, --quiet", "-v, --verbose"] {
            assert!(ran.answer().contains(option), "{command} lacks {option}");
        }
    }
    let told = |option| wgrad.run(&["inspect", BUNDLED, option]).answer().to_owned();
    assert_eq!(told("-q"), told("-v"), "an answer is told in full");
}

#[test]
fn help_tells_the_default_of_every_option() {
    let wgrad = Wgrad::new();
    for command in COMMANDS {
        let ran = ask(&wgrad, command, "--help");
        // An option starts a block of lines that ends where the next one starts.
        let blocks = ran.answer().split("\n  -").flat_map(|block| block.split("\n      --"));
        for block in blocks.skip(1) {
            let name = block.lines().next().unwrap_or_default();
            let told = block.contains("[default: ")
                || ["-help", "-version", "h, ", "V, ", "no-augment"]
                    .iter()
                    .any(|n| name.starts_with(n));
            assert!(told, "{command}: no default told for {block}");
        }
    }
}

#[test]
fn pretrain_starts_from_nothing() {
    let wgrad = Wgrad::new();
    let default = |command| {
        let help = wgrad.run(&[command, "--help"]).stdout;
        let weights = help.split("--weights <").nth(1).unwrap();
        weights.split("[default: ").nth(1).unwrap().split(']').next().unwrap().to_owned()
    };
    assert_eq!(default("finetune"), "bundled");
    assert_eq!(default("pretrain"), "none");
}

#[test]
fn help_is_true_of_each_command() {
    let wgrad = Wgrad::new();
    for command in ["finetune", "pretrain", "fuse distill"] {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = wgrad.run(&arguments).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let name = command.trim_start_matches("fuse ");
        let folders = format!("the first free of runs/{name}, runs/{name}-2, …");
        assert!(help.contains(&folders), "{help}");
        assert_eq!(help.contains("--weights"), name != "distill", "{help}");
        assert_eq!(
            help.contains("[default: 1; 0 with --student none]"),
            name == "distill",
            "{help}"
        );
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_to_do() {
    let wgrad = Wgrad::new();
    for (arguments, texts) in [
        ("--epohcs 3", &["--epohcs", "--epochs"][..]),
        ("--epochs three", &["--epochs", "three"]),
        ("--epochs 0 --freeze-epochs 0", &["--epochs 0", "raise"]),
        ("--weights none --epochs 0", &["--freeze-epochs 0", "raise"]),
        ("--batch-size 0", &["--batch-size 0", "1"]),
        ("--unfreeze-every 1 --epochs 4", &["--unfreeze-every 1", "5 --epochs"]),
        ("--unfreeze-every 1 --freeze backbone", &["--unfreeze-every", "nothing to unfreeze"]),
        ("--weights none --head keep", &["--head keep", "leave it out"]),
        ("--accumulate 0", &["--accumulate 0", "1 batch"]),
        ("--model-ema-decay 1", &["--model-ema-decay 1", "without 1"]),
        ("--lr fast", &["fast", "auto"]),
        ("--pct-start 0.5", &["--pct-start", "--lr-scheduler onecycle"]),
        ("--lr-scheduler onecycle --div-factor 0", &["--div-factor 0", "above 0"]),
        ("--patience 0", &["--patience 0", "1 or more"]),
        ("--best-by luck", &["luck", "--best-by"]),
        ("--save-every 0s", &["0s", "60s"]),
        ("--resume nowhere", &["--resume nowhere", "no run was begun"]),
        ("--resume a --output-dir b", &["--output-dir", "leave"]),
        ("--max-steps 0", &["--max-steps 0", "leave it out"]),
        ("--lr -1", &["--lr -1", "0 or more"]),
        ("--head-lr inf", &["--head-lr inf", "a number"]),
        ("--wd nan", &["--weight-decay NaN", "a number"]),
        ("--momentum 1", &["--momentum 1", "without 1"]),
        ("--nesterov --momentum 0", &["--nesterov", "--momentum above 0"]),
        ("--opt adam --momentum 0.9", &["--opt sgd", "leave them out"]),
        ("--opt rmsprop", &["rmsprop", "--opt"]),
        ("--label-smoothing 1.5", &["--label-smoothing 1.5", "from 0"]),
        ("--val-fraction -0.1", &["--val-fraction -0.1", "from 0"]),
        ("--clip-grad-norm 0", &["--clip-grad-norm 0", "above 0"]),
        ("--lr-mult 0", &["--lr-mult 0", "above 0"]),
        ("--image-size 16", &["--image-size 16", "32"]),
        ("--lr-scheduler linear", &["linear", "--lr-scheduler"]),
        ("--lr-gamma 0.5", &["--lr-gamma", "--lr-scheduler step"]),
        ("--lr-scheduler step --lr-step-size 0", &["--lr-step-size 0", "1"]),
        ("--lr-scheduler onecycle --lr-warmup-epochs 1", &["--lr-warmup-epochs", "cosine"]),
        ("--lr-warmup-epochs 5", &["--lr-warmup-epochs 5", "5 epochs"]),
        ("--freeze layer5", &["layer5", "--freeze"]),
        ("--augment light --no-augment", &["--augment", "--no-augment"]),
        ("--arch resnet20", &["resnet20", "resnet18"]),
        ("--weights hf:timm", &["hf:timm", "hf:OWNER/NAME"]),
        ("--workers 99999", &["99999", "0..=1024"]),
        ("--backend directx", &["directx", "--backend"]),
        ("--precision f16", &["f16", "--precision", "mixed"]),
        ("--quiet --verbose", &["--quiet", "--verbose"]),
    ] {
        let arguments: Vec<_> = std::iter::once("finetune").chain(arguments.split(' ')).collect();
        let ran = wgrad.run(&arguments);
        ran.error(2);
        for text in texts {
            assert!(ran.stderr.contains(text), "{arguments:?}: no {text:?} in {}", ran.stderr);
        }
        assert_eq!(ran.stdout, "");
    }
    assert_eq!(wgrad.run(&[]).code, Some(2), "no command");
    assert_eq!(wgrad.run(&["predict"]).code, Some(2), "no image");
    assert!(!wgrad.path("runs").exists(), "nothing was started");
}

#[test]
fn help_names_what_is_read_and_written() {
    let wgrad = Wgrad::new();
    for (command, text) in [
        ("fuse soup", "weights/best.safetensors"),
        ("fuse interpolate", "weights/best.safetensors"),
        ("export", "a run's folder"),
    ] {
        let ran = ask(&wgrad, command, "--help");
        assert!(ran.answer().contains(text), "{command}: {}", ran.stdout);
    }
}

#[test]
fn explain_offers_what_it_takes() {
    let wgrad = Wgrad::new();
    let help = |command| wgrad.run(&[command, "--help"]).stdout;
    for text in ["--batch-size", "ensemble.json"] {
        assert!(help("predict").contains(text) && !help("explain").contains(text), "{text}");
    }
    assert!(help("explain").contains("--image-size"));
    fs::write(wgrad.path("ensemble.json"), "{}").unwrap();
    let ran = wgrad.run(&["explain", "x.png", "--weights", "ensemble.json"]);
    assert!(ran.error(2).contains("several networks"), "{}", ran.stderr);
}

#[test]
fn temperatures_have_limits() {
    let wgrad = Wgrad::new();
    for temperature in ["1e-60", "0.001", "1e60", "0", "-1", "inf", "nan", "cold"] {
        let ran = wgrad.run(&["evaluate", &format!("--temperature={temperature}")]);
        ran.error(2);
        assert!(ran.stderr.contains("a number from 0.01 to 100"), "{temperature}: {}", ran.stderr);
    }
}

#[test]
fn inspect_describes_a_checkpoint() {
    let wgrad = Wgrad::new();
    let ran = wgrad.run(&["inspect", BUNDLED]);
    for text in ["resnet18", "200 classes", "64×64", "conv1.weight", "fc.bias"] {
        assert!(ran.answer().contains(text), "no {text} in {}", ran.stdout);
    }
    let ran = wgrad.run(&["inspect", "--json", BUNDLED]);
    ran.answer();
    let [object] = &ran.objects()[..] else { panic!("{}", ran.stdout) };
    assert_eq!(object["arch"], "resnet18");
    assert_eq!(object["num_classes"], 200);
    assert!(wgrad.run(&["inspect", "bundled"]).answer().contains("200 classes"));
}

#[test]
fn inspect_speaks_of_no_option_that_it_lacks() {
    let wgrad = Wgrad::new();
    for (name, code, text) in [
        ("nothere", 1, "nothere: there is no such file; give FILE, a run's folder"),
        ("hf:foo", 2, "hf:foo: expected hf:OWNER/NAME"),
        ("none", 2, "name a checkpoint"),
    ] {
        let ran = wgrad.run(&["inspect", name]);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
        assert!(!ran.stderr.contains("--weights"), "{}", ran.stderr);
    }
}

#[test]
fn inspect_survives_hostile_files() {
    let wgrad = Wgrad::new();
    let write = |name: &str, bytes: &[u8]| fs::write(wgrad.path(name), bytes).unwrap();
    write("empty", b"");
    write("text", b"a text about networks");
    write("huge-header", &[&(1u64 << 60).to_le_bytes()[..], b"{}"].concat());
    write("half", &fs::read(BUNDLED).unwrap()[..1 << 20]);
    let overlap = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    write("overlap", &[&(overlap.len() as u64).to_le_bytes()[..], overlap, &[0; 4]].concat());
    fs::create_dir(wgrad.path("folder")).unwrap();
    for name in ["empty", "text", "huge-header", "half", "overlap", "folder", "missing"] {
        let ran = wgrad.run(&["inspect", name]);
        let error = ran.error(1);
        assert!(error.starts_with(&format!("error: reading the checkpoint: {name}: ")), "{error}");
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn a_cause_is_told_once() {
    let ran = Wgrad::new().run(&["bench", "--compare", "missing"]);
    let error = ran.error(1);
    assert_eq!(error.matches("os error 2").count(), 1, "{error}");
}

#[test]
fn a_reader_may_leave() {
    let wgrad = Wgrad::new();
    let mut child = wgrad
        .command(&["inspect", BUNDLED])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn devices_lists_adapters_and_which_is_used() {
    let wgrad = Wgrad::new();
    let ran = wgrad.run(&["devices"]);
    assert!(ran.answer().contains("backend"), "{}", ran.stdout);
    assert!(ran.stderr.contains("is used: "), "{}", ran.stderr);

    let ran = wgrad.run(&["devices", "--json"]);
    ran.answer();
    let adapters = ran.objects();
    for (index, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter["index"], index);
        assert!(adapter["name"].is_string() && adapter["max_binding_bytes"].is_u64(), "{adapter}");
    }
    assert_eq!(adapters.iter().filter(|adapter| adapter["chosen"] == true).count(), 1);

    let usable = |adapter: &serde_json::Value| adapter["unusable"].is_null();
    let last = adapters.iter().rposition(usable).expect("an adapter that can be used");
    let ran = wgrad.run(&["devices", "--json", "--adapter", &last.to_string()]);
    ran.answer();
    assert_eq!(ran.objects()[last]["chosen"], true, "{}", ran.stdout);
}

#[test]
fn the_environment_chooses_where_no_option_does() {
    let wgrad = Wgrad::new();
    let devices = |variables: &[(&str, &str)], options: &[&str]| {
        let mut command = wgrad.command(&[&["devices", "--json"], options].concat());
        Ran::from(command.envs(variables.iter().copied()).output().unwrap())
    };
    let chosen = |ran: Ran| -> serde_json::Value {
        ran.answer();
        ran.objects().into_iter().find(|adapter| adapter["chosen"] == true).unwrap()
    };
    for adapter in devices(&[], &[]).objects() {
        if !adapter["unusable"].is_null() {
            continue;
        }
        let [backend, name] = ["backend", "name"].map(|key| adapter[key].as_str().unwrap());
        let index = adapter["index"].to_string();
        let found = chosen(devices(&[("WGPU_BACKEND", backend)], &[]));
        assert_eq!(found["backend"], backend);
        let several = format!("metal, {backend}");
        assert_eq!(chosen(devices(&[("WGPU_BACKEND", &several)], &[]))["backend"], backend);
        assert_eq!(chosen(devices(&[("WGPU_ADAPTER_NAME", &index)], &[])), {
            let mut adapter = adapter.clone();
            adapter["chosen"] = true.into();
            adapter
        });
        let part = name[..name.len() / 2].to_uppercase();
        assert_eq!(chosen(devices(&[("WGPU_ADAPTER_NAME", &part)], &[]))["name"], name);
        for power in ["low", "high", ""] {
            chosen(devices(&[("WGPU_POWER_PREF", power)], &[]));
        }
        // What the command line says goes before.
        let wrong = [("WGPU_BACKEND", "directx"), ("WGPU_ADAPTER_NAME", "Voodoo 2")];
        let found = chosen(devices(&wrong, &["--backend", backend, "--adapter", &index]));
        assert_eq!(found["index"], adapter["index"]);
    }
    let ran = devices(&[("WGPU_BACKEND", "directx")], &[]);
    assert!(ran.error(2).contains("unknown backend `directx`; one of vulkan"), "{}", ran.stderr);
    let ran = devices(&[("WGPU_POWER_PREF", "bar")], &[]);
    assert!(ran.error(2).contains("it is low, high or none"), "{}", ran.stderr);
    let ran = devices(&[("WGPU_ADAPTER_NAME", "Voodoo 2")], &[]);
    assert!(ran.error(1).contains("no adapter is called \"Voodoo 2\""), "{}", ran.stderr);
}

#[test]
fn an_adapter_that_is_not_there_is_told_with_those_that_are() {
    let wgrad = Wgrad::new();
    for (asked, texts) in [
        (&["--adapter", "Voodoo 2"][..], &["is called \"Voodoo 2\" (--adapter or"][..]),
        (&["--adapter", "777"], &["has the index 777 (--adapter or"]),
        (&["--adapter", "777", "--backend", "gl"], &["the index 777", "and has the backend gl"]),
        #[cfg(not(target_vendor = "apple"))]
        (&["--backend", "metal"], &["has the backend metal (--backend or WGPU_BACKEND)"]),
    ] {
        let ran = wgrad.run(&[&["predict", "--weights", "bundled", CLIPART], asked].concat());
        let error = ran.error(1);
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
        assert!(ran.stderr.contains("\n  0: "), "{}", ran.stderr);
    }
}

/// The first `count` images of the bundled validation set.
fn clipart(count: usize) -> Vec<PathBuf> {
    let classes = fs::read_dir(Path::new(CLIPART).join("val")).unwrap();
    let files = classes.flat_map(|class| fs::read_dir(class.unwrap().path()).unwrap());
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.truncate(count);
    files
}

#[test]
fn predict_answers_for_every_image_it_can_read() {
    let wgrad = Wgrad::new();
    let images = clipart(3);
    fs::write(wgrad.path("text.jpg"), "no picture").unwrap();
    fs::create_dir(wgrad.path("folder")).unwrap();
    let suffix = images[2].extension().unwrap().to_str().unwrap();
    fs::copy(&images[2], wgrad.path(&format!("folder/copy.{suffix}"))).unwrap();
    fs::write(wgrad.path("folder/photo.heic"), "").unwrap();

    let mut child = wgrad
        .command(&["predict", "--json", "--weights", "bundled", "--top", "3", "-b", "2"])
        .args([&images[0], Path::new("text.jpg"), Path::new("folder"), Path::new("-")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let list = format!("{}\n\n{}\n", images[1].display(), images[2].display());
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());

    assert!(ran.error(1).contains("text.jpg: was skipped; the warning says why"), "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: text.jpg: "), "{}", ran.stderr);
    let left_out = "folder: left out 1 file that is no image by its name: 1 heic";
    assert!(ran.stderr.contains(left_out), "{}", ran.stderr);
    let answers = ran.objects();
    let paths: Vec<_> = answers.iter().map(|answer| answer["path"].as_str().unwrap()).collect();
    let path = |index: usize| images[index].to_str().unwrap().to_owned();
    assert_eq!(paths, [path(0), format!("folder/copy.{suffix}"), path(1), path(2)]);
    for answer in &answers {
        let top = answer["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        let logits: Vec<f64> =
            answer["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(logits.len(), 200);
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(logits[top[0]["index"].as_u64().unwrap() as usize], largest);
        assert!(top[0]["prob"].as_f64() >= top[1]["prob"].as_f64());
        assert!(top[0]["class"].is_string());
    }
    // The same image in other company.
    for (a, b) in answers[1]["logits"]
        .as_array()
        .unwrap()
        .iter()
        .zip(answers[3]["logits"].as_array().unwrap())
    {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-3);
    }
}

#[test]
fn without_a_run_there_is_nothing_to_ask() {
    let wgrad = Wgrad::new();
    let image = &clipart(1)[0];
    let ran = wgrad.run(&["predict", image.to_str().unwrap()]);
    assert!(ran.error(1).contains("wgrad finetune"), "{}", ran.stderr);
    let ran = wgrad.run(&["predict", "--weights", "none", image.to_str().unwrap()]);
    assert!(ran.error(2).contains("name a checkpoint"), "{}", ran.stderr);
}

#[test]
fn evaluate_counts_what_predict_says() {
    let wgrad = Wgrad::new();
    // Two classes of the bundled network, with images of whatever.
    let ran = wgrad.run(&["inspect", "--json", BUNDLED]);
    let classes = ran.objects()[0]["classes"].clone();
    let class = |index: usize| classes[index].as_str().unwrap().to_owned();
    let images = clipart(5);
    for (index, image) in images.iter().enumerate() {
        let folder = wgrad.path("data").join(class(index % 2));
        fs::create_dir_all(&folder).unwrap();
        fs::copy(image, folder.join(image.file_name().unwrap())).unwrap();
    }
    let weights = ["--weights", "bundled", "--json"];
    let ran = wgrad.run(&[&["evaluate", "--data", "data"][..], &weights].concat());
    ran.answer();
    let [result] = &ran.objects()[..] else { panic!("{}", ran.stdout) };

    let ran = wgrad.run(&[&["predict", "data"][..], &weights].concat());
    ran.answer();
    let mut expected = vec![vec![0; 200]; 2];
    let mut loss = 0.0;
    for answer in ran.objects() {
        let path = answer["path"].as_str().unwrap().to_owned();
        let label = usize::from(!path.contains(&class(0)));
        expected[label][answer["top"][0]["index"].as_u64().unwrap() as usize] += 1;
        let logits = answer["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        let logits: Vec<f64> = logits.collect();
        loss += logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label];
    }
    assert_eq!(result["images"], 5);
    assert_eq!(result["confusion"][0], serde_json::json!(expected[0]));
    assert_eq!(result["confusion"][1], serde_json::json!(expected[1]));
    assert!((result["loss"].as_f64().unwrap() - loss / 5.0).abs() < 1e-3, "{}", result["loss"]);
    assert_eq!(result["classes"], classes);
    assert_eq!(result["per_class"][1]["class"], class(1));
    assert_eq!(result["per_class"][0]["images"], 3);

    // The same images in folders that go by the classes' ids.
    let ran = wgrad.run(&["inspect", "--json", BUNDLED]);
    let ids = ran.objects()[0]["metadata"]["class_ids"].as_str().unwrap().to_owned();
    fs::create_dir(wgrad.path("ids")).unwrap();
    for (index, id) in ids.split(' ').take(2).enumerate() {
        fs::rename(wgrad.path("data").join(class(index)), wgrad.path("ids").join(id)).unwrap();
    }
    let ran = wgrad.run(&[&["evaluate", "--data", "ids"][..], &weights].concat());
    ran.answer();
    assert_eq!(ran.objects()[0]["confusion"], result["confusion"]);
    fs::rename(wgrad.path("ids"), wgrad.path("data")).unwrap();

    let ran = wgrad.run(&["evaluate", "--data", "data", "--weights", "bundled"]);
    assert!(ran.answer().starts_with("5 images  loss "), "{}", ran.stdout);
    let ran = wgrad.run(&["evaluate", "--data", CLIPART, "--weights", "bundled"]);
    assert!(ran.error(1).contains("looking for labelled images: "), "{}", ran.stderr);
}
