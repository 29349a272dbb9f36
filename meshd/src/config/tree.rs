//! The values of all sources in one tree, each with its origin.
//!
//! The `config` crate parses the files; merging is done here, because every value must remember which file
//! and line, variable or flag it came from, and because the lists of items are appended across files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{FileFormat, Source, Value, ValueKind};

use super::described::{Kind, Section};
use super::error::{Finding, Origin, nearest};
use super::locate::{self, Lines};

/// Lists whose items are appended when files are merged; other lists are replaced.
const APPENDED: [&str; 5] = ["peers", "bgp.peers", "workloads.static", "workloads.services", "store.users"];

/// File formats, chosen by extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Toml,
    Json,
}

impl Format {
    /// The format of a file by its extension.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Option<Origin>,
    pub(super) value: Tree,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Leaf(ValueKind),
}

impl Node {
    /// A table without keys.
    pub(super) fn empty() -> Self {
        Self { origin: None, value: Tree::Table(BTreeMap::new()) }
    }

    /// Parses a file whose extension says what it is.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, Finding> {
        match Format::of(path) {
            Some(format) => Self::parse_as(format, path, text),
            None => Err(Finding::new("", "unknown kind of configuration file")
                .hint("name it .yaml, .yml, .toml or .json")
                .at(Origin::File { path: Arc::new(path.to_owned()), line: None })),
        }
    }

    /// Parses a file.
    pub(super) fn parse_as(format: Format, path: &Path, text: &str) -> Result<Self, Finding> {
        let file = Arc::new(path.to_owned());
        let whole = |line| Origin::File { path: Arc::clone(&file), line };
        let file_format = match format {
            Format::Yaml => FileFormat::Yaml,
            Format::Toml => FileFormat::Toml,
            Format::Json => FileFormat::Json,
        };
        let table = match config::File::from_str(text, file_format).collect() {
            Ok(table) => table,
            // An empty YAML document is an empty configuration.
            Err(_) if format == Format::Yaml && is_blank_yaml(text) => return Ok(Self::empty()),
            Err(error) => {
                let (line, message) = parse_error(text, error);
                return Err(Finding::new("", message).at(whole(line)).hint(match format {
                    Format::Yaml => "check indentation, quotes and brackets there",
                    Format::Toml | Format::Json => "check quotes, commas and brackets there",
                }));
            }
        };
        let lines = locate::lines(format, text);
        let value = Value::new(None, ValueKind::Table(table));
        let node = Self::convert("", value, &file, &lines, whole(None));
        Ok(node.unwrap_or_else(Self::empty))
    }

    /// Takes a parsed value over; a value of `null` is one that was not given.
    fn convert(path: &str, value: Value, file: &Arc<PathBuf>, lines: &Lines, parent: Origin) -> Option<Self> {
        let origin = match lines.get(path) {
            Some(line) => Origin::File { path: Arc::clone(file), line: Some(*line) },
            None => parent,
        };
        let value = match value.kind {
            ValueKind::Nil => return None,
            ValueKind::Table(table) => {
                // Sorted first: the parser's map has no order.
                let sorted: BTreeMap<String, Value> = table.into_iter().collect();
                let convert = |(key, value): (String, Value)| {
                    let node = Self::convert(&locate::join(path, &key), value, file, lines, origin.clone())?;
                    Some((key, node))
                };
                Tree::Table(sorted.into_iter().filter_map(convert).collect())
            }
            ValueKind::Array(items) => {
                let convert = |(i, value)| {
                    let path = format!("{path}[{i}]");
                    // A null item is a mistake worth an error; an empty text is one.
                    let empty =
                        || Self { origin: Some(origin.clone()), value: Tree::Leaf(ValueKind::String(String::new())) };
                    Self::convert(&path, value, file, lines, origin.clone()).unwrap_or_else(empty)
                };
                Tree::List(items.into_iter().enumerate().map(convert).collect())
            }
            leaf => Tree::Leaf(leaf),
        };
        Some(Self { origin: Some(origin), value })
    }

    /// Merges `over` into this tree.
    pub(super) fn merge(&mut self, path: &str, over: Self) {
        match (&mut self.value, over.value) {
            (Tree::Table(under), Tree::Table(over)) => {
                for (key, node) in over {
                    let path = locate::join(path, &key);
                    match under.get_mut(&key) {
                        Some(existing) => existing.merge(&path, node),
                        None => {
                            under.insert(key, node);
                        }
                    }
                }
            }
            (Tree::List(under), Tree::List(over)) if APPENDED.contains(&path) => under.extend(over),
            (under, over_value) => {
                *under = over_value;
                self.origin = over.origin;
            }
        }
    }

    /// Puts a text from the environment or a flag at `path`, by what `section` says is there.
    ///
    /// Lists are written with commas, lists of tables and tables as JSON.
    pub(super) fn put(&mut self, section: &Section, path: &[&str], text: &str, origin: &Origin) -> Result<(), Finding> {
        let at = |message: String| Finding::new(path.join("."), message).at(origin.clone());
        let (mut node, mut section) = (self, section);
        for (depth, key) in path.iter().enumerate() {
            let Some(field) = section.fields.iter().find(|field| field.name == *key) else {
                let known = section.fields.iter().map(|field| field.name);
                let hint = match nearest(key, known.clone()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known keys here: {}", known.collect::<Vec<_>>().join(", ")),
                };
                return Err(at(format!("unknown key {key}")).hint(hint));
            };
            let Tree::Table(table) = &mut node.value else {
                return Err(at(format!("{} is not a table", path[..depth].join("."))));
            };
            let fresh = || Self { origin: Some(origin.clone()), value: Tree::Table(BTreeMap::new()) };
            if depth + 1 == path.len() {
                let value = text_value(&field.kind, text, origin).map_err(&at)?;
                table.insert((*key).to_owned(), value);
                return Ok(());
            }
            let Kind::Table(inner) = field.kind else {
                return Err(at(format!("{key} is not a table, but {}", field.kind.words())));
            };
            node = table.entry((*key).to_owned()).or_insert_with(fresh);
            section = inner;
        }
        Err(at("no key given".to_owned()))
    }

    /// The origin of a key, or of the nearest table around it that has one.
    pub(super) fn origin_of(&self, key: &str) -> Option<Origin> {
        let mut node = self;
        let mut origin = None;
        for part in key.split('.') {
            let (name, indexes) = part.split_once('[').map_or((part, ""), |(name, rest)| (name, rest));
            let Tree::Table(table) = &node.value else { break };
            let Some(next) = table.get(name) else { break };
            node = next;
            origin = node.origin.clone().or(origin);
            for index in indexes.split('[').filter_map(|text| text.trim_end_matches(']').parse::<usize>().ok()) {
                let Tree::List(items) = &node.value else { return origin };
                let Some(next) = items.get(index) else { return origin };
                node = next;
                origin = node.origin.clone().or(origin);
            }
        }
        origin
    }

    /// The value at a key of tables.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        key.split('.').try_fold(self, |node, part| match &node.value {
            Tree::Table(table) => table.get(part),
            Tree::List(_) | Tree::Leaf(_) => None,
        })
    }

    /// The value as the `config` crate deserializes it.
    pub(super) fn into_value(self) -> Value {
        let kind = match self.value {
            Tree::Table(table) => {
                ValueKind::Table(table.into_iter().map(|(key, node)| (key, node.into_value())).collect())
            }
            Tree::List(items) => ValueKind::Array(items.into_iter().map(Self::into_value).collect()),
            Tree::Leaf(kind) => kind,
        };
        Value::new(None, kind)
    }
}

/// Reads one text by what the key accepts.
fn text_value(kind: &Kind, text: &str, origin: &Origin) -> Result<Node, String> {
    let leaf =
        |text: &str| Node { origin: Some(origin.clone()), value: Tree::Leaf(ValueKind::String(text.to_owned())) };
    let json = || {
        let wrapped = format!("{{\"value\":{text}}}");
        let table = config::File::from_str(&wrapped, FileFormat::Json)
            .collect()
            .map_err(|error| format!("{} written as JSON is expected here: {error}", kind.words()))?;
        let mut table: BTreeMap<String, Value> = table.into_iter().collect();
        let value = table.remove("value").unwrap_or_else(|| Value::new(None, ValueKind::Nil));
        let nowhere = Arc::new(PathBuf::new());
        Ok(Node::convert("value", value, &nowhere, &Lines::new(), origin.clone()).unwrap_or_else(|| leaf("")))
    };
    match kind {
        Kind::List(Kind::Table(_)) | Kind::Table(_) | Kind::Map(_) | Kind::Unsupported => json(),
        Kind::List(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(leaf).collect();
            Ok(Node { origin: Some(origin.clone()), value: Tree::List(items) })
        }
        Kind::Bool | Kind::Integer(..) | Kind::Text(_) | Kind::Choice(_) => Ok(leaf(text)),
    }
}

/// Only comments, blank lines and document marks?
fn is_blank_yaml(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---" || line == "...")
}

/// Line and text of a parser's complaint.
fn parse_error(text: &str, error: config::ConfigError) -> (Option<usize>, String) {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return (None, format!("the file does not hold a table: {error}"));
    };
    if let Some(error) = cause.downcast_ref::<yaml_rust2::ScanError>() {
        return (Some(error.marker().line()), format!("invalid YAML: {}", error.info()));
    }
    if let Some(error) = cause.downcast_ref::<toml::de::Error>() {
        let line = error.span().map(|span| locate::line_of(text, span.start));
        return (line, format!("invalid TOML: {}", error.message()));
    }
    if let Some(error) = cause.downcast_ref::<serde_json::Error>() {
        return (Some(error.line()), format!("invalid JSON: {error}"));
    }
    (None, format!("the file cannot be parsed: {cause}"))
}
