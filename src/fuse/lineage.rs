//! Where a fused network comes from, as its file tells it.

use serde_json::{Value, json};

use super::ingredient::Ingredient;

/// What a fused file says of one of its parents: path, SHA-256, the coefficient of its weights, and
/// what the parent says of itself.
pub fn parent(ingredient: &Ingredient, coefficient: f64) -> Value {
    json!({
        "path": ingredient.path.to_string_lossy(),
        "sha256": ingredient.sha256,
        "coefficient": coefficient,
        "provenance": ingredient.checkpoint.meta.provenance,
    })
}
