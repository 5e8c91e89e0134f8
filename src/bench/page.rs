//! One HTML page of several files, with nothing to load from elsewhere.

use std::fmt::Write;

use super::compare::{Line, heading, letter, lines};
use super::file::{BenchFile, Group, Row};
use super::stopwatch::Summary;

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .2em .6em; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child, .text td, .text th { text-align: left }
tr:nth-child(even) td { background-color: #f6f6f6 } .none { color: #999 } svg text { font-size: 12px }
.wide { overflow-x: auto }";

/// Colours that people with any colour vision can tell apart (Okabe and Ito).
const COLORS: [&str; 7] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#777777"];

/// The page.
pub fn html(files: &[BenchFile]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>wgrad bench</title>\
         <style>{STYLE}</style>\n<h1>wgrad bench</h1>\n\
         <p>ResNet-18 through WebGPU. Medians of samples after a warm-up; a kernel that did not pass \
         <code>wgrad verify</code> in the same process shows no time. The longer a bar, the faster.</p>\n"
    );
    adapters(&mut page, files);
    let lines = lines(files);
    for group in [Group::Training, Group::Inference, Group::Loader, Group::Start] {
        let of_group: Vec<_> = lines.iter().filter(|line| line.group == group).collect();
        if !of_group.is_empty() {
            let _ = writeln!(page, "<h2>{}</h2>", heading(group));
            chart(&mut page, &of_group);
        }
    }
    memory(&mut page, files, &lines);
    operations(&mut page, files, &lines);
    errors(&mut page, files);
    page + "</html>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

/// A table with a column for each file.
fn table_of_files(page: &mut String, files: &[BenchFile], corner: &str, class: &str) {
    let _ = write!(page, "<div class=\"wide\"><table class=\"{class}\"><tr><th>{corner}");
    for (index, file) in files.iter().enumerate() {
        let (color, letter, name) = (color(index), letter(index), escape(file.name()));
        let _ = write!(page, "<th><span style=\"color:{color}\">■</span> {letter}: {name}");
    }
    page.push('\n');
}

fn adapters(page: &mut String, files: &[BenchFile]) {
    page.push_str("<h2>Adapters</h2>\n");
    table_of_files(page, files, "", "text");
    let ceiling = |file: &BenchFile, name: &str| {
        let ceiling = file.ceilings.iter().find(|ceiling| ceiling.name == name)?;
        Some(format!("{:.0} {}", Summary::of(&ceiling.samples)?.median, ceiling.unit))
    };
    let mut row = |title: &str, cell: &dyn Fn(&BenchFile) -> String| {
        let _ = write!(page, "<tr><td>{}", escape(title));
        for file in files {
            let _ = write!(page, "<td>{}", escape(&cell(file)));
        }
        page.push('\n');
    };
    row("backend", &|file| file.property("backend").into());
    row("driver", &|file| file.property("driver").into());
    row("class", &|file| file.property("class").into());
    row("system", &|file| format!("{}, {}", file.provenance.os, file.provenance.cpu));
    row("wgrad", &|file| {
        let of = &file.provenance;
        format!("{} {}, shaders {}", of.version, of.commit, of.shaders)
    });
    row("precision", &|file| file.precision.clone());
    row("timed by", &|file| file.clock.clone());
    let mut names: Vec<&str> = Vec::new();
    for ceiling in files.iter().flat_map(|file| &file.ceilings) {
        if !names.contains(&ceiling.name.as_str()) {
            names.push(&ceiling.name);
        }
    }
    for name in names {
        row(&format!("ceiling: {name}"), &|file| ceiling(file, name).unwrap_or("–".into()));
    }
    row("verify", &|file| {
        format!("{} comparisons, {} failed", file.verify.comparisons, file.verify.failed)
    });
    row("ten losses, furthest from PyTorch's in f64", &|file| {
        file.losses.drift().map_or("–".into(), |drift| format!("{drift:.1e}"))
    });
    page.push_str("</table></div>\n");
}

/// Bars, the longer the faster; each line of the chart has a scale of its own.
fn chart(page: &mut String, lines: &[&Line<'_>]) {
    const LABEL: f64 = 410.0;
    const LENGTH: f64 = 400.0;
    const BAR: f64 = 18.0;
    let height: f64 = lines.iter().map(|line| BAR * line.rows.len() as f64 + 10.0).sum();
    let _ = writeln!(
        page,
        "<svg viewBox=\"0 0 960 {height}\" width=\"100%\" role=\"img\" \
         xmlns=\"http://www.w3.org/2000/svg\">"
    );
    let mut top = 0.0;
    for line in lines {
        let medians = line.medians();
        let fastest = medians.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let (at, title) = (top + 13.0, escape(&line.title));
        let _ = writeln!(
            page,
            "<text x=\"{}\" y=\"{at}\" text-anchor=\"end\">{title}</text>",
            LABEL - 8.0
        );
        for (index, row) in line.rows.iter().enumerate() {
            let (width, text) = match (medians[index], row) {
                (Some(median), Some(row)) => (LENGTH * fastest / median, speed(row, median)),
                (_, Some(row)) => (0.0, row.reason.clone().unwrap_or_default()),
                (_, None) => (0.0, "not measured".into()),
            };
            let (color, letter, text) = (color(index), letter(index), escape(&text));
            let _ = writeln!(
                page,
                "<rect x=\"{LABEL}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{letter} {text}</text>",
                BAR - 2.0,
                LABEL + width + 5.0,
                top + 13.0,
            );
            top += BAR;
        }
        top += 10.0;
    }
    page.push_str("</svg>\n");
}

fn speed(row: &Row, median: f64) -> String {
    match row.images_per_second() {
        Some(images) => format!("{images:.1} img/s"),
        None => format!("{median:.2} s"),
    }
}

/// Device and process memory of the rows that have them.
fn memory(page: &mut String, files: &[BenchFile], lines: &[Line<'_>]) {
    let known = |line: &&Line<'_>| line.rows.iter().flatten().any(|row| row.device_bytes.is_some());
    let mut lines = lines.iter().filter(known).peekable();
    if lines.peek().is_none() {
        return;
    }
    page.push_str("<h2>Memory</h2>\n<p>On the device, and at most in the process, in MB.</p>\n");
    table_of_files(page, files, "", "");
    let megabytes =
        |bytes: Option<u64>| bytes.map_or("–".into(), |b| (b / 1_000_000).to_string());
    for line in lines {
        let _ = write!(page, "<tr><td>{}", escape(&line.title));
        for row in &line.rows {
            let of = |bytes: fn(&Row) -> Option<u64>| megabytes(row.and_then(bytes));
            let (device, process) = (of(|row| row.device_bytes), of(|row| row.process_bytes));
            let _ = write!(page, "<td>{device} / {process}");
        }
        page.push('\n');
    }
    page.push_str("</table></div>\n");
}

/// Times of every pass; the background shows the share of the adapter's ceiling.
fn operations(page: &mut String, files: &[BenchFile], lines: &[Line<'_>]) {
    page.push_str(
        "<h2>Operations</h2>\n<p>Milliseconds, and the share of the adapter's own ceiling, of \
         arithmetic or of memory, whichever is nearer.</p>\n",
    );
    table_of_files(page, files, "pass", "");
    for line in lines.iter().filter(|line| line.group == Group::Operation) {
        let _ = write!(page, "<tr><td>{}", escape(&line.title));
        for (index, row) in line.rows.iter().enumerate() {
            let Some((row, summary)) = row.and_then(|row| Some((row, row.summary()?))) else {
                let reason = row.and_then(|row| row.reason.as_deref()).unwrap_or("–");
                let _ = write!(page, "<td class=\"none\">{}", escape(reason));
                continue;
            };
            let share = row.share(&files[index].ceilings).unwrap_or(0.0);
            let percent = 100.0 * share;
            let _ = write!(
                page,
                "<td title=\"{}\" style=\"background-image:linear-gradient(90deg,{}44 {:.0}%,#0000 0)\">\
                 {:.3} ({percent:.0} %)",
                escape(&row.kernel),
                color(index),
                percent.min(100.0),
                1e3 * summary.median,
            );
        }
        page.push('\n');
    }
    page.push_str("</table></div>\n");
}

/// The largest error of each operation.
fn errors(page: &mut String, files: &[BenchFile]) {
    page.push_str(
        "<h2>Errors</h2>\n<p>The largest of each operation, as a share of what rounding in f32 \
         explains.</p>\n",
    );
    table_of_files(page, files, "operation", "");
    let ops: std::collections::BTreeSet<_> =
        files.iter().flat_map(|file| file.verify.worst.keys()).collect();
    for op in ops {
        let _ = write!(page, "<tr><td>{}", escape(op));
        for file in files {
            let worst = file.verify.worst.get(op);
            let _ = write!(page, "<td>{}", worst.map_or("–".into(), |share| format!("{share:.3}")));
        }
        page.push('\n');
    }
    page.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::tests::file;

    #[test]
    fn the_page_holds_every_file_and_loads_nothing() {
        let page = html(&[file("slow <GPU>", 1.0), file("fast", 0.25)]);
        assert!(page.contains("8.0 img/s") && page.contains("32.0 img/s"), "{page}");
        assert!(page.contains("slow &lt;GPU&gt;") && !page.contains("<GPU>"), "{page}");
        assert!(page.contains("x &amp; y") && page.contains("&lt;it&gt; did not pass"), "{page}");
        assert!(!page.contains("Memory"), "none was measured");
        for word in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(word), "{word} in {page}");
        }
    }
}
