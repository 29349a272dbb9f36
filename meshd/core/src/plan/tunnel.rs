//! The tunnel's link: what it should be against what there is.
//!
//! The link is one object that nexthop objects name: while it is there it is changed in place, and it is replaced only when it
//! is of another make, because that takes every route through it away for a moment.

use std::net::IpAddr;

use crate::{
    derive::{OVERHEAD_V4, OVERHEAD_V6},
    id::IfIndex,
    observed::Observed,
};

/// Least MTU of a link that carries IPv6 (RFC 8200).
pub const MTU_MIN: u32 = 1_280;

/// What the link should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelWish {
    /// UDP port.
    pub port: u16,
    /// Largest packet that goes in, in bytes.
    pub mtu: u32,
}

/// The link that has our name, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldTunnel {
    /// Its index.
    pub index: IfIndex,
    /// UDP port, when it is a link that takes the far end from each route, without learning, and reads headers without a checksum.
    pub port: Option<u16>,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up, and resolving no addresses.
    pub ready: bool,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelStep {
    /// Make the link; it is up afterwards.
    Create(TunnelWish),
    /// Change the MTU.
    SetMtu(IfIndex, u32),
    /// Set it up.
    SetUp(IfIndex),
    /// Remove it.
    Delete(IfIndex),
}

/// The steps from what is held to what is wanted, in order.
#[must_use]
pub fn plan_tunnel(wish: Option<TunnelWish>, held: Option<HeldTunnel>) -> Vec<TunnelStep> {
    match (wish, held) {
        (None, None) => Vec::new(),
        (None, Some(held)) => vec![TunnelStep::Delete(held.index)],
        (Some(wish), None) => vec![TunnelStep::Create(wish)],
        (Some(wish), Some(held)) if held.port != Some(wish.port) => {
            vec![TunnelStep::Delete(held.index), TunnelStep::Create(wish)]
        }
        (Some(wish), Some(held)) => {
            let mut steps = Vec::new();
            if held.mtu != wish.mtu {
                steps.push(TunnelStep::SetMtu(held.index, wish.mtu));
            }
            if !held.ready {
                steps.push(TunnelStep::SetUp(held.index));
            }
            steps
        }
    }
}

/// MTU of the link: what fits through the widest of the links that carry the node's addresses. Paths with less have it on their
/// routes.
#[must_use]
pub fn tunnel_mtu(observed: &Observed, own: &[IpAddr]) -> Option<u32> {
    let overhead = if own.iter().any(IpAddr::is_ipv4) { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let carries = observed.addresses.iter().filter(|(key, _)| own.contains(&key.address.addr()));
    let widest = carries.filter_map(|(key, _)| observed.links.get(&key.link)).map(|link| link.mtu).max()?;
    Some(widest.saturating_sub(overhead).max(MTU_MIN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WISH: TunnelWish = TunnelWish { port: 8472, mtu: 1450 };
    const HELD: HeldTunnel = HeldTunnel { index: IfIndex(7), port: Some(8472), mtu: 1450, ready: true };

    #[test]
    fn a_link_is_changed_in_place_where_that_is_possible() {
        assert_eq!(plan_tunnel(Some(WISH), Some(HELD)), []);
        assert_eq!(plan_tunnel(Some(WISH), None), [TunnelStep::Create(WISH)]);
        assert_eq!(plan_tunnel(None, Some(HELD)), [TunnelStep::Delete(IfIndex(7))]);
        let narrow = HeldTunnel { mtu: 1500, ready: false, ..HELD };
        let steps = [TunnelStep::SetMtu(IfIndex(7), 1450), TunnelStep::SetUp(IfIndex(7))];
        assert_eq!(plan_tunnel(Some(WISH), Some(narrow)), steps);
        for port in [None, Some(4789)] {
            let other = HeldTunnel { port, ..HELD };
            let steps = [TunnelStep::Delete(IfIndex(7)), TunnelStep::Create(WISH)];
            assert_eq!(plan_tunnel(Some(WISH), Some(other)), steps);
        }
    }

    /// What the kernel holds after the steps.
    fn carried_out(held: Option<HeldTunnel>, steps: &[TunnelStep]) -> Option<HeldTunnel> {
        steps.iter().fold(held, |held, step| match *step {
            TunnelStep::Create(wish) => {
                assert_eq!(held, None, "the name is free");
                Some(HeldTunnel { index: IfIndex(9), port: Some(wish.port), mtu: wish.mtu, ready: true })
            }
            TunnelStep::Delete(index) => {
                assert_eq!(held.map(|held| held.index), Some(index));
                None
            }
            TunnelStep::SetMtu(_, mtu) => held.map(|held| HeldTunnel { mtu, ..held }),
            TunnelStep::SetUp(_) => held.map(|held| HeldTunnel { ready: true, ..held }),
        })
    }

    proptest! {
        #[test]
        fn the_steps_lead_to_the_wish_and_then_there_are_none(
            wish in prop::option::of((1u16..5, 1300u32..1303)),
            held in prop::option::of((prop::option::of(1u16..5), 1300u32..1303, any::<bool>())),
        ) {
            let wish = wish.map(|(port, mtu)| TunnelWish { port, mtu });
            let held = held.map(|(port, mtu, ready)| HeldTunnel { index: IfIndex(7), port, mtu, ready });
            let after = carried_out(held, &plan_tunnel(wish, held));
            prop_assert_eq!(after.map(|held| (held.port, held.mtu, held.ready)), wish.map(|w| (Some(w.port), w.mtu, true)));
            prop_assert_eq!(plan_tunnel(wish, after), []);
        }
    }
}
