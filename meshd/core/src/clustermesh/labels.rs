//! Labels in canonical text form: `source:key=value;`, sorted by key (wire contract section 1.5).

use std::collections::BTreeMap;

use super::rejection::{Excerpt, Rejection};
use crate::observed::Labels;

/// Longest canonical text of one set of labels.
pub const LABELS_TEXT_MAX: usize = 64 * 1024;

/// Reads an identity's label text: splits at `;`, each piece at its first `:` and first `=`, and brings it into
/// canonical form.
pub(super) fn parse(text: &str, limit: usize) -> Result<Labels, Rejection> {
    let mut sorted: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    check_text_len(text.len())?;
    let mut canonical = text.ends_with(';');
    let mut last = "";
    for piece in text.split(';').filter(|piece| !piece.is_empty()) {
        let refuse = |problem| Rejection::Label { label: Excerpt::new(piece), problem };
        let (left, value) = piece.split_once('=').unwrap_or_else(|| {
            canonical = false;
            (piece, "")
        });
        let (source, key) = left.split_once(':').ok_or_else(|| refuse("it has no source before a colon"))?;
        if source.is_empty() || key.is_empty() {
            return Err(refuse("its source or its key is empty"));
        }
        if piece.chars().any(char::is_control) {
            return Err(refuse("it has a control character"));
        }
        canonical &= sorted.is_empty() || last < key;
        last = key;
        if sorted.insert(key, (source, value)).is_some() {
            return Err(refuse("its key is there twice"));
        }
        if sorted.len() > limit {
            let found = text.split(';').filter(|piece| !piece.is_empty()).count();
            return Err(Rejection::TooManyEntries { field: "labels", found, limit });
        }
    }
    canonical &= !text.contains(";;") && !text.starts_with(';');
    if canonical {
        return Ok(Labels(text.into()));
    }
    let mut written = String::with_capacity(text.len() + sorted.len());
    for (key, (source, value)) in sorted {
        push(&mut written, source, key, value);
    }
    Ok(Labels(written.into()))
}

/// Node labels: the same text form without a source.
pub(super) fn from_map<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Labels, Rejection> {
    let mut sorted: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, value) in entries {
        let refuse = |problem| Rejection::Label { label: Excerpt::new(&format!("{key}={value}")), problem };
        if key.is_empty() {
            return Err(refuse("its key is empty"));
        }
        if key.contains(['=', ':']) {
            return Err(refuse("its key has a character that no label key can have"));
        }
        let separates = |c: char| c == ';' || c.is_control();
        if key.contains(separates) || value.contains(separates) {
            return Err(refuse("it has a semicolon or a control character"));
        }
        // Of a repeated name Go keeps the last.
        sorted.insert(key, value);
    }
    let length = sorted.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    check_text_len(length)?;
    let mut written = String::with_capacity(length);
    for (key, value) in sorted {
        written.extend([key, "=", value, ";"]);
    }
    Ok(Labels(written.into()))
}

fn check_text_len(size: usize) -> Result<(), Rejection> {
    if size > LABELS_TEXT_MAX {
        return Err(Rejection::Oversized { size, limit: LABELS_TEXT_MAX });
    }
    Ok(())
}

fn push(text: &mut String, source: &str, key: &str, value: &str) {
    text.extend([source, ":", key, "=", value, ";"]);
}

#[cfg(test)]
mod tests;
