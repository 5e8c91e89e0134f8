//! What an average must give back to the bit, and what may only round.

use wgrad::checkpoint::{Checkpoint, HostData};

use crate::kitchen::bits;
use crate::program::Wgrad;

fn largest_gap(a: &Checkpoint, b: &Checkpoint) -> f32 {
    let gap = |name: &String| {
        let (a, b) = (a.tensors[name].as_f32()?, b.tensors[name].as_f32()?);
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).reduce(f32::max)
    };
    a.tensors.keys().filter_map(gap).fold(0.0, f32::max)
}

#[test]
fn ends_of_a_line_soups_of_one_and_averages_with_itself_are_exact() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    let (of_a, of_b) = (bits(&wgrad.read(&a)), bits(&wgrad.read(&b)));
    assert_ne!(of_a, of_b);
    let fused = |arguments: &[&str]| bits(&wgrad.fused(arguments));
    assert_eq!(fused(&["interpolate", &a, &b, "--alpha", "0"]), of_a);
    assert_eq!(fused(&["interpolate", &a, &b, "--alpha", "1"]), of_b);
    assert_eq!(fused(&["interpolate", &a, &a, "--alpha", "0.3"]), of_a);
    assert_eq!(fused(&["interpolate", &a, &a]), of_a);
    assert_eq!(fused(&["soup", "--uniform", &a]), of_a);
    assert_eq!(fused(&["soup", "--greedy", &a]), of_a);
    assert_eq!(fused(&["soup", "--uniform", &a, &a, &a]), of_a);
}

#[test]
fn the_order_of_ingredients_changes_nothing_but_rounding() {
    let wgrad = Wgrad::with_base();
    let children: Vec<_> = (1..=3)
        .map(|seed| wgrad.child(&seed.to_string(), &format!("--seed {seed} --lr 0.0{seed}")))
        .collect();
    let [a, b, c] = &children[..] else { unreachable!() };
    let soup = |order: [&str; 3]| {
        wgrad.fused(&["soup", "--uniform", "--no-recalibrate", order[0], order[1], order[2]])
    };
    let first = soup([a, b, c]);
    for order in [[a, c, b], [c, b, a]] {
        let other = soup([order[0], order[1], order[2]]);
        // Sums in f64 differ by less than f32 shows, save for ties.
        assert!(largest_gap(&first, &other) <= f32::EPSILON, "{order:?}");
        assert_eq!(first.meta.classes, other.meta.classes);
    }
    let third = |checkpoint: &Checkpoint| {
        f64::from(checkpoint.tensors["conv1.weight"].as_f32().unwrap()[5])
    };
    let mean = [a, b, c].map(|child| third(&wgrad.read(child))).iter().sum::<f64>() / 3.0;
    assert_eq!(third(&first) as f32, mean as f32);
    assert!(largest_gap(&first, &wgrad.read(a)) > 1e-4, "the children differ");
}

/// Two networks that lean to one class each are half right, and their average is the network between.
#[test]
fn a_greedy_soup_takes_what_strictly_improves_it() {
    let wgrad = Wgrad::with_base();
    let good = wgrad.child("good", "--epochs 12 --opt adam --lr 0.003 --augment none");
    let [to_a, to_b] = [0, 1].map(|class| {
        wgrad.alter(&good, &format!("to-{class}.safetensors"), |checkpoint| {
            if let HostData::F32(bias) = &mut checkpoint.tensors.get_mut("fc.bias").unwrap().data {
                bias[class] += 1000.0;
            }
        })
    });
    let soup = |networks: &[&str]| {
        let ran = wgrad.fuse(&[&["soup", "--greedy"], networks].concat());
        ran.answer();
        let end = ran.objects().pop().unwrap();
        let fused = wgrad.read("out/weights/fused.safetensors");
        std::fs::remove_dir_all(wgrad.path("out")).unwrap();
        let top1 = end["result"]["val"]["top1"].as_f64().unwrap();
        (end["name"].as_str().unwrap().to_owned(), top1, fused)
    };
    let (name, top1, fused) = soup(&[&to_a, &to_b]);
    assert!(name == "greedy soup of 2" && top1 > 0.5, "{name}: {top1}");
    let [of_good, of_a] = [&good, &to_a].map(|path| wgrad.read(path));
    let bias = |of: &Checkpoint| of.tensors["fc.bias"].as_f32().unwrap().to_vec();
    assert_eq!((bias(&fused)[0] - bias(&of_good)[0]).round(), 500.0);

    let (name, top1, fused) = soup(&[&to_a, &to_a]);
    assert!(name == "greedy soup of 1" && top1 == 0.5, "a tie is no gain: {name}: {top1}");
    assert_eq!(bits(&fused), bits(&of_a));
    let (name, _, fused) = soup(&[&to_a, &good]);
    assert_eq!(name, "greedy soup of 1", "a loss is none either");
    assert_eq!(bits(&fused), bits(&of_good), "the best comes first");
}

#[test]
fn a_greedy_soup_is_no_worse_than_the_best_single() {
    let wgrad = Wgrad::with_base();
    let children: Vec<_> = (1..=3)
        .map(|seed| wgrad.child(&seed.to_string(), &format!("--seed {seed} --lr 0.0{seed}")))
        .collect();
    let children: Vec<&str> = children.iter().map(String::as_str).collect();
    let ran = wgrad.fuse(&[&["soup", "--greedy"], &children[..]].concat());
    ran.answer();
    let objects = ran.objects();
    let top1 = |result: &serde_json::Value| result["val"]["top1"].as_f64().unwrap();
    let singles = objects.iter().filter(|object| object["result"]["kind"] == "ingredient");
    let best = singles.map(|object| top1(&object["result"])).fold(0.0, f64::max);
    let end = objects.last().unwrap();
    assert_eq!(end["event"], "end");
    assert!(top1(&end["result"]) >= best, "{end}");
}
