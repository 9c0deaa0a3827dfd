//! `[usage]`: which models' tokens are counted apart.

use super::read::{Reading, Section};

/// How usage is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Models with counts of their own for every tenant, each once.
    pub models: Vec<String>,
}

const MODELS: usize = 256;
/// Longest name of a model, bytes; longer ones are not looked at in requests.
pub(super) const MODEL_BYTES: usize = crate::limits::SCANNED_VALUE_BYTES;

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Usage {
    let s = r.section(root, "usage");
    let mut models: Vec<String> = Vec::new();
    for (place, model) in r.texts(&s, "models", MODELS).unwrap_or_default() {
        if model.is_empty() || model.len() > MODEL_BYTES || model == "*" {
            r.fault(&place, "is not the name of a model; those that are not named count as \"*\"");
        } else if !models.iter().any(|known| known == model) {
            models.push(model.to_owned());
        }
    }
    Usage { models }
}
