//! Whether the programs give the node's address to what leaves the mesh.

use std::time::Instant;

use meshd_abi::settings_flags;
use meshd_core::{
    derive::LocalNode,
    desired::{self, MasqueradeWish},
    id::TUNNEL_LINK,
    plan::datapath::{ExclusionPlanner, prefix4, prefix6},
};
use meshd_datapath::{DatapathError, Maps, Program};
use tokio::sync::watch;
use tracing::info;

use super::{SWEEP_PERIOD, links::Links};

/// What the programs are told about masquerade.
#[derive(Debug)]
pub(super) struct Masquerade {
    /// The tries.
    pub(super) exclusions: ExclusionPlanner,
    /// The packet filter hears whether it is relieved.
    is_on: watch::Sender<bool>,
    /// Since when it is not, as long as the programs still go on.
    ending: Option<Instant>,
    /// The programs are told to look.
    told: bool,
}

impl Masquerade {
    /// Takes over what an earlier process left.
    pub(super) fn new(maps: &Maps, was_on: bool) -> Result<Self, DatapathError> {
        let four = maps.v4.mesh.all()?.into_iter().filter_map(|(key, flags)| Some((prefix4(&key)?, flags)));
        let six = maps.v6.mesh.all()?.into_iter().filter_map(|(key, flags)| Some((prefix6(&key)?, flags)));
        let exclusions = ExclusionPlanner::new(four.chain(six));
        Ok(Self { exclusions, is_on: watch::Sender::new(was_on), ending: None, told: was_on })
    }

    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_on.subscribe()
    }

    /// What the programs are told.
    pub(super) fn flags(&self) -> u32 {
        if self.told { settings_flags::MASQUERADE } else { 0 }
    }

    /// Decides; true when the programs must be told now.
    pub(super) fn decide(&mut self, can: bool) -> bool {
        if *self.is_on.borrow() == can {
            return false;
        }
        info!(by = if can { "programs" } else { "nftables" }, "what leaves the mesh gets the node's address");
        if can {
            self.ending = None;
            self.told = true;
            self.is_on.send_replace(true);
            return true;
        }
        // What the packet filter has translated is nothing to the programs, so both may do it for a moment; neither must not be.
        self.ending = Some(Instant::now());
        self.is_on.send_replace(false);
        false
    }

    /// True once, when the packet filter has had the time to take over and the programs must be told.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = self.ending.is_some_and(|since| since.elapsed() >= SWEEP_PERIOD);
        if is_over {
            self.ending = None;
            self.told = false;
        }
        is_over
    }
}

/// True when programs see all that leaves, and have the addresses that it is to get.
pub(super) fn can(desired: &desired::Masquerade, local: &LocalNode, links: &Links) -> bool {
    let MasqueradeWish::On(rules) = &desired.wish else { return false };
    let is_seen = |uplink: &str| {
        let both = if uplink == TUNNEL_LINK {
            [Program::TunnelIngress, Program::TunnelEgress]
        } else {
            [Program::UplinkIngress, Program::UplinkEgress]
        };
        both.iter().all(|program| links.is_on(*program, uplink))
    };
    let own = |is_ipv4| local.addresses.iter().find(|address| address.is_ipv4() == is_ipv4);
    let has_source = |is_ipv4: bool| {
        let configured = if is_ipv4 { rules.ipv4 } else { rules.ipv6 };
        let is_needed = rules.sources.iter().any(|source| source.addr().is_ipv4() == is_ipv4);
        !is_needed || own(is_ipv4).is_some_and(|own| configured.is_none_or(|configured| configured == *own))
    };
    // What was left out for want of room would lose its source, as with the packet filter.
    !rules.uplinks.is_empty()
        && rules.uplinks.iter().all(|uplink| is_seen(uplink))
        && has_source(true)
        && has_source(false)
}
