//! A YAML document as a tree whose every value remembers its line.
//!
//! A topology is written by hand, so an error has to name the line it is about. The usual route through serde
//! loses positions; the event stream of the parser keeps them, and a tree of four kinds of value is all a topology
//! needs. Anchors and merge keys work as users of containerlab know them.

use std::collections::BTreeMap;

use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// A document that cannot be read as one YAML value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {message}")]
pub struct YamlError {
    /// Line of the problem, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// One value of the document and the line it starts on.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Line of the first character, counted from 1.
    pub line: usize,
    /// The value itself.
    pub data: Data,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// `~`, `null` or nothing.
    Null,
    /// `true` or `false`, unquoted.
    Bool(bool),
    /// A number, unquoted, kept as it was written so that it can also serve as text.
    Number(String),
    /// Any other scalar.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A mapping, in the order of the document.
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Line of the key.
    pub line: usize,
    /// The key.
    pub key: String,
    /// The value.
    pub value: Value,
}

impl Value {
    /// The word for this kind of value in an error message.
    pub fn kind(&self) -> &'static str {
        match self.data {
            Data::Null => "nothing",
            Data::Bool(_) => "a boolean",
            Data::Number(_) => "a number",
            Data::Text(_) => "a string",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }

    /// The value below `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => None,
        }
    }
}

/// Reads a text that holds exactly one document.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut builder = Builder::default();
    Parser::new_from_str(text)
        .load(&mut builder, true)
        .map_err(|error| YamlError { line: error.marker().line(), message: error.info().to_owned() })?;
    if let Some(error) = builder.error {
        return Err(error);
    }
    let mut documents = builder.documents.into_iter();
    match (documents.next(), documents.next()) {
        (Some(document), None) => Ok(document),
        (None, _) => Err(YamlError { line: 1, message: "the file is empty".to_owned() }),
        (Some(_), Some(second)) => {
            Err(YamlError { line: second.line, message: "a second document starts here, one is expected".to_owned() })
        }
    }
}

/// A collection that is still open while its events arrive.
enum Open {
    List { line: usize, anchor: usize, items: Vec<Value> },
    Map { line: usize, anchor: usize, entries: Vec<Entry>, key: Option<(usize, String)> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Value>,
    documents: Vec<Value>,
    error: Option<YamlError>,
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, mark: Marker) {
        if self.error.is_some() {
            return;
        }
        let line = mark.line();
        match event {
            Event::Scalar(text, style, anchor, _tag) => {
                let plain = style == TScalarStyle::Plain;
                self.add(Value { line, data: if plain { plain_scalar(text) } else { Data::Text(text) } }, anchor);
            }
            Event::SequenceStart(anchor, _tag) => self.open.push(Open::List { line, anchor, items: Vec::new() }),
            Event::MappingStart(anchor, _tag) => {
                self.open.push(Open::Map { line, anchor, entries: Vec::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { line, anchor, items }) => self.add(Value { line, data: Data::List(items) }, anchor),
                Some(Open::Map { line, anchor, entries, .. }) => {
                    self.add(Value { line, data: Data::Map(merged(entries)) }, anchor);
                }
                None => self.fail(line, "a collection ends that never started"),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(value) => self.add(Value { line, ..value }, 0),
                None => self.fail(line, "an alias refers to an anchor that is not there"),
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart | Event::DocumentEnd => {}
        }
    }
}

impl Builder {
    fn fail(&mut self, line: usize, message: &str) {
        self.error = Some(YamlError { line, message: message.to_owned() });
    }

    fn add(&mut self, value: Value, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                Some((line, name)) => {
                    if name != "<<" && entries.iter().any(|entry| entry.key == name) {
                        self.fail(line, &format!("the key {name:?} is there twice"));
                    } else {
                        entries.push(Entry { line, key: name, value });
                    }
                }
                None => match value.data {
                    Data::Text(name) | Data::Number(name) => *key = Some((value.line, name)),
                    Data::Bool(name) => *key = Some((value.line, name.to_string())),
                    Data::Null | Data::List(_) | Data::Map(_) => self.fail(value.line, "a key must be a scalar"),
                },
            },
        }
    }
}

/// Resolves `<<: *anchor`: keys of the mapping itself win over merged ones.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    if !entries.iter().any(|entry| entry.key == "<<") {
        return entries;
    }
    let (merges, mut own): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.key == "<<");
    for merge in merges {
        let sources = match merge.value.data {
            Data::Map(_) => vec![merge.value],
            Data::List(items) => items,
            Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) => Vec::new(),
        };
        for source in sources {
            if let Data::Map(inherited) = source.data {
                for entry in inherited {
                    if !own.iter().any(|present| present.key == entry.key) {
                        own.push(entry);
                    }
                }
            }
        }
    }
    own
}

/// The type of an unquoted scalar by the core schema of YAML 1.2, as far as a topology can meet it.
fn plain_scalar(text: String) -> Data {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Data::Null,
        "true" | "True" | "TRUE" => Data::Bool(true),
        "false" | "False" | "FALSE" => Data::Bool(false),
        other if is_number(other) => Data::Number(text),
        _ => Data::Text(text),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.chars().filter(|&c| c == '.').count() <= 1
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_remember_their_lines() {
        let document = parse("a: 1\nb:\n  - x\n  - {c: true}\n").unwrap();
        let b = document.get("b").unwrap();
        assert_eq!(b.line, 3);
        let Data::List(items) = &b.data else { panic!("{b:?}") };
        assert_eq!((items[0].line, items[1].line), (3, 4));
        assert_eq!(items[1].get("c").unwrap().data, Data::Bool(true));
    }

    #[test]
    fn scalars_have_the_types_of_yaml() {
        for (text, expected) in [
            ("12", Data::Number("12".into())),
            ("'12'", Data::Text("12".into())),
            ("1.5", Data::Number("1.5".into())),
            ("10.0.0.1", Data::Text("10.0.0.1".into())),
            ("1500m", Data::Text("1500m".into())),
            ("~", Data::Null),
            ("true", Data::Bool(true)),
            ("\"true\"", Data::Text("true".into())),
        ] {
            assert_eq!(parse(&format!("key: {text}")).unwrap().get("key").unwrap().data, expected, "{text}");
        }
    }

    #[test]
    fn anchors_and_merge_keys_resolve() {
        let document = parse("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nsame: *b\n").unwrap();
        let used = document.get("use").unwrap();
        assert_eq!(used.get("x").unwrap().data, Data::Number("1".into()));
        assert_eq!(used.get("y").unwrap().data, Data::Number("3".into()));
        assert_eq!(document.get("same").unwrap().get("y").unwrap().data, Data::Number("2".into()));
    }

    #[test]
    fn problems_name_their_line() {
        assert_eq!(parse("a: 1\nb: 2\na: 3\n").unwrap_err().line, 3);
        assert_eq!(parse("a: 1\n---\nb: 2\n").unwrap_err().line, 3);
        assert!(parse("").is_err());
        assert!(parse("a: [1\n").is_err());
    }
}
