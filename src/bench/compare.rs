//! Files side by side.

use std::fmt::Write;

use serde_json::{Value, json};

use super::file::{BenchFile, Group, Row};
use super::stopwatch::Summary;

/// Width of the longest bar of the table.
const BAR: f64 = 20.0;

/// The same measurement in each of several files.
pub(super) struct Line<'a> {
    pub group: Group,
    pub title: String,
    /// One for each file; none where a file lacks it.
    pub rows: Vec<Option<&'a Row>>,
}

impl Line<'_> {
    /// Medians in seconds of the files that have one.
    pub fn medians(&self) -> Vec<Option<f64>> {
        let median = |row: &Option<&Row>| Some(row.as_ref()?.summary()?.median);
        self.rows.iter().map(median).collect()
    }
}

/// Every measurement of every file, in the order of the first file that has it.
pub(super) fn lines(files: &[BenchFile]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for row in &file.rows {
            let title = row.title();
            let known = |line: &&mut Line<'_>| line.group == row.group && line.title == title;
            match lines.iter_mut().find(known) {
                Some(line) => line.rows[index] = Some(row),
                None => {
                    let mut rows = vec![None; files.len()];
                    rows[index] = Some(row);
                    lines.push(Line { group: row.group, title, rows });
                }
            }
        }
    }
    lines
}

/// What a file is called beside others: A, B, …
pub(super) fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index) if index < 26 => char::from(b'A' + index).into(),
        _ => format!("#{}", index + 1),
    }
}

/// A table of every measurement: time, speed relative to the first file, a bar; drift at the top.
pub fn table(files: &[BenchFile]) -> String {
    let mut text = String::new();
    for (index, file) in files.iter().enumerate() {
        let ceilings: Vec<_> = file
            .ceilings
            .iter()
            .filter_map(|ceiling| {
                let median = Summary::of(&ceiling.samples)?.median;
                Some(format!("{} {median:.0} {}", ceiling.name, ceiling.unit))
            })
            .collect();
        let _ = writeln!(
            text,
            "{}: {} ({}, {}), {}, wgrad {} {}, {}\n   {}; verify: {} comparisons, {} failed{}",
            letter(index),
            file.name(),
            file.property("backend"),
            file.property("driver"),
            file.precision,
            file.provenance.version,
            file.provenance.commit,
            file.provenance.cpu,
            ceilings.join(", "),
            file.verify.comparisons,
            file.verify.failed,
            file.losses.drift().map_or(String::new(), |off| format!("; losses off by {off:.1e}")),
        );
    }
    let mut group = None;
    for line in lines(files) {
        if group.replace(line.group) != Some(line.group) {
            let _ = writeln!(text, "\n{}", heading(line.group));
        }
        let _ = writeln!(text, "{}", line.title);
        let medians = line.medians();
        let first = medians.iter().flatten().next().copied();
        let fastest = medians.iter().flatten().copied().reduce(f64::min);
        for (index, row) in line.rows.iter().enumerate() {
            let letter = letter(index);
            let (Some(median), Some(first), Some(fastest)) = (medians[index], first, fastest)
            else {
                let reason = row.and_then(|row| row.reason.as_deref()).unwrap_or("not measured");
                let _ = writeln!(text, "  {letter} {reason}");
                continue;
            };
            let speed = match row.and_then(Row::images_per_second) {
                Some(images) => format!("{images:>9.1} img/s"),
                None => format!("{:>9.3} ms   ", 1e3 * median),
            };
            let bar = "█".repeat((BAR * fastest / median).round().max(1.0) as usize);
            let _ = writeln!(text, "  {letter} {speed}  ×{:<6.2} {bar}", first / median);
        }
    }
    text
}

/// [`table`] as objects, one for each measurement; medians are in seconds, in the order of the files.
pub fn objects(files: &[BenchFile]) -> Vec<Value> {
    // Lines are never empty: a file's row made each.
    let object = |line: Line<'_>| {
        let row = line.rows.iter().copied().flatten().next()?;
        let of_file = |(file, row): (&BenchFile, &Option<&Row>)| {
            json!({
                "adapter": file.name(),
                "precision": file.precision,
                "kernel": row.map(|row| &row.kernel),
                "median": row.and_then(Row::summary).map(|all| all.median),
                "status": row.map(|row| row.status),
                "reason": row.map(|row| &row.reason),
            })
        };
        Some(json!({
            "group": row.group,
            "name": row.name,
            "pass": row.pass,
            "shape": row.shape,
            "images": row.images,
            "files": files.iter().zip(&line.rows).map(of_file).collect::<Vec<_>>(),
        }))
    };
    lines(files).into_iter().filter_map(object).collect()
}

/// What a group of rows is called.
pub(super) fn heading(group: Group) -> &'static str {
    match group {
        Group::Start => "Start",
        Group::Operation => "Operations",
        Group::Training => "Training",
        Group::Inference => "Inference",
        Group::Loader => "Loader",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::file::{Checked, Losses, SCHEMA, Status};
    use crate::provenance::Provenance;

    /// A file of one training row and one row that only it has.
    pub fn file(name: &str, seconds: f64) -> BenchFile {
        let training = Row {
            name: "resnet18 training".into(),
            images: 8,
            samples: vec![seconds; 5],
            ..Row::new(Group::Training)
        };
        let mut own = Row { name: format!("own {name}"), ..Row::new(Group::Operation) };
        own.withhold(Status::Unverified, "<it> did not pass verify".into());
        BenchFile {
            schema: SCHEMA.into(),
            unix_time: 0,
            provenance: Provenance::default(),
            adapter: serde_json::json!({ "name": name, "backend": "vulkan", "driver": "x & y" }),
            quick: true,
            precision: "f32".into(),
            clock: "queue".into(),
            verify: Checked { comparisons: 7, failed: 0, worst: Default::default() },
            losses: Losses { found: vec![2.0], torch: vec![2.5] },
            ceilings: Vec::new(),
            rows: vec![training, own],
        }
    }

    #[test]
    fn objects_have_a_median_for_each_file() {
        let objects = objects(&[file("slow", 1.0), file("fast", 0.25)]);
        assert_eq!(objects.len(), 3);
        let [training, own, _] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!(training["name"], "resnet18 training");
        assert_eq!(training["files"][0]["median"], 1.0);
        assert_eq!(training["files"][1]["median"], 0.25);
        assert_eq!(own["files"][0]["status"], "unverified");
        assert_eq!(own["files"][1]["adapter"], "fast");
        assert!(own["files"][1]["median"].is_null() && own["files"][1]["status"].is_null());
        // What is called the same in another group is something else.
        let mut other = file("other", 0.5);
        other.rows[0].group = Group::Inference;
        let lines = super::objects(&[file("slow", 1.0), other]);
        assert!(lines[0]["files"][1]["median"].is_null(), "{lines:?}");
        assert_eq!((lines.len(), &lines[2]["files"][1]["median"]), (4, &json!(0.5)));
    }

    #[test]
    fn ratios_are_of_speed_and_by_the_first_file() {
        let text = table(&[file("slow", 1.0), file("fast", 0.25)]);
        assert!(text.contains("A       8.0 img/s  ×1.00   █████\n"), "{text}");
        assert!(
            text.contains(&format!("B      32.0 img/s  ×4.00   {}\n", "█".repeat(20))),
            "{text}"
        );
        assert!(text.contains("losses off by 2.0e-1"), "{text}");
        let mut of_op = file("slow", 1.0);
        of_op.losses.found.clear();
        assert!(!table(&[of_op]).contains("losses"), "nothing was trained");
        let own = text.split("own slow\n").nth(1).unwrap();
        assert!(own.starts_with("  A <it> did not pass verify\n  B not measured\n"), "{own}");
    }
}
