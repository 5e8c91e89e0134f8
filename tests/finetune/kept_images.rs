//! Decoded images that stay in memory, and large ones that are made smaller first.

use crate::program::Wgrad;
use crate::resume::assert_same;
use crate::run::{numbers, write_images};

/// Images of 640 × 640 pixels, 1.2 MB each once decoded: 10 to train on, 4 to validate with.
fn with_photographs() -> Wgrad {
    let wgrad = Wgrad::new();
    write_images(&wgrad.path("data/train"), &[5, 5], 640);
    write_images(&wgrad.path("data/val"), &[2, 2], 640);
    wgrad
}

#[test]
fn images_in_memory_change_no_bit() {
    let wgrad = with_photographs();
    for augment in ["light", "none"] {
        let options = format!("--augment {augment} --epochs 2");
        let none = wgrad.finetune("none", &format!("{options} --cache-images 0"));
        assert!(!none.answer().contains("in memory"), "{}", none.stdout);
        let few = wgrad.finetune("few", &format!("{options} --cache-images 2"));
        // What is shown each time is small where it is the same each time.
        let told = few.answer().matches("1 of 10 training images stay in memory").count();
        assert_eq!(told, usize::from(augment == "light"), "{}", few.stdout);
        let all = wgrad.finetune("all", &options);
        assert!(!all.answer().contains("in memory"), "{}", all.stdout);
        for name in ["few", "all"] {
            assert_same(&wgrad, name, "none");
        }
        for name in ["none", "few", "all"] {
            std::fs::remove_dir_all(wgrad.path(name)).unwrap();
        }
    }
}

#[test]
fn large_images_may_be_made_smaller_first() {
    let wgrad = with_photographs();
    let losses = |name: &str, options: &str| {
        let options = format!("--augment light --max-steps 3 --cache-images 2 {options}");
        let ran = wgrad.finetune(name, &options);
        (ran.answer().to_owned(), numbers(&wgrad.lines(&format!("{name}/steps.jsonl")), "loss"))
    };
    let (told, whole) = losses("whole", "");
    assert!(told.contains("stay in memory"), "{told}");
    let (told, small) = losses("small", "--shrink-images 64");
    assert!(!told.contains("stay in memory"), "{told}");
    assert_ne!(whole, small);
    assert_eq!(losses("same", "--shrink-images 640").1, whole, "none is larger");

    let ran = wgrad.resume("small", "--shrink-images 128 --max-steps 4");
    assert!(ran.error(2).contains("another shrink-images (64, now 128)"), "{}", ran.stderr);
    wgrad.resume("small", "--cache-images 1 --max-steps 4").answer();
    let ran = wgrad.finetune("none", "--shrink-images 0");
    assert!(ran.error(2).contains("--shrink-images 0 leaves nothing"), "{}", ran.stderr);
}
