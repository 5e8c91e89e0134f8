//! One network taught by others.

use serde_json::Value;

use crate::program::Wgrad;

/// The loss of the first step of a run.
fn first_loss(wgrad: &Wgrad, run: &str) -> f64 {
    let steps = std::fs::read_to_string(wgrad.path(run).join("steps.jsonl")).unwrap();
    let step: Value = serde_json::from_str(steps.lines().next().unwrap()).unwrap();
    assert_eq!(step["images"], 8);
    step["loss"].as_f64().unwrap()
}

/// What a network says of the first eight training images, all of class a.
fn logits(wgrad: &Wgrad, weights: &str) -> Vec<Vec<f64>> {
    let ran = wgrad.run(&["predict", "data/train/a", "--json", "--weights", weights]);
    ran.answer();
    let row = |answer: Value| {
        answer["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap()).collect()
    };
    ran.objects().into_iter().map(row).take(8).collect()
}

/// The logarithms of the probabilities at a temperature.
fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scaled: Vec<f64> = logits.iter().map(|logit| (logit - largest) / temperature).collect();
    let log_sum = scaled.iter().map(|scaled| scaled.exp()).sum::<f64>().ln();
    scaled.iter().map(|scaled| scaled - log_sum).collect()
}

#[test]
fn the_loss_is_that_of_the_labels_and_that_of_the_teachers() {
    let wgrad = Wgrad::with_base();
    let student = wgrad.child("a", "--seed 1 --lr 0.03");
    let teachers = [
        wgrad.child("b", "--seed 2 --lr 0.03"),
        wgrad.train("pretrain --lr 0.01 --label-smoothing 0 --arch resnet34-w8", "c"),
    ];
    let of_student = logits(&wgrad, &student);
    let of_teachers = teachers.each_ref().map(|teacher| logits(&wgrad, teacher));
    let (temperature, task, distill) = (3.0, 0.75, 2.0);
    let mut expected = 0.0;
    for image in 0..8 {
        let log_p = log_softmax(&of_student[image], 1.0);
        let log_q = log_softmax(&of_student[image], temperature);
        let goals = of_teachers.each_ref().map(|logits| log_softmax(&logits[image], temperature));
        let divergence = |class: usize| {
            let goal = (goals[0][class].exp() + goals[1][class].exp()) / 2.0;
            if goal == 0.0 { 0.0 } else { goal * (goal.ln() - log_q[class]) }
        };
        let divergence = divergence(0) + divergence(1);
        expected -= task * log_p[0] / 8.0;
        expected += distill * temperature * temperature * divergence / 8.0;
    }
    // Cached features and targets, cached targets, and targets step by step must agree: one step of
    // the first eight images in order, each as it is.
    for (run, options) in [("head", "--freeze-epochs 1"), ("whole", "--freeze-epochs 0")] {
        let options = format!(
            "fuse distill --teacher {} {} --student {student} --temperature {temperature} \
             --task-loss-weight {task} --distill-loss-weight {distill} --no-shuffle --no-augment \
             --bn frozen --batch-size 8 --max-steps 1 {options}",
            teachers[0], teachers[1]
        );
        wgrad.train(&options, run);
        let loss = first_loss(&wgrad, run);
        assert!((loss - expected).abs() < 1e-4 * expected, "{run}: {loss} {expected}");
    }
    assert!(expected > 0.01, "{expected}");
}

#[test]
fn a_student_of_another_depth_names_its_teachers() {
    let wgrad = Wgrad::with_base();
    let teacher = wgrad.train(
        "pretrain --lr 0.01 --label-smoothing 0 --arch resnet34-w8 --freeze-epochs 0",
        "teacher",
    );
    let options =
        format!("fuse distill --teacher {teacher} --student none --arch resnet18-w8 --max-steps 1");
    let student = wgrad.train(&options, "student");
    let checkpoint = wgrad.read(&student);
    assert_eq!(checkpoint.arch.to_string(), "resnet18-w8");
    let provenance = checkpoint.meta.provenance.unwrap();
    assert_eq!(provenance["fuse"]["method"], "distill");
    assert_eq!(provenance["parents"][0]["path"], teacher.as_str());
    assert_eq!(provenance["parents"][0]["role"], "teacher");
    let shown = wgrad.run(&["inspect", &student]);
    assert!(shown.answer().contains(&format!("└─ teacher {teacher}")), "{}", shown.stdout);

    // The teachers are remembered, and the same wherever they lie.
    let resume = |more: &[&str]| {
        wgrad.run(&[&["fuse", "distill", "--resume", "student"][..], more].concat())
    };
    let ran = resume(&["--max-steps", "2"]);
    assert!(ran.answer().contains("teachers: resnet34-w8"), "{}", ran.stdout);
    std::fs::rename(wgrad.path(&teacher), wgrad.path("moved.safetensors")).unwrap();
    let ran = resume(&[]);
    assert!(ran.error(1).contains("begun elsewhere, --teacher says where"), "{}", ran.stderr);
    let ran = resume(&["--teacher", &student, "--max-steps", "3"]);
    assert!(ran.error(2).contains("another teacher-sha256"), "{}", ran.stderr);
    let moved = ["--teacher", "moved.safetensors", "--max-steps", "3"];
    let ran = resume(&[&moved[..], &["--temperature", "2"]].concat());
    assert!(ran.error(2).contains("another temperature (4.0, now 2.0)"), "{}", ran.stderr);
    resume(&moved).answer();

    // Earlier versions had all of it in one place, without digests.
    let path = wgrad.path("student/args.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut args: serde_json::Value = serde_json::from_str(&text).unwrap();
    let options = args.as_object_mut().unwrap();
    options.remove("teacher_sha256");
    let names = ["teachers", "temperature", "task_loss_weight", "distill_loss_weight"];
    let lessons = names.map(|name| (name.to_owned(), options.remove(name).unwrap()));
    options.insert("lessons".into(), serde_json::Value::Object(lessons.into_iter().collect()));
    std::fs::write(&path, args.to_string()).unwrap();
    std::fs::rename(wgrad.path("moved.safetensors"), wgrad.path(&teacher)).unwrap();
    resume(&[]).answer();
    let steps = std::fs::read_to_string(wgrad.path("student/steps.jsonl")).unwrap();
    assert_eq!(steps.lines().count(), 3);
}

#[test]
fn what_cannot_teach_is_named() {
    let wgrad = Wgrad::with_base();
    let base = "base/weights/best.safetensors";
    let others = wgrad.alter(base, "others.safetensors", |checkpoint| {
        checkpoint.meta.classes = Some(vec!["a".into(), "wasp".into()]);
    });
    let distill = |more: &[&str]| {
        let own = ["fuse", "distill", "--student", base, "--data", "data", "--output-dir", "out"];
        wgrad.run(&[&own, more].concat())
    };
    let error = distill(&["--teacher", &others]).error(1).to_owned();
    assert!(error.contains("others.safetensors") && error.contains("wasp instead of b"), "{error}");
    let error = distill(&["--teacher", "none.safetensors"]).error(1).to_owned();
    assert!(error.contains("none.safetensors"), "{error}");
    for (option, value) in
        [("--temperature", "0"), ("--distill-loss-weight", "-1"), ("--mixup-alpha", "0.2")]
    {
        let error = distill(&["--teacher", base, option, value]).error(2).to_owned();
        assert!(error.contains(option), "{error}");
    }
    assert!(!wgrad.path("out").exists());
}
