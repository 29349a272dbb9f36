//! What `nft` is told: the table, or changes of its sets, as its own JSON.
//!
//! The chain is asked about the first packet of a connection only, and all later ones, replies and errors about it follow what
//! was decided then. Its rules, in this order:
//!
//! 1. what a program of ours translated (mark [`mark::TRANSLATED`]) is its business;
//! 2. what somebody else gave another destination (a NodePort, a port of a container) is his business, unless it is traffic of our
//!    workloads that leaves the node: a service that leads a workload back to itself needs the address of the node;
//! 3. workload to workload keeps its source, whoever forwards it;
//! 4. our workloads and the nodes of the mesh, both ways, and our workloads to what people keep: likewise;
//! 5. what else of our workloads leaves through an uplink gets the address of the node, unless a program of ours does that
//!    behind the packet filter.
//!
//! Nothing else is decided: an underlay that is translated by this node stays so.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use meshd_abi::mark;
use meshd_core::{
    desired::{Exclusion, ExclusionSet, MasqueradeRules},
    plan::MasqueradeStep,
};
use nftables::{
    expr::{BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem},
    schema::{
        Chain, Element, FlushObject, NfCmd, NfListObject, NfObject, Nftables, Rule, Set, SetFlag, SetType,
        SetTypeValue, Table,
    },
    stmt::{Counter, Mangle, Match, NAT, NATFamily, Operator, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::TABLE;

/// The chain.
pub const CHAIN: &str = "source_nat";
/// The set of links that lead out of the node.
pub const UPLINKS: &str = "uplinks";
/// Name of the sets of own prefixes, without the family.
pub const OWN: &str = "own";
/// Before `srcnat` (100), where iptables and most others decide, and after everything that changes destinations.
const PRIORITY: i32 = 50;
/// Begins the comment of each rule.
pub const MARK: &str = "meshd";

/// The two families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one of a prefix.
    #[must_use]
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The name of a set of this family.
    #[must_use]
    pub fn set_name(self, set: &str) -> String {
        match self {
            Self::V4 => format!("{set}4"),
            Self::V6 => format!("{set}6"),
        }
    }
}

/// The document that does a step.
#[must_use]
pub fn of(step: &MasqueradeStep, rules: &MasqueradeRules) -> Nftables<'static> {
    let objects = match step {
        MasqueradeStep::Replace(exclusions) => {
            // Added first, so that there is something to delete; all of it is one transaction.
            let begin = [NfCmd::Add(table()), NfCmd::Delete(table()), NfCmd::Add(table())];
            begin.into_iter().chain(content(rules, exclusions)).collect()
        }
        MasqueradeStep::Change { add, remove } => {
            let removed = elements(remove).map(|elements| NfCmd::Delete(NfListObject::Element(elements)));
            let added = elements(add).map(|elements| NfCmd::Add(NfListObject::Element(elements)));
            removed.chain(added).collect()
        }
        MasqueradeStep::Remove => vec![NfCmd::Add(table()), NfCmd::Delete(table())],
    };
    Nftables { objects: objects.into_iter().map(NfObject::CmdObject).collect::<Vec<_>>().into() }
}

/// The document that gives a table of ours its content anew without removing it; `None` for steps that are no replacement.
///
/// A chain that is replaced by another one is not replaced at one moment for a packet that is between them: it may have passed the new
/// one before its rules counted and come to the old one after they did not any more. A chain that stays has one set of rules or the other.
#[must_use]
pub fn in_place(step: &MasqueradeStep, rules: &MasqueradeRules) -> Option<Nftables<'static>> {
    let MasqueradeStep::Replace(exclusions) = step else { return None };
    let mut objects = vec![NfCmd::Add(table())];
    for set in sets(rules, &BTreeSet::new()) {
        let empty = Set { elem: None, ..set };
        objects.push(NfCmd::Add(NfListObject::Set(Box::new(empty.clone()))));
        objects.push(NfCmd::Flush(FlushObject::Set(Box::new(empty))));
    }
    objects.push(NfCmd::Add(NfListObject::Chain(chain())));
    objects.push(NfCmd::Flush(FlushObject::Chain(chain())));
    objects.extend(content(rules, exclusions));
    Some(Nftables { objects: objects.into_iter().map(NfObject::CmdObject).collect::<Vec<_>>().into() })
}

/// True when a table, as `nft -j` lists it, has no chain and no set but ours: then its content can be replaced in place.
#[must_use]
pub fn is_ours_alone(listed: &Value) -> bool {
    let names = Family::ALL.iter().flat_map(|family| {
        [OWN].into_iter().chain(ExclusionSet::ALL.iter().map(|set| set.as_str())).map(|set| family.set_name(set))
    });
    let sets: BTreeSet<String> = names.chain([UPLINKS.to_owned()]).collect();
    let object = |object: &Value| match object.as_object().and_then(|object| object.iter().next()) {
        Some((kind, content)) => match kind.as_str() {
            "metainfo" | "rule" => true,
            "table" => content.get("flags").is_none(),
            "chain" => content["name"] == CHAIN,
            "set" => content["name"].as_str().is_some_and(|name| sets.contains(name)),
            _ => false,
        },
        None => false,
    };
    listed["nftables"].as_array().is_some_and(|objects| objects.iter().all(object))
}

/// The words by which a table of these rules is recognised, whoever wrote it when: what its rules carry as comments.
#[must_use]
pub fn comments(rules: &MasqueradeRules) -> Vec<String> {
    let statements = statements(rules);
    let written = serde_json::to_vec(&(&statements, PRIORITY, &sets(rules, &BTreeSet::new()))).unwrap_or_default();
    let digest: String = Sha256::digest(&written).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let count = statements.len();
    (1..=count).map(|i| format!("{MARK} {digest} {i}/{count}")).collect()
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None })
}

fn chain() -> Chain<'static> {
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: CHAIN.into(),
        _type: Some(NfChainType::NAT),
        hook: Some(NfHook::Postrouting),
        prio: Some(PRIORITY),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }
}

/// Everything in the table.
fn content(rules: &MasqueradeRules, exclusions: &BTreeSet<Exclusion>) -> Vec<NfCmd<'static>> {
    let mut commands: Vec<NfCmd<'static>> = Vec::new();
    commands.extend(sets(rules, exclusions).into_iter().map(|set| NfCmd::Add(NfListObject::Set(Box::new(set)))));
    commands.push(NfCmd::Add(NfListObject::Chain(chain())));
    for (expr, comment) in statements(rules).into_iter().zip(comments(rules)) {
        commands.push(NfCmd::Add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: CHAIN.into(),
            expr: expr.into(),
            comment: Some(comment.into()),
            ..Rule::default()
        })));
    }
    commands
}

fn sets(rules: &MasqueradeRules, exclusions: &BTreeSet<Exclusion>) -> Vec<Set<'static>> {
    let mut sets = Vec::new();
    for family in Family::ALL {
        let set_type = match family {
            Family::V4 => SetType::Ipv4Addr,
            Family::V6 => SetType::Ipv6Addr,
        };
        let mut add = |name: &str, prefixes: Vec<Expression<'static>>| {
            sets.push(Set {
                family: NfFamily::INet,
                table: TABLE.into(),
                name: family.set_name(name).into(),
                set_type: SetTypeValue::Single(set_type),
                flags: Some([SetFlag::Interval].into()),
                elem: filled(prefixes),
                ..Set::default()
            });
        };
        add(OWN, rules.sources.iter().filter(|prefix| Family::of(prefix) == family).map(element).collect());
        for set in ExclusionSet::ALL {
            let of = exclusions.iter().filter(|(of, prefix)| *of == set && Family::of(prefix) == family);
            add(set.as_str(), of.map(|(_, prefix)| element(prefix)).collect());
        }
    }
    let name = |name: &Arc<str>| Expression::String(name.to_string().into());
    sets.push(Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: UPLINKS.into(),
        set_type: SetTypeValue::Single(SetType::Ifname),
        elem: filled(rules.uplinks.iter().map(name).collect()),
        ..Set::default()
    });
    sets
}

/// `nft` takes no empty list of elements.
fn filled(elements: Vec<Expression<'static>>) -> Option<Cow<'static, [Expression<'static>]>> {
    (!elements.is_empty()).then(|| elements.into())
}

/// Exclusions by the set they belong to.
fn elements(exclusions: &[Exclusion]) -> impl Iterator<Item = Element<'static>> {
    let sets = ExclusionSet::ALL.into_iter().flat_map(|set| Family::ALL.map(|family| (set, family)));
    sets.filter_map(|(set, family)| {
        let of = exclusions.iter().filter(|(of, prefix)| *of == set && Family::of(prefix) == family);
        let elem: Vec<_> = of.map(|(_, prefix)| element(prefix)).collect();
        (!elem.is_empty()).then(|| Element {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: family.set_name(set.as_str()).into(),
            elem: elem.into(),
        })
    })
}

fn element(prefix: &IpNet) -> Expression<'static> {
    let addr = Box::new(Expression::String(prefix.addr().to_string().into()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: prefix.prefix_len().into() }))
}

/// The statements of each rule.
fn statements(rules: &MasqueradeRules) -> Vec<Vec<Statement<'static>>> {
    let translated = Expression::BinaryOperation(Box::new(BinaryOperation::AND(
        meta(MetaKey::Mark),
        Expression::Number(mark::TRANSLATED),
    )));
    let accept = || Statement::Accept(None);
    let mut list = vec![
        vec![matches(translated, Operator::EQ, Expression::Number(mark::TRANSLATED)), accept()],
        vec![has_other_destination(), matches(meta(MetaKey::Oifname), Operator::NEQ, set(UPLINKS)), accept()],
    ];
    for family in Family::ALL {
        let is_in = |field: &'static str, operator, name: &str| {
            matches(address(family, field), operator, set(&family.set_name(name)))
        };
        list.push(vec![has_other_destination(), is_in("saddr", Operator::NEQ, OWN), accept()]);
        let pairs = [
            (ExclusionSet::Pods.as_str(), ExclusionSet::Pods.as_str()),
            (OWN, ExclusionSet::Nodes.as_str()),
            (ExclusionSet::Nodes.as_str(), OWN),
            (OWN, ExclusionSet::Kept.as_str()),
        ];
        for (from, to) in pairs {
            let mut rule = vec![is_in("saddr", Operator::EQ, from), is_in("daddr", Operator::EQ, to)];
            rule.extend(keep_source(family));
            list.push(rule);
        }
        let leaves = matches(meta(MetaKey::Oifname), Operator::EQ, set(UPLINKS));
        let configured = match family {
            Family::V4 => rules.ipv4,
            Family::V6 => rules.ipv6,
        };
        let mut rule = vec![is_in("saddr", Operator::EQ, OWN), leaves];
        rule.extend(rules.by_programs.then(is_left_by_programs));
        rule.extend([counter(), take_source(family, configured)]);
        list.push(rule);
    }
    list
}

/// The programs know no other protocols: of these the packet filter takes care on.
fn is_left_by_programs() -> Statement<'static> {
    let known = ["tcp", "udp", "sctp", "icmp", "ipv6-icmp"].map(|protocol| Expression::String(protocol.into()));
    let known = Expression::Named(NamedExpression::Set(known.map(SetItem::Element).into()));
    matches(meta(MetaKey::L4proto), Operator::NEQ, known)
}

/// Marks the packet for those who look at the mark, and decides that the source stays.
fn keep_source(family: Family) -> [Statement<'static>; 3] {
    let marked = BinaryOperation::OR(vec![meta(MetaKey::Mark), Expression::Number(mark::KEEP_SOURCE)]);
    [
        counter(),
        Statement::Mangle(Mangle { key: meta(MetaKey::Mark), value: Expression::BinaryOperation(Box::new(marked)) }),
        source_nat(family, address(family, "saddr")),
    ]
}

fn take_source(family: Family, configured: Option<IpAddr>) -> Statement<'static> {
    match configured {
        Some(configured) => source_nat(family, Expression::String(configured.to_string().into())),
        None => Statement::Masquerade(None),
    }
}

fn source_nat(family: Family, addr: Expression<'static>) -> Statement<'static> {
    let family = match family {
        Family::V4 => NATFamily::IP,
        Family::V6 => NATFamily::IP6,
    };
    Statement::SNAT(Some(NAT { addr: Some(addr), family: Some(family), port: None, flags: None }))
}

fn counter() -> Statement<'static> {
    Statement::Counter(Counter::Anonymous(None))
}

fn has_other_destination() -> Statement<'static> {
    let status = CT { key: "status".into(), family: None, dir: None };
    matches(Expression::Named(NamedExpression::CT(status)), Operator::IN, Expression::String("dnat".into()))
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn set(name: &str) -> Expression<'static> {
    Expression::String(format!("@{name}").into())
}

fn address(family: Family, field: &'static str) -> Expression<'static> {
    let protocol = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> MasqueradeRules {
        let sources = ["10.0.1.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap()).into();
        MasqueradeRules { sources, uplinks: ["eth0".into()].into(), ..MasqueradeRules::default() }
    }

    fn exclusion(set: ExclusionSet, text: &str) -> Exclusion {
        (set, text.parse().unwrap())
    }

    fn objects(step: &MasqueradeStep) -> Vec<Value> {
        let document = serde_json::to_value(of(step, &rules())).unwrap();
        document["nftables"].as_array().unwrap().clone()
    }

    #[test]
    fn a_replacement_names_only_our_table_and_deletes_before_it_adds() {
        let step = MasqueradeStep::Replace([exclusion(ExclusionSet::Pods, "10.1.0.0/24")].into());
        let objects = objects(&step);
        let table = json!({"table": {"family": "inet", "name": "meshd"}});
        assert_eq!(objects[..3], [json!({"add": table}), json!({"delete": table}), json!({"add": table})]);
        let named = |object: &Value| {
            let content = object["add"].as_object().unwrap().values().next().unwrap();
            content.get("table").or(content.get("name")).unwrap().clone()
        };
        assert!(objects[3..].iter().all(|object| named(object) == "meshd"), "{objects:#?}");
        let set = |name: &str| {
            objects.iter().find(|object| object["add"]["set"]["name"] == name).unwrap()["add"]["set"].clone()
        };
        assert_eq!(set("pods4")["elem"], json!([{"prefix": {"addr": "10.1.0.0", "len": 24}}]));
        assert_eq!(set("own6")["elem"], json!([{"prefix": {"addr": "fd00:1::", "len": 64}}]));
        assert_eq!(set("uplinks")["elem"], json!(["eth0"]));
        assert_eq!(set("kept6").get("elem"), None, "nft takes no empty list");
    }

    #[test]
    fn a_change_removes_first_and_by_set() {
        let step = MasqueradeStep::Change {
            add: vec![exclusion(ExclusionSet::Pods, "10.1.0.0/16")],
            remove: vec![exclusion(ExclusionSet::Pods, "10.1.1.0/24"), exclusion(ExclusionSet::Nodes, "fd00::1/128")],
        };
        let element = |name: &str, addr: &str, len: u8| json!({"element": {"family": "inet", "table": "meshd", "name": name, "elem": [{"prefix": {"addr": addr, "len": len}}]}});
        let expected = [
            json!({"delete": element("pods4", "10.1.1.0", 24)}),
            json!({"delete": element("nodes6", "fd00::1", 128)}),
            json!({"add": element("pods4", "10.1.0.0", 16)}),
        ];
        assert_eq!(objects(&step), expected);
    }

    #[test]
    fn comments_tell_rules_apart_and_count_them() {
        let first = comments(&rules());
        assert_eq!(comments(&rules()), first);
        assert!(first.iter().all(|comment| comment.starts_with("meshd ")), "{first:?}");
        assert!(first.last().unwrap().ends_with(&format!(" {0}/{0}", first.len())), "{first:?}");
        for other in [
            MasqueradeRules { ipv4: Some([192, 0, 2, 1].into()), ..rules() },
            MasqueradeRules { uplinks: ["eth1".into()].into(), ..rules() },
            MasqueradeRules { sources: BTreeSet::new(), ..rules() },
            MasqueradeRules { by_programs: true, ..rules() },
        ] {
            assert_ne!(comments(&other), first, "{other:?}");
        }
    }
}
