//! Runs on images in archives.

use std::fs::{self, File};

use crate::program::{Ran, Wgrad};
use crate::run::{numbers, write_images};

#[test]
fn an_archive_trains_as_the_folder_does_that_it_was_made_of() {
    let wgrad = Wgrad::with_images();
    let mut builder = tar::Builder::new(File::create(wgrad.path("data.tar")).unwrap());
    builder.append_dir_all("data", wgrad.path("data")).unwrap();
    builder.finish().unwrap();
    let options = "--epochs 2 --freeze-epochs 0 --augment light";
    wgrad.finetune("folder", options).answer();
    let ran = wgrad.finetune("archive", &format!("{options} --data data.tar"));
    assert!(ran.answer().contains("archives 1 (read in place)"), "{}", ran.stdout);
    assert_same(&wgrad, "archive");

    // The images are the same, and so the run goes on with them.
    wgrad.finetune("both", &format!("{options} --max-steps 2")).answer();
    let ran = wgrad.resume("both", "--max-steps 1000 --data data.tar");
    assert!(ran.answer().contains("going on after 2 steps"), "{}", ran.stdout);
    assert_same(&wgrad, "both");
}

/// The files' own accounts of where the images came from differ, their numbers do not.
fn assert_same(wgrad: &Wgrad, name: &str) {
    let losses = |name: &str| numbers(&wgrad.lines(&format!("{name}/steps.jsonl")), "loss");
    assert_eq!(losses(name), losses("folder"), "{name}");
    assert!(wgrad.last(name) == wgrad.last("folder"), "{name}");
}

#[test]
fn an_index_that_cannot_lie_beside_its_archive_goes_to_the_cache() {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data"), &[2], 8);
    let mut builder = tar::Builder::new(File::create(wgrad.path("x.tar")).unwrap());
    builder.append_dir_all(".", wgrad.path("data")).unwrap();
    builder.finish().unwrap();
    // A folder of that name stands in for one that may not be written to, which root always may.
    fs::create_dir_all(wgrad.path("x.tar.index/full")).unwrap();
    let mut command = wgrad.command(&["finetune", "--data", "x.tar"]);
    let ran = Ran::from(command.env("WGRAD_CACHE", wgrad.path("cache")).output().unwrap());
    assert!(ran.error(1).contains("looking for images in x.tar"), "{}", ran.stderr);
    assert!(ran.stderr.contains("only one class"), "{}", ran.stderr);
    let cached = fs::read_dir(wgrad.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let cached = cached.filter(|path| path.extension().is_some_and(|it| it == "index"));
    assert_eq!(cached.count(), 1);
}
