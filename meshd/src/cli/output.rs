//! Printing results: tables without lines, as `kubectl` and `ip` users expect, JSON and YAML.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlEmitter};

use super::failure::Failure;

/// Prints a text to standard output.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Prints a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::message(format!("failed to print the result as JSON: {error}")))?;
    line.push('\n');
    text(&line)
}

/// Prints a value as YAML.
pub(super) fn yaml(value: &impl Serialize) -> Result<(), Failure> {
    let printed =
        yaml_text(value).map_err(|error| Failure::message(format!("failed to print the result as YAML: {error}")))?;
    text(&printed)
}

/// A value as YAML.
pub(super) fn yaml_text(value: &impl Serialize) -> Result<String, String> {
    let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    let mut printed = String::new();
    YamlEmitter::new(&mut printed).dump(&to_yaml(value)).map_err(|error| error.to_string())?;
    // The emitter starts with a document mark, which nobody needs for one document.
    let mut printed = printed.trim_start_matches("---").trim_start().to_owned();
    printed.push('\n');
    Ok(printed)
}

fn to_yaml(value: serde_json::Value) -> Yaml {
    match value {
        serde_json::Value::Null => Yaml::Null,
        serde_json::Value::Bool(value) => Yaml::Boolean(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Yaml::Integer(number),
            None => Yaml::Real(number.to_string()),
        },
        serde_json::Value::String(text) => Yaml::String(text),
        serde_json::Value::Array(items) => Yaml::Array(items.into_iter().map(to_yaml).collect()),
        serde_json::Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (Yaml::String(key), to_yaml(value)));
            Yaml::Hash(fields.collect::<Hash>())
        }
    }
}

/// Rows under a heading, columns aligned.
pub(super) fn columns(heading: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.iter().copied());
    for row in rows {
        // An empty cell would make the columns hard to read by eye and by awk.
        let filled = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        table.add_row(row.into_iter().map(filled));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut printed = String::new();
    for line in table.lines() {
        printed.push_str(line.trim_end());
        printed.push('\n');
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_never_empty() {
        let rows = vec![vec!["10.1.0.0/24".to_owned(), String::new()], vec!["::/0".to_owned(), "fe80::1".to_owned()]];
        let printed = columns(&["PREFIX", "VIA"], rows);
        assert_eq!(printed, "PREFIX        VIA\n10.1.0.0/24   -\n::/0          fe80::1\n");
    }

    #[test]
    fn yaml_reads_back_as_the_same_value() {
        let value = serde_json::json!({"a": [1, {"b": null}], "t": "2026-01-01T00:00:00Z", "empty": [], "yes": "yes", "n": "12"});
        let printed = yaml_text(&value).unwrap();
        let back = &yaml_rust2::YamlLoader::load_from_str(&printed).unwrap()[0];
        assert_eq!(*back, to_yaml(value), "{printed}");
    }
}
