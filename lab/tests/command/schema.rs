//! Every topology of this folder is also a valid file for containerlab.
//!
//! The schema beside this file says in our words which keys and shapes containerlab documents, as far as our files use
//! them. When `CONTAINERLAB_SCHEMA` names a copy of the schema that containerlab publishes, the files are checked against
//! that one too. The small validator knows the words of JSON Schema that both of them use.

use lab::yaml::{Data, Value as Yaml};
use serde_json::{Map, Value};

#[test]
fn topologies_satisfy_the_schema() {
    let own: Value = serde_json::from_str(include_str!("containerlab.schema.json")).unwrap();
    let mut schemas = vec![own];
    if let Some(path) = std::env::var_os("CONTAINERLAB_SCHEMA") {
        schemas.push(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
    }
    let topologies = lab::catalog::list();
    assert!(topologies.len() >= 3, "{topologies:?}");
    for (name, path) in topologies {
        let document = to_json(&lab::yaml::parse(&std::fs::read_to_string(path).unwrap()).unwrap());
        for schema in &schemas {
            check(&document, schema, schema, "").unwrap_or_else(|problem| panic!("{name}: {problem}"));
        }
    }
}

#[test]
fn the_validator_refuses_what_it_should() {
    let schema: Value = serde_json::from_str(include_str!("containerlab.schema.json")).unwrap();
    for (text, problem) in [
        ("name: a", "topology is required"),
        ("name: a\nextra: 1\ntopology: {nodes: {}}", "extra is not known"),
        ("name: 1\ntopology: {nodes: {}}", "name is not of type string"),
        ("name: a\ntopology: {nodes: {n: {kind: crpd}}}", "none of"),
        ("name: a\ntopology: {nodes: {n: {exec: []}}}", "none of"),
        ("name: a\ntopology: {nodes: {}, links: [{endpoints: [\"a:b\"]}]}", "has too few items"),
        ("name: a\ntopology: {nodes: {}, links: [{endpoints: [\"a:b\", \"a:b\"]}]}", "has an item twice"),
    ] {
        let document = to_json(&lab::yaml::parse(text).unwrap());
        let refused = check(&document, &schema, &schema, "").unwrap_err();
        assert!(refused.contains(problem), "{text}: {refused}");
    }
}

fn to_json(value: &Yaml) -> Value {
    match &value.data {
        Data::Null => Value::Null,
        Data::Bool(flag) => Value::Bool(*flag),
        Data::Number(number) => serde_json::from_str(number).unwrap(),
        Data::Text(text) => Value::String(text.clone()),
        Data::List(items) => Value::Array(items.iter().map(to_json).collect()),
        Data::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), to_json(&entry.value))).collect())
        }
    }
}

/// Checks one value against one schema; `root` is where references start.
fn check(value: &Value, schema: &Value, root: &Value, path: &str) -> Result<(), String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).ok_or(format!("no {reference} in the schema"))?;
        check(value, target, root, path)?;
    }
    if let Some(kind) = schema.get("type").and_then(Value::as_str)
        && !is_of_type(value, kind)
    {
        return Err(format!("{path} is not of type {kind}"));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        return Err(format!("{path} is {value}, which is not allowed"));
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(choices) = schema.get(word).and_then(Value::as_array) {
            let problems: Vec<String> =
                choices.iter().filter_map(|choice| check(value, choice, root, path).err()).collect();
            let passed = choices.len() - problems.len();
            if passed == 0 || (word == "oneOf" && passed > 1) {
                return Err(format!("{path} satisfies none of its choices or several: {}", problems.join("; ")));
            }
        }
    }
    match value {
        Value::Object(entries) => check_object(entries, schema, root, path),
        Value::Array(items) => check_array(items, schema, root, path),
        _ => Ok(()),
    }
}

fn check_object(entries: &Map<String, Value>, schema: &Value, root: &Value, path: &str) -> Result<(), String> {
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if required.as_str().is_some_and(|name| !entries.contains_key(name)) {
            return Err(format!("{path}.{} is required", required.as_str().unwrap_or_default()));
        }
    }
    // Patterns in containerlab's schema are ".*" and ".+": any name.
    let any_name = schema.get("patternProperties").and_then(|patterns| patterns.as_object()?.values().next());
    let others = schema.get("additionalProperties");
    for (key, entry) in entries {
        let path = format!("{path}.{key}");
        let known = schema.get("properties").and_then(|properties| properties.get(key)).or(any_name);
        match (known, others) {
            (Some(schema), _) => check(entry, schema, root, &path)?,
            (None, Some(Value::Bool(false))) => return Err(format!("{path} is not known")),
            (None, Some(schema @ Value::Object(_))) => check(entry, schema, root, &path)?,
            (None, _) => {}
        }
    }
    Ok(())
}

fn check_array(items: &[Value], schema: &Value, root: &Value, path: &str) -> Result<(), String> {
    let fewest = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    if (items.len() as u64) < fewest {
        return Err(format!("{path} has too few items"));
    }
    let unique = schema.get("uniqueItems") == Some(&Value::Bool(true));
    for (index, item) in items.iter().enumerate() {
        if unique && items[..index].contains(item) {
            return Err(format!("{path} has an item twice"));
        }
        if let Some(schema) = schema.get("items") {
            check(item, schema, root, &format!("{path}[{index}]"))?;
        }
    }
    Ok(())
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
