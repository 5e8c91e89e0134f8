//! Networks that answer together.

use crate::program::Wgrad;

#[test]
fn an_ensemble_answers_with_the_mean_probability() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    let ran = wgrad.fuse(&["ensemble", &a, &b]);
    ran.answer();
    let end = ran.objects().pop().unwrap();
    assert_eq!(end["weights"], "out/ensemble.json");

    let predict = |weights: &str| {
        let ran = wgrad.run(&["predict", "data/val", "--json", "--top", "2", "--weights", weights]);
        ran.answer();
        ran.objects()
    };
    let probability = |answer: &serde_json::Value| {
        let top = answer["top"].as_array().unwrap();
        let of_a = top.iter().find(|guess| guess["class"] == "a").unwrap();
        of_a["prob"].as_f64().unwrap()
    };
    let answers = [&a, &b, "out/ensemble.json"].map(predict);
    assert_eq!(answers[0].len(), 12);
    let [of_a, of_b, of_both] = answers;
    for ((a, b), both) in of_a.iter().zip(&of_b).zip(&of_both) {
        let [a, b, both] = [a, b, both].map(probability);
        assert!((both - (a + b) / 2.0).abs() < 1e-6, "{a} {b} {both}");
    }

    let evaluate = ["evaluate", "--data", "data", "--json", "--weights", "out/ensemble.json"];
    let metrics = wgrad.run(&evaluate).objects().remove(0);
    assert_eq!(metrics["top1"], end["result"]["val"]["top1"]);
    // A run's folder stands for what came of it.
    let of_folder = wgrad.run(&["evaluate", "--data", "data", "--json", "--weights", "out"]);
    assert_eq!(of_folder.objects().remove(0), metrics);
    assert_eq!(predict("a"), predict(&a));
    let gap = metrics["loss"].as_f64().unwrap() - end["result"]["val"]["loss"].as_f64().unwrap();
    assert!(gap.abs() < 1e-6, "{gap}");
}

#[test]
fn an_ensemble_may_average_logits_and_keep_images_for_the_report() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let b = wgrad.child("b", "--seed 2 --lr 0.03");
    let ran = wgrad.fuse(&["ensemble", &a, &b, "--average", "logits", "--test-fraction", "0.5"]);
    ran.answer();
    let result = &ran.objects().pop().unwrap()["result"];
    assert_eq!((&result["val"]["images"], &result["test"]["images"]), (&6.into(), &6.into()));
    assert!(ran.stderr.contains("train 18, val 6, test 6 (held out from val)"), "{}", ran.stderr);

    let odds = |weights: &str| -> Vec<f64> {
        let ran = wgrad.run(&["predict", "data/val", "--json", "--weights", weights]);
        ran.answer();
        let of = |answer: serde_json::Value| {
            let [a, b] = [0, 1].map(|class| answer["logits"][class].as_f64().unwrap());
            a - b
        };
        ran.objects().into_iter().map(of).collect()
    };
    let [of_a, of_b, of_both] = [&a, &b, "out/ensemble.json"].map(odds);
    for ((a, b), both) in of_a.iter().zip(&of_b).zip(&of_both) {
        let rounding = 1e-6 * (1.0 + a.abs() + b.abs());
        assert!((both - (a + b) / 2.0).abs() < rounding, "{a} {b} {both}");
    }
}

#[test]
fn an_ensemble_notices_that_a_member_has_changed() {
    let wgrad = Wgrad::with_base();
    let a = wgrad.child("a", "--seed 1 --lr 0.01");
    let base = "base/weights/best.safetensors";
    wgrad.fuse(&["ensemble", base, &a]).answer();
    std::fs::copy(wgrad.path(base), wgrad.path(&a)).unwrap();
    let ran = wgrad.run(&["evaluate", "--data", "data", "--weights", "out/ensemble.json"]);
    let error = ran.error(1);
    assert!(error.contains(&a) && error.contains("has changed"), "{error}");
    let ran = wgrad.run(&["inspect", "out"]);
    let text = ran.answer();
    for words in ["an ensemble of 2 networks, the mean of their probabilities", base, &a] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert_eq!(text.matches("\nprovenance     tool wgrad").count(), 2, "{text}");
    assert_eq!(text.matches("\nCHANGED ").count(), 1, "{text}");
    let ran = wgrad.run(&["inspect", "--json", "out/ensemble.json"]);
    ran.answer();
    let members = &ran.objects()[0]["members"];
    assert_eq!((&members[0]["changed"], &members[1]["changed"]), (&false.into(), &true.into()));
    assert_eq!(members[1]["arch"], members[0]["arch"]);

    std::fs::write(wgrad.path("own.json"), r#"{"members": [{"path": "a/none.safetensors"}]}"#)
        .unwrap();
    for command in [&["inspect"][..], &["evaluate", "--data", "data", "--weights"]] {
        let ran = wgrad.run(&[command, &["own.json"]].concat());
        let text = "own.json: the ensemble's member a/none.safetensors is missing; put it back";
        assert!(ran.error(1).contains(text), "{}", ran.stderr);
    }
}
