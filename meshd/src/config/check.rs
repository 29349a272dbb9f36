//! Unknown keys and wrong types, all of them, before serde stops at the first.

use config::ValueKind;

use super::described::{Field, Kind, Section};
use super::error::{Finding, nearest};
use super::locate::join;
use super::tree::{Node, Tree};

/// Compares a tree with what a section accepts.
pub(super) fn check(section: &Section, tree: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_table(section, "", tree, &mut findings);
    findings
}

fn check_table(section: &Section, path: &str, node: &Node, findings: &mut Vec<Finding>) {
    let Tree::Table(table) = &node.value else {
        findings.push(wrong_type(path, node, "a table"));
        return;
    };
    for (key, value) in table {
        let path = join(path, key);
        match section.fields.iter().find(|field| field.name == key) {
            Some(field) => check_field(field, &path, value, findings),
            None => findings.push(unknown_key(section, key, &path, value)),
        }
    }
}

fn check_field(field: &Field, path: &str, node: &Node, findings: &mut Vec<Finding>) {
    if matches!(field.kind, Kind::Unsupported) {
        if !says_off(node) {
            let doc = field.doc.join(" ");
            let doc = doc.trim().trim_end_matches('.').to_owned();
            findings.push(located(
                Finding::new(path, format!("not supported by this version ({doc})"))
                    .hint(format!("remove {path}, or say that it is off ({path}: {{enabled: false}})")),
                node,
            ));
        }
        return;
    }
    check_kind(&field.kind, path, node, findings);
}

fn check_kind(kind: &Kind, path: &str, node: &Node, findings: &mut Vec<Finding>) {
    match (kind, &node.value) {
        (Kind::Table(section), _) => check_table(section, path, node, findings),
        (Kind::List(item), Tree::List(items)) => {
            for (i, node) in items.iter().enumerate() {
                check_kind(item, &format!("{path}[{i}]"), node, findings);
            }
        }
        (Kind::Map(value), Tree::Table(table)) => {
            for (key, node) in table {
                check_kind(value, &join(path, key), node, findings);
            }
        }
        (Kind::Choice(words), Tree::Leaf(value)) => {
            let word = leaf_text(value);
            if !words.contains(&word.as_str()) {
                let hint = match nearest(&word, words.iter().copied()) {
                    Some(near) => format!("did you mean {near}? possible: {}", words.join(", ")),
                    None => format!("possible: {}", words.join(", ")),
                };
                findings.push(located(Finding::new(path, format!("unknown value {word:?}")).hint(hint), node));
            }
        }
        (Kind::Bool, Tree::Leaf(value)) if is_bool(value) => {}
        (Kind::Integer(low, high), Tree::Leaf(value)) => match integer(value) {
            Some(n) if i128::from(*low) <= n && n <= i128::from(*high) => {}
            Some(_) | None => findings.push(wrong_type(path, node, &kind.words())),
        },
        // A name such as 7 or true is parsed as a number or a truth value; it is meant as a text.
        (Kind::Text(_), Tree::Leaf(_)) | (Kind::Unsupported, _) => {}
        (Kind::Bool | Kind::List(_) | Kind::Map(_) | Kind::Choice(_) | Kind::Integer(..) | Kind::Text(_), _) => {
            findings.push(wrong_type(path, node, &kind.words()));
        }
    }
}

fn unknown_key(section: &Section, key: &str, path: &str, node: &Node) -> Finding {
    let known = section.fields.iter().map(|field| field.name);
    let hint = match nearest(key, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known keys here: {}", known.collect::<Vec<_>>().join(", ")),
    };
    located(Finding::new(path, format!("unknown key {key}")).hint(hint), node)
}

fn wrong_type(path: &str, node: &Node, expected: &str) -> Finding {
    let found = match &node.value {
        Tree::Table(_) => "a table".to_owned(),
        Tree::List(_) => "a list".to_owned(),
        Tree::Leaf(value) => match value {
            ValueKind::String(text) => format!("the text {text:?}"),
            ValueKind::Boolean(value) => format!("the truth value {value}"),
            other => format!("the number {}", leaf_text(other)),
        },
    };
    let finding = Finding::new(path, format!("wrong type: expected {expected}, found {found}"));
    located(finding.hint(format!("write {expected} here; `meshd check` verifies the file")), node)
}

fn located(finding: Finding, node: &Node) -> Finding {
    match &node.origin {
        Some(origin) => finding.at(origin.clone()),
        None => finding,
    }
}

/// Does a value of a later version say that its feature is off?
fn says_off(node: &Node) -> bool {
    match &node.value {
        Tree::Leaf(ValueKind::Boolean(value)) => !value,
        Tree::Leaf(ValueKind::String(text)) => matches!(text.as_str(), "" | "off" | "no" | "false" | "disabled"),
        Tree::Leaf(_) => false,
        Tree::List(items) => items.is_empty(),
        Tree::Table(table) => table.is_empty() || table.get("enabled").is_some_and(says_off),
    }
}

fn leaf_text(value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_bool(value: &ValueKind) -> bool {
    match value {
        ValueKind::Boolean(_) => true,
        // What the `config` crate takes for a truth value.
        ValueKind::String(text) => {
            matches!(text.to_lowercase().as_str(), "1" | "true" | "on" | "yes" | "0" | "false" | "off" | "no")
        }
        _ => false,
    }
}

fn integer(value: &ValueKind) -> Option<i128> {
    match value {
        ValueKind::I64(n) => Some(i128::from(*n)),
        ValueKind::U64(n) => Some(i128::from(*n)),
        ValueKind::I128(n) => Some(*n),
        ValueKind::U128(n) => i128::try_from(*n).ok(),
        ValueKind::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}
