//! Which line of a file a key is on.
//!
//! The parsers behind the `config` crate give values without places, so the file is read a second time, only
//! for the places. What cannot be placed (an alias, a JSON file with odd white space) simply has no line.

use std::collections::BTreeMap;

use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::Marker;

use super::tree::Format;

/// Lines by key path (`peers[0].tls.ca`), from 1.
pub(super) type Lines = BTreeMap<String, usize>;

/// The lines of every key of `text`; empty when it does not parse.
pub(super) fn lines(format: Format, text: &str) -> Lines {
    match format {
        // JSON is a subset of YAML for everything that matters here.
        Format::Yaml | Format::Json => yaml_lines(text),
        Format::Toml => toml_lines(text),
    }
}

/// Appends a key to a path.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn yaml_lines(text: &str) -> Lines {
    let mut receiver = YamlLines::default();
    // A file that does not parse was reported by the first reading.
    if Parser::new_from_str(text).load(&mut receiver, false).is_err() {
        return Lines::new();
    }
    receiver.lines
}

#[derive(Default)]
struct YamlLines {
    lines: Lines,
    open: Vec<YamlNode>,
}

enum YamlNode {
    Mapping { path: String, key: Option<String> },
    Sequence { path: String, next: usize },
}

impl YamlLines {
    /// The path of the value that starts now, or `None` when it is a key.
    fn value_path(&mut self, scalar: Option<&str>, line: usize) -> Option<String> {
        match self.open.last_mut() {
            None => Some(String::new()),
            Some(YamlNode::Sequence { path, next }) => {
                let path = format!("{path}[{next}]");
                *next += 1;
                self.lines.insert(path.clone(), line);
                Some(path)
            }
            Some(YamlNode::Mapping { path, key }) => {
                if let Some(key) = key.take() {
                    return Some(join(path, &key));
                }
                let name = scalar.unwrap_or_default();
                let path = join(path, name);
                *key = Some(name.to_owned());
                self.lines.insert(path, line);
                None
            }
        }
    }
}

impl MarkedEventReceiver for YamlLines {
    fn on_event(&mut self, event: Event, mark: Marker) {
        match event {
            Event::Scalar(text, ..) => {
                self.value_path(Some(&text), mark.line());
            }
            Event::Alias(_) => {
                self.value_path(None, mark.line());
            }
            Event::MappingStart(..) => {
                let path = self.value_path(None, mark.line()).unwrap_or_default();
                self.open.push(YamlNode::Mapping { path, key: None });
            }
            Event::SequenceStart(..) => {
                let path = self.value_path(None, mark.line()).unwrap_or_default();
                self.open.push(YamlNode::Sequence { path, next: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart | Event::DocumentEnd => {}
        }
    }
}

fn toml_lines(text: &str) -> Lines {
    let mut lines = Lines::new();
    if let Ok(table) = toml::de::DeTable::parse(text) {
        toml_table(text, "", table.get_ref(), &mut lines);
    }
    lines
}

fn toml_table(text: &str, path: &str, table: &toml::de::DeTable<'_>, lines: &mut Lines) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        lines.insert(path.clone(), line_of(text, key.span().start));
        toml_value(text, &path, value, lines);
    }
}

fn toml_value(text: &str, path: &str, value: &toml::Spanned<toml::de::DeValue<'_>>, lines: &mut Lines) {
    if let Some(table) = value.get_ref().as_table() {
        toml_table(text, path, table, lines);
    } else if let Some(items) = value.get_ref().as_array() {
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            lines.insert(path.clone(), line_of(text, item.span().start));
            toml_value(text, &path, item, lines);
        }
    }
}

/// The line a byte is on, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_lines_in_every_format() {
        let yaml = "cluster: {name: west, id: 1}\n\npeers:\n  - cluster: east\n    endpoints:\n      - https://a\n      - https://b\n";
        let json = "{\n \"cluster\": {\n  \"name\": \"west\"},\n \"peers\": [\n  {\"cluster\": \"east\",\n   \"endpoints\": [\n    \"a\"]}]}";
        let toml = "state_dir = \"/x\"\n[cluster]\nname = \"west\"\n\n[[peers]]\ncluster = \"east\"\nendpoints = [\n  \"a\",\n  \"b\"]\n";
        for (format, text, key, line) in [
            (Format::Yaml, yaml, "cluster.id", 1),
            (Format::Yaml, yaml, "peers[0].cluster", 4),
            (Format::Yaml, yaml, "peers[0].endpoints[1]", 7),
            (Format::Json, json, "cluster.name", 3),
            (Format::Json, json, "peers[0].endpoints[0]", 7),
            (Format::Toml, toml, "cluster.name", 3),
            (Format::Toml, toml, "peers[0].cluster", 6),
            (Format::Toml, toml, "peers[0].endpoints[1]", 9),
        ] {
            assert_eq!(lines(format, text).get(key), Some(&line), "{key} in {format:?}");
        }
    }
}
