//! The programs of `examples/`, as short as they can be asked to be. (`learning_curve`, which trains sixty
//! networks, is only compiled.)

#[path = "common/program.rs"]
mod program;

use std::path::PathBuf;
use std::process::Command;

use program::{Ran, Wgrad};

const BUNDLED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/weights/resnet18-tiny-imagenet.safetensors");

/// Runs an example in the folder of `wgrad`. `cargo test` has built it beside this test.
fn run(wgrad: &Wgrad, name: &str, arguments: &[&str]) -> Ran {
    let test = std::env::current_exe().unwrap();
    let built: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    let built = built.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(built.exists(), "{} is missing: `cargo build --examples`", built.display());
    Ran::from(Command::new(built).args(arguments).current_dir(wgrad.path("")).output().unwrap())
}

#[test]
fn the_graph_s_gradient_is_the_formula_s() {
    let ran = run(&Wgrad::new(), "autograd", &[]);
    let last = ran.answer().lines().last().unwrap();
    let lists: Vec<&str> = last.split(['[', ']']).skip(1).step_by(2).collect();
    assert_eq!(lists.len(), 2, "{last}");
    assert_eq!(lists[0], lists[1]);
}

#[test]
fn studies_train_and_draw() {
    let wgrad = Wgrad::new();
    let ran = run(&wgrad, "plain_vs_residual", &["2"]);
    assert!(ran.answer().contains("residual  first loss "), "{}", ran.stdout);
    let picture = image::open(wgrad.path("plain_vs_residual.png")).unwrap();
    assert!(picture.width() > 300 && picture.height() > 200);

    let ran = run(&wgrad, "seed_article", &["1"]);
    let right = ran.answer().lines().rev().take(3).map(|line| {
        line.split_whitespace().last().and_then(|right| right.parse::<f64>().ok()).expect(line)
    });
    let [pretrained, ..] = right.collect::<Vec<_>>()[..] else { unreachable!() };
    // One epoch; guessing has 10 % right.
    assert!(pretrained > 15.0, "{}", ran.stdout);
}

#[test]
fn a_converted_checkpoint_says_what_it_was_given() {
    let wgrad = Wgrad::new();
    run(&wgrad, "convert_weights", &[BUNDLED, "own.safetensors", "--provenance", "made here"])
        .answer();
    let inspected = wgrad.run(&["inspect", "own.safetensors"]);
    assert!(inspected.answer().contains("resnet18, 11.28 M parameters, 200 classes"));
    assert!(inspected.answer().contains("made here"), "{}", inspected.stdout);
    let ran = run(&wgrad, "convert_weights", &["nowhere.safetensors", "own.safetensors"]);
    assert!(ran.error(1).contains("nowhere.safetensors"));
}
