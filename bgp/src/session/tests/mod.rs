//! What the tests of this room share: peers, and actions in a few words.

mod config;
mod negotiate;
mod pair;
mod property;
mod restart;
mod table;
mod timer;

use std::time::Duration;

use super::*;
use crate::{
    family::PerFamily,
    id::{Asn, Moment, RouterId},
    wire::open::Open,
};

pub(in crate::session) const OURS: Asn = Asn(65_001);
pub(in crate::session) const THEIRS: Asn = Asn(65_002);
pub(in crate::session) const OUR_ID: RouterId = RouterId(0x0a00_0001);
pub(in crate::session) const THEIR_ID: RouterId = RouterId(0x0a00_0002);

pub(in crate::session) fn at(seconds: u64) -> Moment {
    Moment(seconds * 1_000_000)
}

pub(in crate::session) fn config() -> SessionConfig {
    SessionConfig::new(OURS, RemoteAs::Number(THEIRS), OUR_ID)
}

/// The configuration of the peer that [`config`] is for.
pub(in crate::session) fn their_config() -> SessionConfig {
    SessionConfig::new(THEIRS, RemoteAs::Number(OURS), THEIR_ID)
}

pub(in crate::session) fn their_open() -> Open {
    let kept = LocalRestart { restarted: false, forwarding_kept: PerFamily { ipv4: true, ipv6: true } };
    our_open(&their_config(), &kept)
}

pub(in crate::session) fn session(config: SessionConfig) -> Session {
    Session::new(config, LocalRestart::default(), 1)
}

/// Hands an event over and returns what is to be done.
pub(in crate::session) fn give(session: &mut Session, now: Moment, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    session.handle(now, event, &mut actions);
    actions
}

/// A session that has gone through these events at second 1000.
pub(in crate::session) fn after(config: SessionConfig, events: impl IntoIterator<Item = Event>) -> Session {
    let mut session = session(config);
    for event in events {
        give(&mut session, at(1_000), event);
    }
    session
}

/// The events that lead to an established session on our own connection.
pub(in crate::session) fn established() -> Vec<Event> {
    let slot = Slot::First;
    vec![Event::Start, Event::Connected(slot), Event::Open(slot, their_open()), Event::Keepalive(slot)]
}

pub(in crate::session) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Actions in a few words. Changes of state are left out: they are shown by the state itself.
pub(in crate::session) fn words(actions: &[Action]) -> String {
    let words: Vec<String> =
        actions.iter().filter(|it| !matches!(it, Action::Fact(Fact::State { .. }))).map(word).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn place(slot: Slot) -> char {
    match slot {
        Slot::First => '1',
        Slot::Second => '2',
    }
}

fn word(action: &Action) -> String {
    match action {
        Action::Connect(slot) => format!("connect {}", place(*slot)),
        Action::Accept(slot) => format!("accept {}", place(*slot)),
        Action::Refuse => "refuse".to_owned(),
        Action::Send(slot, outgoing) => {
            let what = match outgoing {
                Outgoing::Open(_) => "OPEN".to_owned(),
                Outgoing::Keepalive => "KEEPALIVE".to_owned(),
                Outgoing::Notification(it) => match it.hard_reset_cause() {
                    Some(inner) => format!("NOTIFICATION hard {}/{}", inner.code as u8, inner.subcode),
                    None => format!("NOTIFICATION {}/{}", it.code as u8, it.subcode),
                },
                Outgoing::Refresh(_) => "ROUTE-REFRESH".to_owned(),
            };
            format!("send {} {what}", place(*slot))
        }
        Action::Close(slot) => format!("close {}", place(*slot)),
        Action::WatchPath(slot) => format!("watch {}", place(*slot)),
        Action::Up(slot, _) => format!("UP {}", place(*slot)),
        Action::Down(Down { retain, .. }) => match retain {
            Retain::Drop => "DOWN drop".to_owned(),
            Retain::Stale(families) => format!("DOWN keep{}", shown(families)),
        },
        Action::Resend(family) => format!("resend {}", short(*family)),
        Action::RefreshBegan(family) => format!("mark {}", short(*family)),
        Action::RefreshEnded(family) => format!("sweep marked {}", short(*family)),
        Action::Sweep(family) => format!("sweep {}", short(*family)),
        Action::LongLived(family) => format!("long-lived {}", short(*family)),
        Action::Fact(fact) => match fact {
            Fact::State { from, to } => format!("({from} -> {to})"),
            Fact::Failed(_) => "(failed)".to_owned(),
            Fact::Waiting(_) => "(wait)".to_owned(),
            Fact::Collision { ours_stays: true } => "(collision: ours)".to_owned(),
            Fact::Collision { ours_stays: false } => "(collision: theirs)".to_owned(),
            Fact::Refused(_) => "(refused)".to_owned(),
            Fact::Ignored(..) => "(ignored)".to_owned(),
            Fact::RefreshUnsupported(_) => "(unsupported)".to_owned(),
            Fact::RestartTimeOver => "(restart time over)".to_owned(),
        },
    }
}

fn short(family: crate::Family) -> &'static str {
    match family {
        crate::Family::Ipv4Unicast => "4",
        crate::Family::Ipv6Unicast => "6",
    }
}

fn shown(families: &PerFamily<bool>) -> String {
    families.iter().filter(|(_, kept)| **kept).map(|(family, _)| format!(" {}", short(family))).collect()
}
