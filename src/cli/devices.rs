//! `wgrad devices`: every adapter and what it can do.

use clap::Args;
use serde::Serialize;

use super::shared::{AdapterOptions, OutputOptions};
use crate::error::Result;
use crate::gpu::{AdapterChoice, AdapterClass, AdapterReport, adapters, choose};
use crate::train::Console;

/// Every adapter: index, name, driver, backend, limits, features that matter here
#[derive(Args, Debug)]
pub struct Devices {
    #[command(flatten)]
    adapter: AdapterOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    report: AdapterReport,
    /// Whether the other commands would take it.
    chosen: bool,
}

impl Devices {
    pub fn run(self) -> Result<()> {
        let console = self.output.console();
        let choice = self.adapter.choice();
        let chosen = choose(&choice).map(|found| found.report);
        let index = chosen.as_ref().ok().map(|report| report.index);
        let listed = adapters().into_iter().map(|found| Listed {
            chosen: Some(found.report.index) == index,
            report: found.report,
        });
        for listed in listed {
            match console.is_json() {
                true => console.answer_json(&listed)?,
                false => print(&console, &listed)?,
            }
        }
        let chosen = chosen?;
        console.note(format_args!("\n* {}", reason(&chosen, &choice)));
        Ok(())
    }
}

fn print(console: &Console, listed: &Listed) -> Result<()> {
    let Listed { report, chosen } = listed;
    let mark = if *chosen { '*' } else { ' ' };
    console.answer(format_args!("{mark} {}: {}", report.index, report.name))?;
    let class = serde_json::json!(report.class);
    let rows = [
        ("class", class.as_str().unwrap_or_default().to_owned()),
        ("backend", format!("{}, {}", report.backend, report.driver)),
        (
            "memory",
            format!(
                "{} a binding, {} a buffer, {} a workgroup",
                binary(report.max_binding_bytes),
                binary(report.max_buffer_bytes),
                binary(report.workgroup_memory_bytes.into())
            ),
        ),
        (
            "limits",
            format!(
                "{} invocations a workgroup, {} storage buffers a shader",
                report.max_workgroup_invocations, report.max_storage_buffers
            ),
        ),
        ("features", features(report)),
    ];
    for (title, text) in rows {
        console.answer(format_args!("     {title:<9} {text}"))?;
    }
    match &report.unusable {
        Some(reason) => console.answer(format_args!("     UNUSABLE  {reason}")),
        None => Ok(()),
    }
}

fn features(report: &AdapterReport) -> String {
    let mut features = vec![match report.subgroup_size {
        Some((least, most)) if least == most => format!("subgroups of {least}"),
        Some((least, most)) => format!("subgroups of {least} to {most}"),
        None => "no subgroups".into(),
    }];
    features.push(if report.f16 { "f16" } else { "no f16" }.into());
    features.push(if report.timestamps { "timestamps" } else { "no timestamps" }.into());
    match report.matrix_shapes.is_empty() {
        true => features.push("no cooperative matrices".into()),
        false => {
            features.push(format!("cooperative matrices {}", report.matrix_shapes.join(", ")));
        }
    }
    features.join(", ")
}

/// Why the other commands would take this adapter.
fn reason(chosen: &AdapterReport, choice: &AdapterChoice) -> String {
    let asked: Vec<_> = [("adapter", &choice.adapter), ("backend", &choice.backend)]
        .into_iter()
        .filter_map(|(what, value)| Some(format!("{what} {}", value.as_ref()?)))
        .collect();
    let why = match chosen.class {
        _ if !asked.is_empty() => format!("the best for {}, as asked for", asked.join(" and ")),
        AdapterClass::Software => "there is no GPU, so the processor does the work".into(),
        AdapterClass::Discrete => "a GPU with memory of its own comes first".into(),
        AdapterClass::Integrated => "there is no discrete GPU, or low power was asked for".into(),
        AdapterClass::Other => "there is no GPU that says what it is".into(),
    };
    format!("{} is used: {why} (--adapter and --backend choose another)", chosen.index)
}

/// Bytes in binary units, exact where they are a multiple.
fn binary(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|&(_, power)| bytes >= 1 << power) {
        Some((unit, power)) => {
            let number = format!("{:.1}", bytes as f64 / f64::from(1 << power));
            format!("{} {unit}", number.trim_end_matches(".0"))
        }
        None => format!("{bytes} B"),
    }
}
