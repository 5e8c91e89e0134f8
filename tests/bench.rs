//! `wgrad bench` from the outside: what it writes can be read, compared and shown. No times are
//! judged.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgrad"));
    command.arg("bench").args(arguments).current_dir(folder).output().expect("the program runs")
}

fn stdout(output: &Output) -> &str {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    std::str::from_utf8(&output.stdout).expect("the program writes UTF-8")
}

#[test]
fn a_file_is_measured_compared_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let measured = bench(folder.path(), &["--quick", "--op", "relu", "--json-file", "a.json"]);
    assert!(stdout(&measured).contains("relu forward"), "{}", stdout(&measured));

    let text = std::fs::read_to_string(folder.path().join("a.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["schema"], "wgrad-bench/1");
    assert_eq!(file["verify"]["failed"], 0);
    assert!(file["verify"]["comparisons"].as_u64() > Some(3), "{}", file["verify"]);
    for ceiling in file["ceilings"].as_array().unwrap() {
        let samples = ceiling["samples"].as_array().unwrap();
        assert!(samples.len() >= 5, "{ceiling}");
        assert!(samples.iter().all(|sample| sample.as_f64() > Some(0.0)), "{ceiling}");
    }
    let rows = file["rows"].as_array().unwrap();
    let passes: Vec<_> = rows.iter().map(|row| row["pass"].as_str().unwrap()).collect();
    // A GPU has a second, larger case.
    assert!(!passes.is_empty());
    assert!(passes.chunks(2).all(|passes| passes == ["forward", "backward"]), "{passes:?}");
    for row in rows {
        assert_eq!(row["status"], "measured", "{row}");
        let samples = row["samples"].as_array().unwrap();
        assert!(samples.len() >= 5, "{row}");
        let [beside] = &row["beside"].as_array().unwrap()[..] else { panic!("{row}") };
        assert_eq!(beside["name"], "copy");
        assert_eq!(beside["samples"].as_array().unwrap().len(), samples.len());
    }

    let compare = ["--compare", "a.json", "a.json", "--html", "page.html"];
    let compared = bench(folder.path(), &compare);
    assert!(stdout(&compared).contains("×1.00"), "{}", stdout(&compared));
    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.contains("relu forward") && page.ends_with("</html>\n"));

    let compared = bench(folder.path(), &["--compare", "a.json", "a.json", "--json"]);
    let objects: Vec<Value> =
        stdout(&compared).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(objects.len(), rows.len());
    for (object, row) in objects.iter().zip(rows) {
        for key in ["group", "name", "pass", "shape"] {
            assert_eq!(object[key], row[key]);
        }
        let [a, b] = &object["files"].as_array().unwrap()[..] else { panic!("{object}") };
        assert!(a["median"].as_f64() > Some(0.0) && a == b, "{object}");
    }
}

#[test]
fn where_nothing_can_be_written_nothing_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    for option in ["--json-file", "--html"] {
        for (path, reason) in [("none/a.json", "No such file"), (".", "is a directory")] {
            let output = bench(folder.path(), &["--quick", "--op", "relu", option, path]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let text = format!("checking where the benchmark goes: {path}: cannot be written: ");
            assert!(stderr.contains(&text) && stderr.contains(reason), "{stderr}");
            assert_eq!(output.stdout, b"");
        }
    }
    bench(folder.path(), &["--compare", "missing.json", "--html", "page.html"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a check leaves nothing");
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("other.json", "{}"),
        ("other.toml", "[package]"),
        ("newer.json", r#"{"schema": "wgrad-bench/9"}"#),
        ("damaged.json", r#"{"schema": "wgrad-bench/1"}"#),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    for (arguments, code, text) in [
        (["--op", "nonsense"].as_slice(), 2, "no operation"),
        (&["--compare", "missing.json"], 1, "missing.json"),
        (&["--compare", "other.json"], 1, "not a file of `wgrad bench --json-file`\n"),
        (&["--compare", "other.toml"], 1, "not a file of `wgrad bench --json-file`\n"),
        (&["--compare", "newer.json"], 1, "its schema is wgrad-bench/9"),
        (&["--compare", "damaged.json"], 1, "is damaged: missing field"),
        (&["--compare", "other.json", "--quick"], 2, "cannot be used with"),
    ] {
        let output = bench(folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
}
