//! Attributes as people and JSON want to see them.
//!
//! The values are taken apart by zettabgp. Its decoders trust lengths, and some of them do not end on input that is cut off,
//! so they only see what has been checked: the attributes that the decoder of UPDATE let through, once more held against the
//! length that each has ([`shape_is_known`]). What must not be asked of it at all is done here: AS_PATH (it refuses
//! confederations and prints 65536 as 1), whole lists of communities (it sorts them), and anything that is written.
//!
//! Text follows what operators know from FRR and BIRD: `65001:100`, `no-export`, `RT:65001:7`, `65001:1:2`.

use std::{borrow::Cow, fmt::Write, net::Ipv4Addr};

use serde_json::{Value, json};
use zettabgp::{
    BgpSessionParams, BgpTransportMode,
    message::attributes::{
        BgpAttrItem,
        community::{BgpCommunity, BgpLargeCommunity},
        extcommunity::BgpExtCommunity,
    },
};

use super::{
    as_path::{AsPath, SegmentKind},
    attributes::{Attribute, Attributes, LargeCommunity, code},
};

/// One attribute for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Its code.
    pub code: u8,
    /// Its name: `as-path`, `communities`; `attribute-99` for one this speaker does not know.
    pub name: Cow<'static, str>,
    /// Its value on one line.
    pub text: String,
    /// Its value with its structure.
    pub json: Value,
}

/// Communities that have a name, and the name routers print.
pub const WELL_KNOWN_COMMUNITIES: [(u32, &str); 10] = [
    (0xffff_0000, "graceful-shutdown"),
    (0xffff_0001, "accept-own"),
    (0xffff_0006, "llgr-stale"),
    (0xffff_0007, "no-llgr"),
    (0xffff_0008, "accept-own-nexthop"),
    (0xffff_029a, "blackhole"),
    (0xffff_ff01, "no-export"),
    (0xffff_ff02, "no-advertise"),
    (0xffff_ff03, "no-export-subconfed"),
    (0xffff_ff04, "no-peer"),
];

/// All attributes, by ascending code.
#[must_use]
pub fn describe(attributes: Attributes<'_>) -> Vec<Described> {
    attributes.iter().map(describe_one).collect()
}

/// A community: its name, or `65001:100`.
#[must_use]
pub fn community(value: u32) -> String {
    let known = WELL_KNOWN_COMMUNITIES.iter().find(|(known, _)| *known == value);
    match (known, BgpCommunity::decode_from(&value.to_be_bytes())) {
        (Some((_, name)), _) => (*name).to_owned(),
        (None, Ok(community)) => community.to_string(),
        (None, Err(_)) => hex(&value.to_be_bytes()),
    }
}

/// A large community: `65001:1:2`.
#[must_use]
pub fn large_community(value: LargeCommunity) -> String {
    let LargeCommunity { global, local_1, local_2 } = value;
    BgpLargeCommunity { ga: global, ldp1: local_1, ldp2: local_2 }.to_string()
}

/// An extended community: `RT:65001:7`, `SoO:192.0.2.1:7`, `link-bandwidth:65001:1.25e8` (octets per second), else its type
/// and value.
#[must_use]
pub fn extended_community(octets: [u8; 8]) -> String {
    let [kind, subtype, a, b, c, d, e, f] = octets;
    let name = match (kind, subtype) {
        (0..=2, 2) => "RT",
        (0..=2, 3) => "SoO",
        (0 | 0x40, 4) => {
            let rate = f32::from_be_bytes([c, d, e, f]);
            return format!("link-bandwidth:{}:{rate:e}", u16::from_be_bytes([a, b]));
        }
        _ => {
            return match BgpExtCommunity::decode_from(&octets) {
                Ok(community) => community.to_string(),
                Err(_) => hex(&octets),
            };
        }
    };
    match kind {
        0 => format!("{name}:{}:{}", u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])),
        1 => format!("{name}:{}:{}", Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, f])),
        _ => format!("{name}:{}:{}", u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f])),
    }
}

/// An AS_PATH with its segments.
#[must_use]
pub fn as_path(path: AsPath<'_>) -> Value {
    let segment = |kind, numbers: Vec<u32>| {
        let kind = match kind {
            SegmentKind::Set => "set",
            SegmentKind::Sequence => "sequence",
            SegmentKind::ConfedSequence => "confederation-sequence",
            SegmentKind::ConfedSet => "confederation-set",
        };
        json!({ "kind": kind, "numbers": numbers })
    };
    path.segments().map(|s| segment(s.kind, s.numbers().map(|asn| asn.0).collect())).collect()
}

fn describe_one(attribute: Attribute<'_>) -> Described {
    let one = Attributes(attribute.octets);
    let described = |name: &'static str, text: String, json: Value| Described {
        code: attribute.code,
        name: Cow::Borrowed(name),
        text,
        json,
    };
    let list = |name, texts: Vec<String>| described(name, texts.join(" "), json!(texts));
    match attribute.code {
        code::AS_PATH => described("as-path", one.as_path().to_string(), as_path(one.as_path())),
        code::COMMUNITIES => list("communities", one.communities().map(community).collect()),
        code::EXTENDED_COMMUNITIES => {
            list("extended-communities", one.extended_communities().map(extended_community).collect())
        }
        code::LARGE_COMMUNITIES => list("large-communities", one.large_communities().map(large_community).collect()),
        _ => match view(attribute) {
            Some(BgpAttrItem::Origin(origin)) => {
                let text = origin.value.to_string().to_ascii_lowercase();
                described("origin", text.clone(), json!(text))
            }
            Some(BgpAttrItem::MED(med)) => described("med", med.value.to_string(), json!(med.value)),
            Some(BgpAttrItem::LocalPref(pref)) => described("local-pref", pref.value.to_string(), json!(pref.value)),
            Some(BgpAttrItem::AtomicAggregate(_)) => described("atomic-aggregate", String::new(), json!(true)),
            Some(BgpAttrItem::AggregatorAS(by)) => described(
                "aggregator",
                format!("{} {}", by.asn, by.addr),
                json!({ "asn": by.asn, "router-id": by.addr.to_string() }),
            ),
            Some(BgpAttrItem::OriginatorID(id)) => {
                described("originator-id", id.value.to_string(), json!(id.value.to_string()))
            }
            Some(BgpAttrItem::ClusterList(clusters)) => {
                list("cluster-list", clusters.value.iter().map(ToString::to_string).collect())
            }
            Some(BgpAttrItem::OTC(otc)) => described("only-to-customer", otc.value.to_string(), json!(otc.value)),
            Some(_) | None => unknown(attribute),
        },
    }
}

fn unknown(attribute: Attribute<'_>) -> Described {
    let value = hex(attribute.value);
    Described {
        code: attribute.code,
        name: Cow::Owned(format!("attribute-{}", attribute.code)),
        text: value.clone(),
        json: json!({ "flags": attribute.flags, "value": value }),
    }
}

/// The value as zettabgp sees it, for the codes whose decoders are known to be sound for a value of this length.
fn view(attribute: Attribute<'_>) -> Option<BgpAttrItem> {
    let Attribute { code, flags, value, .. } = attribute;
    if !shape_is_known(code, value) {
        return None;
    }
    BgpAttrItem::decode_from(&session(), code, flags, value.len(), value).ok()
}

/// True for the codes and lengths that zettabgp may see.
const fn shape_is_known(code: u8, value: &[u8]) -> bool {
    match code {
        code::ORIGIN => value.len() == 1,
        code::MED | code::LOCAL_PREF | code::ORIGINATOR_ID | code::OTC => value.len() == 4,
        code::ATOMIC_AGGREGATE => value.is_empty(),
        code::AGGREGATOR => value.len() == 8,
        code::CLUSTER_LIST => value.len().is_multiple_of(4),
        _ => false,
    }
}

/// What zettabgp wants to know of a session. Its IPv6 mode reads fields that are IPv4 in every session.
fn session() -> BgpSessionParams {
    let mut session = BgpSessionParams::new(0, 0, BgpTransportMode::IPv4, Ipv4Addr::UNSPECIFIED, Vec::new());
    session.fuzzy_pathid = false;
    session
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut text, octet| {
        // Writing to a string does not fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

#[cfg(test)]
#[path = "value_tests.rs"]
mod tests;
