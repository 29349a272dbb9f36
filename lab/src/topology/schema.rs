//! What containerlab's topology format allows, as far as a file for plain namespaces can meet it.
//!
//! containerlab publishes a JSON schema for its files. The tables here say the same in a form that gives errors
//! with a key and a line: which keys exist at each place and what shape their values have. A key that is in a table
//! but has no meaning without containers (images, published ports, memory limits) is accepted and without effect, so
//! that one file serves both runners. A key in no table is an error.

use super::TopologyError;
use crate::yaml::{Data, Entry, Value};

/// The shape a value must have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// Any string; numbers and booleans count as the text they were written as.
    Text,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A whole number that is not negative.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list of strings, not empty.
    Texts,
    /// A list of strings, each at most once, not empty.
    Set,
    /// A mapping of any names to strings or numbers.
    Pairs,
    /// A mapping of any content (variables of containerlab's configuration engine).
    Free,
    /// A mapping with exactly the keys of a table.
    Fields(&'static [Field]),
    /// A list of mappings with exactly the keys of a table.
    ListOf(&'static [Field]),
    /// A mapping from any name to a mapping with the keys of a table, or to nothing.
    Named(&'static [Field]),
    /// A list of links, whose keys depend on their type.
    Links,
}

/// One key of a mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    key: &'static str,
    shape: Shape,
}

const fn field(key: &'static str, shape: Shape) -> Field {
    Field { key, shape }
}

/// The whole file.
pub(super) const ROOT: &[Field] = &[
    field("name", Shape::Text),
    field("prefix", Shape::Text),
    field("mgmt", Shape::Fields(MGMT)),
    field("settings", Shape::Fields(SETTINGS)),
    field("topology", Shape::Fields(TOPOLOGY)),
];

const MGMT: &[Field] = &[
    field("network", Shape::Text),
    field("bridge", Shape::Text),
    field("ipv4-subnet", Shape::Text),
    field("ipv6-subnet", Shape::Text),
    field("ipv4-gw", Shape::Text),
    field("ipv6-gw", Shape::Text),
    field("ipv4-range", Shape::Text),
    field("ipv6-range", Shape::Text),
    field("mtu", Shape::Integer),
    field("external-access", Shape::Bool),
    field("driver-opts", Shape::Pairs),
];

const SETTINGS: &[Field] = &[field(
    "certificate-authority",
    Shape::Fields(&[
        field("cert", Shape::Text),
        field("key", Shape::Text),
        field("key-size", Shape::Integer),
        field("validity-duration", Shape::Text),
    ]),
)];

const TOPOLOGY: &[Field] = &[
    field("defaults", Shape::Fields(NODE)),
    field("kinds", Shape::Named(NODE)),
    field("groups", Shape::Named(NODE)),
    field("nodes", Shape::Named(NODE)),
    field("links", Shape::Links),
];

/// A node, and equally `defaults` and each entry of `kinds` and `groups`.
const NODE: &[Field] = &[
    field("kind", Shape::Text),
    field("image", Shape::Text),
    field("image-pull-policy", Shape::OneOf(&["always", "Always", "never", "Never", "ifnotpresent", "IfNotPresent"])),
    field("restart-policy", Shape::OneOf(&["no", "on-failure", "always", "unless-stopped"])),
    field("license", Shape::Text),
    field("type", Shape::Text),
    field("group", Shape::Text),
    field("startup-config", Shape::Text),
    field("startup-delay", Shape::Integer),
    field("enforce-startup-config", Shape::Bool),
    field("suppress-startup-config", Shape::Bool),
    field("auto-remove", Shape::Bool),
    field("exec", Shape::Texts),
    field("binds", Shape::Set),
    field("devices", Shape::Set),
    field("cap-add", Shape::Set),
    field("shm-size", Shape::Text),
    field("ports", Shape::Set),
    field("publish", Shape::Set),
    field("env", Shape::Pairs),
    field("env-files", Shape::Set),
    field("labels", Shape::Pairs),
    field("user", Shape::Text),
    field("entrypoint", Shape::Text),
    field("cmd", Shape::Text),
    field("runtime", Shape::OneOf(&["docker", "podman", "ignite"])),
    field("mgmt-ipv4", Shape::Text),
    field("mgmt-ipv6", Shape::Text),
    field("network-mode", Shape::Text),
    field("cpu", Shape::Text),
    field("cpu-set", Shape::Text),
    field("memory", Shape::Text),
    field("sandbox", Shape::Text),
    field("kernel", Shape::Text),
    field("aliases", Shape::Set),
    field("extras", Shape::Free),
    field("config", Shape::Fields(&[field("vars", Shape::Free)])),
    field("stages", Shape::Fields(STAGES)),
    field(
        "dns",
        Shape::Fields(&[field("servers", Shape::Set), field("search", Shape::Set), field("options", Shape::Set)]),
    ),
    field(
        "certificate",
        Shape::Fields(&[
            field("issue", Shape::Bool),
            field("sans", Shape::Set),
            field("key-size", Shape::Integer),
            field("validity-duration", Shape::Text),
        ]),
    ),
    field(
        "healthcheck",
        Shape::Fields(&[
            field("test", Shape::Texts),
            field("interval", Shape::Integer),
            field("retries", Shape::Integer),
            field("timeout", Shape::Integer),
            field("start-period", Shape::Integer),
        ]),
    ),
];

const STAGES: &[Field] = &[
    field("create", Shape::Fields(STAGE)),
    field("create-links", Shape::Fields(STAGE)),
    field("configure", Shape::Fields(STAGE)),
    field("healthy", Shape::Fields(STAGE)),
    field("exit", Shape::Fields(STAGE)),
];

const STAGE: &[Field] = &[
    field("wait-for", Shape::ListOf(&[field("node", Shape::Text), field("stage", Shape::OneOf(STAGE_NAMES))])),
    field("exec", Shape::Fields(&[field("on-enter", Shape::Texts), field("on-exit", Shape::Texts)])),
];

/// The names of the stages a node goes through.
pub(super) const STAGE_NAMES: &[&str] = &["create", "create-links", "configure", "healthy", "exit"];

/// A link in the short form: two `node:link` strings.
const LINK_BRIEF: &[Field] = &[
    field("endpoints", Shape::Set),
    field("mtu", Shape::Integer),
    field("labels", Shape::Pairs),
    field("vars", Shape::Free),
];

/// A link of `type: veth`.
const LINK_VETH: &[Field] = &[
    field("type", Shape::Text),
    field(
        "endpoints",
        Shape::ListOf(&[
            field("node", Shape::Text),
            field("interface", Shape::Text),
            field("mac", Shape::Text),
            field("vars", Shape::Free),
        ]),
    ),
    field("mtu", Shape::Integer),
    field("labels", Shape::Pairs),
    field("vars", Shape::Free),
];

/// Link types of containerlab that reach outside the lab, which a lab in namespaces never does.
const LINK_TYPES_OUTSIDE: &[&str] = &["mgmt-net", "macvlan", "host", "vxlan", "vxlan-stitch", "dummy"];

/// Checks a mapping against a table, and everything below it.
pub(super) fn check(value: &Value, fields: &'static [Field], path: &str) -> Result<(), TopologyError> {
    for entry in entries(value, path)? {
        let Some(field) = fields.iter().find(|field| field.key == entry.key) else {
            return Err(unknown_key(entry, fields, path));
        };
        check_shape(&entry.value, field.shape, &join(path, &entry.key))?;
    }
    Ok(())
}

fn check_shape(value: &Value, shape: Shape, path: &str) -> Result<(), TopologyError> {
    match shape {
        Shape::Text => text(value, path).map(drop),
        Shape::OneOf(allowed) => {
            let given = text(value, path)?;
            if allowed.contains(&given) {
                return Ok(());
            }
            Err(wrong(value, path, format!("is {given:?}, allowed are {}", allowed.join(", "))))
        }
        Shape::Integer => integer(value, path).map(drop),
        Shape::Bool => match value.data {
            Data::Bool(_) => Ok(()),
            _ => Err(expected(value, path, "true or false")),
        },
        Shape::Texts | Shape::Set => {
            let items = texts(value, path)?;
            if items.is_empty() {
                return Err(wrong(value, path, "must not be empty".to_owned()));
            }
            let repeated = items.iter().enumerate().find(|(index, item)| items[..*index].contains(item));
            match (shape, repeated) {
                (Shape::Set, Some((_, item))) => Err(wrong(value, path, format!("has {item:?} twice"))),
                _ => Ok(()),
            }
        }
        Shape::Pairs => pairs(value, path).map(drop),
        Shape::Free => entries(value, path).map(drop),
        Shape::Fields(fields) => check(value, fields, path),
        Shape::ListOf(fields) => items(value, path)?.iter().try_for_each(|item| check(item, fields, path)),
        Shape::Named(fields) => entries(value, path)?.iter().try_for_each(|entry| match entry.value.data {
            Data::Null => Ok(()),
            _ => check(&entry.value, fields, &join(path, &entry.key)),
        }),
        Shape::Links => items(value, path)?.iter().try_for_each(|link| check_link(link, path)),
    }
}

fn check_link(link: &Value, path: &str) -> Result<(), TopologyError> {
    let Some(kind) = link.get("type") else {
        return check(link, LINK_BRIEF, path);
    };
    match text(kind, path)? {
        "veth" => check(link, LINK_VETH, path),
        outside if LINK_TYPES_OUTSIDE.contains(&outside) => Err(wrong(
            kind,
            &join(path, "type"),
            format!("is {outside:?}, which leads out of the lab; only veth links stay inside"),
        )),
        other => Err(wrong(kind, &join(path, "type"), format!("is {other:?}, which is no link type"))),
    }
}

/// The entries of a mapping; nothing counts as an empty one.
pub(super) fn entries<'v>(value: &'v Value, path: &str) -> Result<&'v [Entry], TopologyError> {
    match &value.data {
        Data::Map(entries) => Ok(entries),
        Data::Null => Ok(&[]),
        _ => Err(expected(value, path, "a mapping")),
    }
}

/// The items of a list.
pub(super) fn items<'v>(value: &'v Value, path: &str) -> Result<&'v [Value], TopologyError> {
    match &value.data {
        Data::List(items) => Ok(items),
        _ => Err(expected(value, path, "a list")),
    }
}

/// A scalar as text.
pub(super) fn text<'v>(value: &'v Value, path: &str) -> Result<&'v str, TopologyError> {
    match &value.data {
        Data::Text(text) | Data::Number(text) => Ok(text),
        Data::Bool(true) => Ok("true"),
        Data::Bool(false) => Ok("false"),
        _ => Err(expected(value, path, "a string")),
    }
}

/// A list of scalars as text.
pub(super) fn texts(value: &Value, path: &str) -> Result<Vec<String>, TopologyError> {
    items(value, path)?.iter().map(|item| text(item, path).map(str::to_owned)).collect()
}

/// A mapping of names to scalars.
pub(super) fn pairs(value: &Value, path: &str) -> Result<Vec<(String, String)>, TopologyError> {
    entries(value, path)?
        .iter()
        .map(|entry| Ok((entry.key.clone(), text(&entry.value, &join(path, &entry.key))?.to_owned())))
        .collect()
}

/// A whole number.
pub(super) fn integer(value: &Value, path: &str) -> Result<u32, TopologyError> {
    match &value.data {
        Data::Number(number) => {
            number.parse().map_err(|_| expected(value, path, "a whole number that is not negative"))
        }
        _ => Err(expected(value, path, "a whole number that is not negative")),
    }
}

/// An error about a value that has the right shape but cannot be used.
pub(super) fn wrong(value: &Value, path: &str, problem: String) -> TopologyError {
    TopologyError::Wrong { key: path.to_owned(), line: value.line, problem }
}

/// The name of a key below another one, as errors print it.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn expected(value: &Value, path: &str, what: &'static str) -> TopologyError {
    wrong(value, path, format!("must be {what}, not {}", value.kind()))
}

fn unknown_key(entry: &Entry, fields: &[Field], path: &str) -> TopologyError {
    let nearest = fields
        .iter()
        .map(|field| (strsim::damerau_levenshtein(field.key, &entry.key), field.key))
        .min()
        .map(|(_, key)| key.to_owned())
        .unwrap_or_default();
    TopologyError::UnknownKey { key: join(path, &entry.key), line: entry.line, nearest }
}
