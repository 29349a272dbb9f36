//! What other speakers really send.
//!
//! Each file in `golden/` has the messages of one daemon as they were captured between it and another one: type and body in
//! hexadecimal, and behind each message, indented, what it means. Those lines were held against the daemon's configuration
//! and against what the receiving daemon showed. `GOLDEN=write` writes them anew.

use std::{fs, path::Path};

use super::{
    attributes::Attributes,
    nlri::Nlri,
    notification::Notification,
    open::Open,
    route_refresh::RouteRefresh,
    update::{self, Context, FamilyContext},
    value,
};
use crate::{
    family::{Family, PerFamily, Prefix, V4, V6},
    session::PeerKind,
};

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).expect("hexadecimal") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn context(line: &str) -> Context {
    let family = FamilyContext { enabled: true, ..FamilyContext::default() };
    let ipv4 = FamilyContext {
        add_path: line.contains(" add-path"),
        extended_next_hop: line.contains(" extended-next-hop"),
        ..family
    };
    let kind = if line.contains(" internal") { PeerKind::Internal } else { PeerKind::External };
    Context {
        kind,
        asn4: !line.contains(" two-octets"),
        refuse_as_sets: false,
        families: PerFamily { ipv4, ipv6: family },
    }
}

fn prefixes(nlri: Nlri<'_>) -> Vec<String> {
    fn of<P: Prefix>(nlri: Nlri<'_>) -> Vec<String> {
        let with_ids = nlri.has_path_ids();
        let shown = |(id, prefix): (crate::PathId, P)| {
            if with_ids { format!("{prefix} (path {})", id.0) } else { prefix.to_string() }
        };
        nlri.iter::<P>().map(shown).collect()
    }
    match nlri.family() {
        Family::Ipv4Unicast => of::<V4>(nlri),
        Family::Ipv6Unicast => of::<V6>(nlri),
    }
}

fn meaning_of_update(body: &[u8], context: &Context) -> Vec<String> {
    let mut scratch = Vec::new();
    let update = match update::decode(body, context, &mut scratch) {
        Ok(update) => update,
        Err(error) => return vec![format!("reset: {error}")],
    };
    let mut lines = Vec::new();
    lines.extend(update.end_of_rib.map(|family| format!("end of rib: {family}")));
    lines.extend(update.problems.as_slice().iter().map(ToString::to_string));
    lines.extend(update.withdrawals().flat_map(prefixes).map(|prefix| format!("withdraws {prefix}")));
    for announced in update.announcements() {
        lines.extend(
            prefixes(announced.nlri).iter().map(|prefix| format!("announces {prefix} via {}", announced.next_hop)),
        );
    }
    let described = value::describe(Attributes(update.attributes));
    lines.extend(described.iter().map(|one| format!("{}: {}", one.name, one.text).trim_end().to_owned()));
    lines
}

fn meaning(kind: &str, body: &[u8], context: &Context) -> Vec<String> {
    match kind {
        "open" => {
            let open = Open::decode(body).expect("an OPEN");
            let head = format!("AS {}, hold time {} s, identifier {}", open.asn, open.hold_time_s, open.router_id);
            [head].into_iter().chain(open.capabilities.iter().map(|capability| format!("{capability:?}"))).collect()
        }
        "update" => meaning_of_update(body, context),
        "notification" => vec![Notification::decode(body).expect("a NOTIFICATION").to_string()],
        "route-refresh" => {
            let refresh = RouteRefresh::decode(body, true).expect("a ROUTE-REFRESH").expect("a known subtype");
            vec![format!("{:?} {}", refresh.kind, refresh.family().expect("a known family"))]
        }
        other => panic!("{other} is no kind of message"),
    }
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/golden").join(name);
    let file = fs::read_to_string(&path).expect("the file is committed");
    let context = context(file.lines().find(|line| line.starts_with("context ")).expect("a context"));
    let mut expected = String::new();
    for line in file.lines().filter(|line| !line.starts_with("  ")) {
        expected += &format!("{line}\n");
        if let Some((kind, hex)) = line.split_once(' ').filter(|(kind, _)| !matches!(*kind, "#" | "context")) {
            for line in meaning(kind, &octets(hex), &context) {
                expected += &format!("  {line}\n");
            }
        }
    }
    if std::env::var_os("GOLDEN").is_some() {
        fs::write(&path, &expected).expect("a file to write to");
    }
    assert_eq!(file, expected, "{name}");
}

#[test]
fn messages_of_bird() {
    check("bird-2.0.12.txt");
}

#[test]
fn messages_of_frr() {
    check("frr-8.4.4.txt");
    check("frr-8.4.4-two-octets.txt");
}

#[test]
fn messages_of_gobgp() {
    check("gobgp-3.10.txt");
}

#[test]
fn messages_of_exabgp() {
    check("exabgp-4.2.21.txt");
}
