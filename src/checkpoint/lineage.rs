//! The tree of networks that a checkpoint's provenance tells of.

use serde_json::{Map, Value};

/// What separates a network from its parents in the tree.
const PARENTS: &str = "parents";

/// The lines of the tree: what the file says of itself, then its parents, each with what it says of
/// itself and its own parents. Of a provenance that is no object, its text.
pub(super) fn tree(provenance: &Value) -> Vec<String> {
    match provenance {
        Value::Object(own) => {
            let mut lines = vec![facts(own)];
            push_parents(own, "", &mut lines);
            lines
        }
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

fn push_parents(own: &Map<String, Value>, indent: &str, lines: &mut Vec<String>) {
    let Some(Value::Array(parents)) = own.get(PARENTS) else { return };
    for (at, parent) in parents.iter().enumerate() {
        let (branch, below) =
            if at + 1 == parents.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{branch}{}", title(parent)));
        if let Some(Value::Object(provenance)) = parent.get("provenance") {
            let indent = format!("{indent}{below}");
            lines.push(format!("{indent}{}", facts(provenance)));
            push_parents(provenance, &indent, lines);
        }
    }
}

/// A parent's share or role, its file, and the start of the file's SHA-256.
fn title(parent: &Value) -> String {
    let share = match (&parent["coefficient"], &parent["role"]) {
        (Value::Number(share), _) => format!("{:.4} × ", share.as_f64().unwrap_or(f64::NAN)),
        (_, Value::String(role)) => format!("{role} "),
        _ => String::new(),
    };
    let text = |key: &str| parent[key].as_str().unwrap_or("?");
    let sha256: String = text("sha256").chars().take(12).collect();
    format!("{share}{} (sha256 {sha256}…)", text("path"))
}

/// What an object says, its parents left out, on one line.
fn facts(own: &Map<String, Value>) -> String {
    let others = own.iter().filter(|(key, value)| *key != PARENTS && !value.is_null());
    let fact = |(key, value): (&String, &Value)| match value {
        Value::String(text) => format!("{key} {text}"),
        Value::Object(inner) => format!("{key} ({})", facts(inner)),
        other => format!("{key} {other}"),
    };
    others.map(fact).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tree_shows_parents_of_parents() {
        let run = json!({ "tool": "wgrad", "seed": 3 });
        let parent = |path: &str, coefficient: f64, provenance: &Value| {
            json!({
                "path": path,
                "sha256": "0123456789abcdef",
                "coefficient": coefficient,
                "provenance": provenance,
            })
        };
        let soup = json!({ "fuse": { "method": "soup" }, "parents": [
            parent("a", 0.5, &run), parent("b", 0.5, &Value::Null),
        ]});
        let line = json!({ "fuse": { "alpha": 0.25 }, "parents": [
            parent("soup", 0.75, &soup), parent("c", 0.25, &run),
        ]});
        assert_eq!(
            tree(&line),
            [
                "fuse (alpha 0.25)",
                "├─ 0.7500 × soup (sha256 0123456789ab…)",
                "│  fuse (method soup)",
                "│  ├─ 0.5000 × a (sha256 0123456789ab…)",
                "│  │  tool wgrad, seed 3",
                "│  └─ 0.5000 × b (sha256 0123456789ab…)",
                "└─ 0.2500 × c (sha256 0123456789ab…)",
                "   tool wgrad, seed 3",
            ]
        );
    }

    #[test]
    fn whatever_a_file_says_is_shown() {
        for (said, shown) in [
            (json!("by hand"), "by hand"),
            (json!([1, 2]), "[1,2]"),
            (json!({ "parents": 3 }), ""),
            (json!({ "parents": [7] }), ""),
        ] {
            assert_eq!(tree(&said)[0], shown);
        }
    }
}
