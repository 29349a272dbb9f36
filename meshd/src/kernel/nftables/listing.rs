//! What `nft -j list table` prints, taken apart; pure.
//!
//! Rules are not understood, only compared: their text without handles and figures is the *shape* of the table. Different
//! versions of `nft` print the same rules in different ways, so a shape is compared with one that was read before, and the
//! comments of the rules say which those were.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use meshd_core::desired::{Exclusion, ExclusionSet};
use serde_json::Value;

use super::document::{Family, MARK};

/// What the kernel holds in our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The exclusions.
    pub exclusions: BTreeSet<Exclusion>,
    /// Everything else, as text to be compared.
    pub shape: String,
    /// The comments of the rules in their order; those that are not ours are empty.
    pub comments: Vec<String>,
    /// Connections that were masqueraded since the table is in place.
    pub masqueraded: u64,
    /// Connections that were seen and kept their source.
    pub kept: u64,
}

/// Reads the output of `nft`.
///
/// # Errors
/// What is wrong with it, as one line.
pub fn read(printed: &[u8]) -> Result<Listing, String> {
    let printed: Value = serde_json::from_slice(printed).map_err(|error| error.to_string())?;
    let objects = printed["nftables"].as_array().ok_or("there is no list \"nftables\"")?;
    let mut listing = Listing::default();
    let (mut others, mut rules) = (Vec::new(), Vec::new());
    for object in objects {
        let Some((kind, content)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        let mut content = content.clone();
        match kind.as_str() {
            "metainfo" => continue,
            "set" => read_set(&mut content, &mut listing.exclusions)?,
            "rule" => {
                let comment = content["comment"].as_str().filter(|comment| comment.starts_with(MARK));
                listing.comments.push(comment.unwrap_or_default().to_owned());
                count(&content, &mut listing);
            }
            _ => {}
        }
        strip(&mut content);
        let text = format!("{kind} {content}");
        if kind == "rule" { rules.push(text) } else { others.push(text) }
    }
    others.sort();
    others.append(&mut rules);
    listing.shape = others.join("\n");
    Ok(listing)
}

/// Takes the exclusions out of a set of exclusions, and puts the elements of any other set in order.
fn read_set(set: &mut Value, exclusions: &mut BTreeSet<Exclusion>) -> Result<(), String> {
    let name = set["name"].as_str().unwrap_or_default();
    let named = ExclusionSet::ALL.into_iter().find(|of| Family::ALL.iter().any(|f| f.set_name(of.as_str()) == name));
    let Some(elements) = set.get_mut("elem").and_then(Value::as_array_mut) else { return Ok(()) };
    let Some(named) = named else {
        elements.sort_by_key(ToString::to_string);
        return Ok(());
    };
    for element in std::mem::take(elements) {
        let prefix = prefix(&element).ok_or_else(|| format!("the element {element} is no prefix"))?;
        exclusions.insert((named, prefix));
    }
    // An empty set has no such key.
    if let Some(set) = set.as_object_mut() {
        set.remove("elem");
    }
    Ok(())
}

fn prefix(element: &Value) -> Option<IpNet> {
    match element {
        Value::String(address) => address.parse::<IpAddr>().ok().map(IpNet::from),
        Value::Object(object) => {
            let prefix = object.get("prefix")?;
            let address: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
            IpNet::new(address, prefix["len"].as_u64()?.try_into().ok()?).ok()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// Adds up the packets of a rule: the chain sees the first one of each connection.
fn count(rule: &Value, listing: &mut Listing) {
    let Some(statements) = rule["expr"].as_array() else { return };
    let packets = statements.iter().filter_map(|statement| statement["counter"]["packets"].as_u64()).sum::<u64>();
    let keeps = statements.iter().any(|statement| statement.get("mangle").is_some());
    if keeps {
        listing.kept += packets;
    } else {
        listing.masqueraded += packets;
    }
}

/// Removes what differs between two listings of one table.
fn strip(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for changing in ["handle", "packets", "bytes"] {
                object.remove(changing);
            }
            object.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "meshd", "handle": 2}},
        {"set": {"family": "inet", "name": "own4", "table": "meshd", "type": "ipv4_addr", "handle": 2, "flags": ["interval"],
                 "elem": [{"prefix": {"addr": "10.0.1.0", "len": 24}}]}},
        {"set": {"family": "inet", "name": "nodes4", "table": "meshd", "handle": 4, "elem": ["172.18.0.2"]}},
        {"set": {"family": "inet", "name": "kept6", "table": "meshd", "handle": 5,
                 "elem": ["fd00::1", {"prefix": {"addr": "fe80::", "len": 10}}]}},
        {"set": {"family": "inet", "name": "pods4", "table": "meshd", "handle": 6}},
        {"set": {"family": "inet", "name": "uplinks", "table": "meshd", "type": "ifname", "handle": 7, "elem": ["eth1", "eth0"]}},
        {"chain": {"family": "inet", "table": "meshd", "name": "source_nat", "handle": 1, "type": "nat", "prio": 50}},
        {"rule": {"handle": 8, "comment": "meshd 00 1/2", "expr": [
            {"counter": {"packets": 3, "bytes": 180}}, {"mangle": {}}, {"snat": {"family": "ip"}}]}},
        {"rule": {"handle": 9, "comment": "mine", "expr": [{"counter": {"packets": 4, "bytes": 180}}, {"masquerade": null}]}}
    ]}"#;

    #[test]
    fn a_listing_is_exclusions_comments_figures_and_a_shape() {
        let listing = read(PRINTED.as_bytes()).unwrap();
        let exclusions: Vec<String> =
            listing.exclusions.iter().map(|(set, prefix)| format!("{} {prefix}", set.as_str())).collect();
        assert_eq!(exclusions, ["kept fd00::1/128", "kept fe80::/10", "nodes 172.18.0.2/32"]);
        assert_eq!(listing.comments, ["meshd 00 1/2", ""]);
        assert_eq!((listing.masqueraded, listing.kept), (4, 3));
    }

    #[test]
    fn the_shape_is_without_handles_figures_exclusions_and_the_order_of_sets() {
        let shape = |text: &str| read(text.as_bytes()).unwrap().shape;
        let first = shape(PRINTED);
        let same = PRINTED
            .replace("\"handle\": 8", "\"handle\": 80")
            .replace("\"packets\": 3", "\"packets\": 30")
            .replace("\"fd00::1\", ", "")
            .replace(r#", "elem": ["172.18.0.2"]"#, "")
            .replace(r#"["eth1", "eth0"]"#, r#"["eth0", "eth1"]"#);
        assert_ne!(same, PRINTED);
        assert_eq!(shape(&same), first);
        for (from, to) in
            [("\"prio\": 50", "\"prio\": 51"), ("eth1", "eth2"), ("10.0.1.0", "10.0.2.0"), ("\"mine\"", "\"x\"")]
        {
            assert_ne!(shape(&PRINTED.replace(from, to)), first, "{to}");
        }
        let dormant = PRINTED.replace(r#""name": "meshd", "handle": 2"#, r#""name": "meshd", "flags": ["dormant"]"#);
        assert_ne!(shape(&dormant), first);
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        for text in
            ["", "{}", r#"{"nftables": [{"set": {"name": "pods4", "elem": [{"range": ["10.0.0.1", "10.0.0.3"]}]}}]}"#]
        {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
