//! Paths, messages and resets as JSON shapes.

use bgp::{
    NextHop,
    rib::Standing,
    session::{Direction, Entry, MessageRecord, Record},
    wire::{
        attributes::{Attributes, Origin, code},
        header::MessageType,
        notification::Notification,
        open::Open,
        value,
    },
};
use jiff::Timestamp;

use super::{
    bgp_answers::{hex, name, state},
    bgp_paths_view::{
        BgpAdvertisedView, BgpAttributeView, BgpAttributesView, BgpExportsView, BgpMessageView, BgpPathView,
        BgpResetView, BgpWithheldView,
    },
};
use crate::speaker::pages::{AdvertisedReport, ExportsReport, PathReport, ResetReport};

/// Attributes that have a field of their own, and the next hop, which is beside the others.
const WITH_FIELD: [u8; 8] = [
    code::ORIGIN,
    code::AS_PATH,
    code::NEXT_HOP,
    code::MED,
    code::LOCAL_PREF,
    code::COMMUNITIES,
    code::EXTENDED_COMMUNITIES,
    code::LARGE_COMMUNITIES,
];

/// A path after policy, as far as it passed.
#[must_use]
pub fn path(report: PathReport) -> BgpPathView {
    let view = &report.view;
    let shown = match &view.accepted {
        Some(accepted) => attributes(accepted, view.next_hop),
        None => attributes(&view.received, view.received_next_hop),
    };
    with(report, shown)
}

/// A path as it was sent.
#[must_use]
pub fn received(report: PathReport) -> BgpPathView {
    let shown = attributes(&report.view.received, report.view.received_next_hop);
    with(report, shown)
}

fn with(report: PathReport, attributes: BgpAttributesView) -> BgpPathView {
    let PathReport { peer, since, view, exports } = report;
    let (status, reason) = standing(view.standing, view.rule.as_deref());
    let step = match view.standing {
        Standing::Lost(step) => serde_json::to_value(step).ok().and_then(|step| step.as_str().map(str::to_owned)),
        _ => None,
    };
    BgpPathView {
        prefix: view.prefix,
        peer,
        path_id: view.path_id.0,
        since,
        best: view.standing == Standing::Best,
        accepted: view.accepted.is_some(),
        stale: view.stale,
        long_lived_stale: view.long_lived_stale,
        status: status.to_owned(),
        reason,
        step,
        rule: view.rule,
        exports: exports.map(exports_view),
        attributes,
    }
}

fn exports_view(report: ExportsReport) -> BgpExportsView {
    let withheld = |(peer, why, rule): (String, bgp::rib::NotAdvertised, Option<String>)| {
        let reason = match &rule {
            Some(rule) => format!("{why}, rule {rule}"),
            None => why.to_string(),
        };
        BgpWithheldView { peer, reason, rule }
    };
    BgpExportsView {
        advertised_to: report.told,
        not_advertised_to: report.withheld.into_iter().map(withheld).collect(),
    }
}

/// One word and all words for what became of a path.
fn standing(standing: Standing, rule: Option<&str>) -> (&'static str, String) {
    match standing {
        Standing::Best => ("best", "best".to_owned()),
        Standing::Multipath => ("multipath", "used beside the best".to_owned()),
        Standing::Lost(step) => ("lost", format!("lost by {step}")),
        Standing::UnresolvedNextHop => ("unresolved", "no way to the next hop".to_owned()),
        Standing::Waiting => ("waiting", "not selected yet".to_owned()),
        Standing::Rejected(rejection) => match rule {
            Some(rule) => ("rejected", format!("rejected: {rejection}, rule {rule}")),
            None => ("rejected", format!("rejected: {rejection}")),
        },
    }
}

/// A path that a peer is told.
#[must_use]
pub fn advertised(report: AdvertisedReport) -> BgpAdvertisedView {
    let AdvertisedReport { peer, source, view } = report;
    BgpAdvertisedView {
        prefix: view.prefix,
        peer,
        source,
        path_id: view.path_id.0,
        attributes: attributes(&view.attributes, Some(view.next_hop)),
    }
}

fn attributes(octets: &[u8], next_hop: Option<NextHop>) -> BgpAttributesView {
    let of = Attributes(octets);
    let other = value::describe(of).into_iter().filter(|one| !WITH_FIELD.contains(&one.code));
    let other = other.map(|one| BgpAttributeView {
        code: one.code,
        name: one.name.into_owned(),
        text: one.text,
        value: one.json,
    });
    BgpAttributesView {
        next_hop: next_hop.map(NextHop::address),
        next_hop_link_local: next_hop.and_then(|next_hop| match next_hop {
            NextHop::V6Pair { link_local, .. } => Some(link_local.into()),
            NextHop::V4(_) | NextHop::V6(_) => None,
        }),
        origin: match of.origin() {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        }
        .to_owned(),
        as_path: of.as_path().to_string(),
        med: of.med(),
        local_pref: of.local_pref(),
        communities: of.communities().map(value::community).collect(),
        extended_communities: of.extended_communities().map(value::extended_community).collect(),
        large_communities: of.large_communities().map(value::large_community).collect(),
        attributes: other.collect(),
    }
}

/// A message or a change of state.
#[must_use]
pub fn message(at: Timestamp, entry: &Entry) -> BgpMessageView {
    match &entry.record {
        Record::Change { from, to } => BgpMessageView {
            at,
            direction: None,
            kind: "state".to_owned(),
            length: None,
            text: format!("{} to {}", state(*from), state(*to)),
            octets: None,
        },
        Record::Message(record) => BgpMessageView {
            at,
            direction: Some(
                match record.direction {
                    Direction::Received => "received",
                    Direction::Sent => "sent",
                }
                .to_owned(),
            ),
            kind: match record.message_type {
                MessageType::Open => "open",
                MessageType::Update => "update",
                MessageType::Notification => "notification",
                MessageType::Keepalive => "keepalive",
                MessageType::RouteRefresh => "route_refresh",
            }
            .to_owned(),
            length: Some(record.length.into()),
            text: said(record),
            octets: Some(hex(record.octets())),
        },
    }
}

/// What the kept octets of a message say.
fn said(record: &MessageRecord) -> String {
    let octets = record.octets();
    let number = |at: usize| octets.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_be_bytes);
    match record.message_type {
        MessageType::Open => match (Open::decode(octets), number(1), number(3)) {
            (Ok(open), ..) => {
                format!("AS {}, hold time {} s, router ID {}", open.asn, open.hold_time_s, open.router_id)
            }
            // Longer than what is kept: the beginning is enough to be read.
            (Err(_), Some(asn), Some(hold)) => format!("AS {asn} (two octets), hold time {hold} s"),
            (Err(_), ..) => String::new(),
        },
        MessageType::Notification => {
            Notification::decode(octets).map(|notification| notification.to_string()).unwrap_or_default()
        }
        MessageType::Update => {
            let Some(withdrawn) = number(0) else { return String::new() };
            match number(2 + usize::from(withdrawn)) {
                Some(0) if withdrawn == 0 && record.length == 23 => "End-of-RIB ipv4".to_owned(),
                Some(attributes) => format!("{withdrawn} octets of withdrawals, {attributes} of attributes"),
                None => format!("{withdrawn} octets of withdrawals"),
            }
        }
        MessageType::RouteRefresh => {
            let family = number(0).zip(octets.get(3)).and_then(|(afi, safi)| bgp::Family::from_numbers(afi, *safi));
            let kind = match octets.get(2) {
                Some(0) => "request",
                Some(1) => "begin",
                Some(2) => "end",
                _ => "unknown",
            };
            format!("{kind} {}", family.map_or("of an unknown family", name))
        }
        MessageType::Keepalive => String::new(),
    }
}

/// What a reset did.
#[must_use]
pub fn reset(report: ResetReport, soft: bool) -> BgpResetView {
    let names = |families: Vec<bgp::Family>| families.into_iter().map(|family| name(family).to_owned()).collect();
    BgpResetView {
        peer: report.peer,
        soft,
        was_established: report.was_established,
        requested: names(report.requested),
        resent: names(report.resent),
    }
}

#[cfg(test)]
mod tests {
    use bgp::{
        PathId, PeerId,
        id::Moment,
        rib::{PathView, Rejection, Step},
        session::{History, State},
        wire::attributes::Builder,
    };

    use super::*;

    fn report(standing: Standing, accepted: bool, rule: Option<&str>) -> PathReport {
        let sent = Builder::new().origin(Origin::Igp).number(code::MED, 5).communities([0xffff_ff01]).build();
        let edited = Builder::new().origin(Origin::Igp).number(code::LOCAL_PREF, 200).build();
        let next_hop = Some(NextHop::V4([192, 0, 2, 2].into()));
        let view = PathView {
            prefix: "198.51.100.0/24".parse().expect("a prefix"),
            peer: PeerId(0),
            path_id: PathId(0),
            received: sent,
            received_next_hop: next_hop,
            accepted: accepted.then_some(edited),
            next_hop: next_hop.filter(|_| accepted),
            since: Moment(0),
            stale: false,
            long_lived_stale: false,
            standing,
            rule: rule.map(str::to_owned),
        };
        PathReport { peer: Some("192.0.2.2".to_owned()), since: Timestamp::UNIX_EPOCH, view, exports: None }
    }

    #[test]
    fn what_became_of_a_path_is_told_in_words() {
        let best = path(report(Standing::Best, true, None));
        assert_eq!((best.status.as_str(), best.best, best.accepted), ("best", true, true));
        assert_eq!((best.attributes.local_pref, best.attributes.med), (Some(200), None));
        let lost = path(report(Standing::Lost(Step::AsPathLength), true, None));
        assert_eq!((lost.status.as_str(), lost.reason.as_str()), ("lost", "lost by AS path length"));
        assert_eq!(lost.step.as_deref(), Some("as_path_length"));
        let looped = path(report(Standing::Rejected(Rejection::AsLoop), false, None));
        assert_eq!((looped.status.as_str(), looped.reason.as_str()), ("rejected", "rejected: own AS in path"));
        let ruled = Standing::Rejected(Rejection::Policy(bgp::policy::RuleId(3)));
        let refused = path(report(ruled, false, Some("no-bogons")));
        assert_eq!(refused.reason, "rejected: import policy, rule no-bogons");
        assert_eq!(refused.rule.as_deref(), Some("no-bogons"));
        assert_eq!(refused.attributes.communities, ["no-export"]);
    }

    #[test]
    fn received_is_what_was_sent() {
        let view = received(report(Standing::Best, true, None));
        assert_eq!((view.attributes.local_pref, view.attributes.med), (None, Some(5)));
        assert_eq!(view.attributes.next_hop, "192.0.2.2".parse().ok());
    }

    #[test]
    fn messages_are_read() {
        let mut history = History::default();
        let words = Notification::cease_with_communication(bgp::wire::notification::cease::ADMINISTRATIVE_RESET, "bye");
        let mut body = vec![6, words.subcode];
        body.extend_from_slice(&words.data);
        history.message(Moment(1), Direction::Received, MessageType::Notification, &body);
        history.message(Moment(2), Direction::Sent, MessageType::Update, &[0, 0, 0, 0]);
        history.message(Moment(3), Direction::Sent, MessageType::RouteRefresh, &[0, 2, 0, 1]);
        history.message(Moment(4), Direction::Sent, MessageType::Update, &[0]);
        let views: Vec<BgpMessageView> =
            history.entries().iter().map(|entry| message(Timestamp::UNIX_EPOCH, entry)).collect();
        let find = |text: &str| views.iter().any(|view| view.text == text);
        assert!(find("Cease: Administrative Reset: \"bye\""), "{views:?}");
        assert!(find("End-of-RIB ipv4") && find("request ipv6"), "{views:?}");
        let change = Entry { at: Moment(0), record: Record::Change { from: State::Idle, to: State::OpenSent } };
        let view = message(Timestamp::UNIX_EPOCH, &change);
        assert_eq!((view.kind.as_str(), view.text.as_str(), view.direction), ("state", "idle to open_sent", None));
    }
}
