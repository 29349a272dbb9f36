//! Actions to netlink messages, straight into one reusable buffer.
//!
//! A bulk install is bounded by the kernel at two to three microseconds a route (one with nexthop objects), so the encoder
//! must not allocate: it appends to a `Vec` that keeps its capacity. It exists because nexthop objects are unknown to
//! `netlink-packet-route`, and because of that speed; the tests compare its routes byte for byte with that crate's.
//!
//! Kernel facts the messages rely on:
//!
//! - `NLM_F_CREATE|NLM_F_EXCL` refuses a route when prefix, table and metric are taken, whoever holds them; a foreign
//!   route is never changed by an addition.
//! - a deletion matches protocol and metric when they are not zero (`fib_table_delete`, `ip6_route_del`), and any scope
//!   with `RT_SCOPE_NOWHERE`; it needs no next hop. A foreign route is never deleted.
//! - `RTM_DELNEXTHOP` knows only the id and refuses a protocol in its header: ids outside our range are not sent.
//! - a nexthop object is replaced only by its like: a group does not replace a single hop.
//! - only the last message of a batch asks for an acknowledgement; refusals are answered in any case.

use std::net::IpAddr;

use ipnet::IpNet;
use meshd_core::{
    desired::{Encap, Hop},
    id::{NexthopId, ROUTE_PROTOCOL},
    plan::{Action, ActualKey, GroupMember, RouteVia},
};

use super::{
    socket::{HEADER_LEN, align, u32_at},
    wire::*,
};
use crate::kernel::Refusal;

/// TTL of the outer header: what is inside counts for itself.
pub(crate) const TUNNEL_TTL: u8 = 64;

/// Messages for one send.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    last: Option<usize>,
}

impl Batch {
    /// An empty batch with room for `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), last: None }
    }

    /// Forgets the messages and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.last = None;
    }

    /// True without messages.
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Sequence number of the last message.
    pub(crate) fn last_seq(&self) -> Option<u32> {
        self.last.map(|last| u32_at(&self.bytes, last + 8))
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The messages; the last one asks for an acknowledgement.
    pub(crate) fn finish(&mut self) -> &[u8] {
        if let Some(last) = self.last {
            let flags = u16::from_ne_bytes([self.bytes[last + 6], self.bytes[last + 7]]) | NLM_F_ACK;
            self.bytes[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        &self.bytes
    }

    /// Appends one action under sequence number `seq`. On an error the batch is as before.
    pub(crate) fn push(&mut self, action: &Action, seq: u32) -> Result<(), Refusal> {
        let start = self.bytes.len();
        let encoded = match action {
            Action::PutNexthop { id, hop, replace } => self.put_nexthop(seq, *id, hop, *replace),
            Action::PutGroup { id, members, replace } => self.put_group(seq, *id, members, *replace),
            Action::PutRoute { key, via, replace } => self.put_route(seq, key, via, *replace),
            Action::DeleteRoute { key } => {
                self.delete_route(seq, key);
                Ok(())
            }
            Action::DeleteNexthop { id, .. } => self.delete_nexthop(seq, *id),
        };
        if let Err(refusal) = encoded {
            self.bytes.truncate(start);
            return Err(refusal);
        }
        let length = u32::try_from(self.bytes.len() - start).expect("messages are bounded by their 16-bit attributes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.last = Some(start);
        Ok(())
    }

    fn put_route(&mut self, seq: u32, key: &ActualKey, via: &RouteVia, replace: bool) -> Result<(), Refusal> {
        let flags = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.header(RTM_NEWROUTE, flags, seq);
        let kind = if *via == RouteVia::Blackhole { RTN_BLACKHOLE } else { RTN_UNICAST };
        self.route_header(key, RT_SCOPE_UNIVERSE, kind);
        self.route_key(key);
        let v4 = matches!(key.prefix, IpNet::V4(_));
        let (via, mtu) = match via {
            RouteVia::Narrow(via, mtu) => (&**via, Some(*mtu)),
            RouteVia::Object(_) | RouteVia::Hops(_) | RouteVia::Blackhole => (via, None),
        };
        if let Some(mtu) = mtu {
            self.nested(RTA_METRICS | NLA_F_NESTED, 1, |batch| {
                batch.attribute(RTAX_MTU, &mtu.to_ne_bytes());
                Ok(())
            })?;
        }
        match via {
            // One inside the other says nothing that one does not.
            RouteVia::Narrow(..) => return Err(Refusal::TooManyHops(0)),
            RouteVia::Object(id) => self.attribute(RTA_NH_ID, &id.0.to_ne_bytes()),
            RouteVia::Blackhole => {}
            RouteVia::Hops(hops) => match &**hops {
                [hop] => {
                    match &hop.tunnel {
                        None => self.gateway(v4, hop)?,
                        Some(encap) if encap.ipv4 == v4 => self.encap(RTA_ENCAP_TYPE, RTA_ENCAP, hop.via, encap)?,
                        Some(_) => return Err(Refusal::HopFamily),
                    }
                    self.attribute(RTA_OIF, &hop.dev.0.to_ne_bytes());
                }
                hops => self.multipath(v4, hops)?,
            },
        }
        Ok(())
    }

    fn delete_route(&mut self, seq: u32, key: &ActualKey) {
        self.header(RTM_DELROUTE, 0, seq);
        self.route_header(key, RT_SCOPE_NOWHERE, RTN_UNSPEC);
        self.route_key(key);
    }

    fn put_nexthop(&mut self, seq: u32, id: NexthopId, hop: &Hop, replace: bool) -> Result<(), Refusal> {
        self.nexthop_header(seq, id, if hop.is_ipv4() { AF_INET } else { AF_INET6 }, replace)?;
        self.attribute(NHA_OIF, &hop.dev.0.to_ne_bytes());
        match &hop.tunnel {
            None => self.address(NHA_GATEWAY, hop.via),
            Some(encap) => self.encap(NHA_ENCAP_TYPE, NHA_ENCAP, hop.via, encap)?,
        }
        Ok(())
    }

    fn put_group(&mut self, seq: u32, id: NexthopId, members: &[GroupMember], replace: bool) -> Result<(), Refusal> {
        self.nexthop_header(seq, id, AF_UNSPEC, replace)?;
        // `struct nexthop_grp`: id, weight minus one, three bytes of zeros.
        self.nested(NHA_GROUP, members.len(), |batch| {
            for member in members {
                batch.bytes.extend_from_slice(&member.id.0.to_ne_bytes());
                batch.bytes.extend_from_slice(&[member.weight.saturating_sub(1), 0, 0, 0]);
            }
            Ok(())
        })
    }

    fn delete_nexthop(&mut self, seq: u32, id: NexthopId) -> Result<(), Refusal> {
        check_owned(id)?;
        self.header(RTM_DELNEXTHOP, 0, seq);
        self.bytes.extend_from_slice(&[0; 8]);
        self.attribute(NHA_ID, &id.0.to_ne_bytes());
        Ok(())
    }

    fn header(&mut self, kind: u16, flags: u16, seq: u32) {
        let mut header = [0; HEADER_LEN];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        header[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&header);
    }

    /// `struct rtmsg`. Tables above 255 stand in `RTA_TABLE` only.
    fn route_header(&mut self, key: &ActualKey, scope: u8, kind: u8) {
        let family = if matches!(key.prefix, IpNet::V4(_)) { AF_INET } else { AF_INET6 };
        let table = u8::try_from(key.table.0).unwrap_or(0);
        let length = key.prefix.prefix_len();
        self.bytes.extend_from_slice(&[family, length, 0, 0, table, ROUTE_PROTOCOL, scope, kind, 0, 0, 0, 0]);
    }

    fn route_key(&mut self, key: &ActualKey) {
        self.address(RTA_DST, key.prefix.network());
        if key.table.0 > 255 {
            self.attribute(RTA_TABLE, &key.table.0.to_ne_bytes());
        }
        self.attribute(RTA_PRIORITY, &key.metric.0.to_ne_bytes());
    }

    /// A gateway of the destination's family, or `RTA_VIA` for an IPv6 gateway of an IPv4 destination (RFC 8950).
    fn gateway(&mut self, v4: bool, hop: &Hop) -> Result<(), Refusal> {
        match (v4, hop.via) {
            (true, IpAddr::V6(via)) => {
                let mut value = [0; 18];
                value[..2].copy_from_slice(&u16::from(AF_INET6).to_ne_bytes());
                value[2..].copy_from_slice(&via.octets());
                self.attribute(RTA_VIA, &value);
            }
            (false, IpAddr::V4(_)) => return Err(Refusal::HopFamily),
            (true, IpAddr::V4(_)) | (false, IpAddr::V6(_)) => self.address(RTA_GATEWAY, hop.via),
        }
        Ok(())
    }

    /// What the tunnel's link is to do with each packet. The source address is the kernel's choice. Between IPv6 nodes the outer UDP
    /// header gets a checksum: receivers must not take a header without one unless they were told to (RFC 6935).
    fn encap(&mut self, kind: u16, content: u16, far_end: IpAddr, encap: &Encap) -> Result<(), Refusal> {
        let (ip, flags) = match far_end {
            IpAddr::V4(_) => (LWTUNNEL_ENCAP_IP, 0),
            IpAddr::V6(_) => (LWTUNNEL_ENCAP_IP6, TUNNEL_CSUM),
        };
        self.attribute(kind, &ip.to_ne_bytes());
        self.nested(content | NLA_F_NESTED, 1, |batch| {
            batch.attribute(LWTUNNEL_IP_ID, &u64::from(encap.vni).to_be_bytes());
            batch.address(LWTUNNEL_IP_DST, far_end);
            batch.attribute(LWTUNNEL_IP_TTL, &[TUNNEL_TTL]);
            batch.attribute(LWTUNNEL_IP_FLAGS, &u16::to_be_bytes(flags));
            Ok(())
        })
    }

    /// `struct rtnexthop` per hop: length, flags, weight minus one, link; then its gateway.
    fn multipath(&mut self, v4: bool, hops: &[Hop]) -> Result<(), Refusal> {
        self.nested(RTA_MULTIPATH, hops.len(), |batch| {
            for hop in hops {
                let start = batch.bytes.len();
                batch.bytes.extend_from_slice(&[0; 4]);
                batch.bytes.extend_from_slice(&hop.dev.0.to_ne_bytes());
                batch.gateway(v4, hop)?;
                let length = u16::try_from(batch.bytes.len() - start).expect("a hop has at most 32 bytes");
                batch.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
            }
            Ok(())
        })
    }

    /// `struct nhmsg` and the id.
    fn nexthop_header(&mut self, seq: u32, id: NexthopId, family: u8, replace: bool) -> Result<(), Refusal> {
        check_owned(id)?;
        let flags = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.header(RTM_NEWNEXTHOP, flags, seq);
        self.bytes.extend_from_slice(&[family, RT_SCOPE_UNIVERSE, ROUTE_PROTOCOL, 0, 0, 0, 0, 0]);
        self.attribute(NHA_ID, &id.0.to_ne_bytes());
        Ok(())
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    /// One attribute, padded to four bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("single attributes are small");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// An attribute of `count` hops, whose length must fit into 16 bits.
    fn nested(
        &mut self,
        kind: u16,
        count: usize,
        content: impl FnOnce(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        content(self)?;
        let length = u16::try_from(self.bytes.len() - start).map_err(|_| Refusal::TooManyHops(count))?;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        Ok(())
    }
}

/// A request for all routes of one family with our protocol; the kernel filters (strict checking).
pub(crate) fn dump_routes(seq: u32, family: u8) -> Vec<u8> {
    dump_request(seq, RTM_GETROUTE, &[family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0, 0, 0, 0])
}

/// A request for all nexthop objects; the kernel cannot filter them by protocol.
pub(crate) fn dump_nexthops(seq: u32) -> Vec<u8> {
    dump_request(seq, RTM_GETNEXTHOP, &[0; 8])
}

/// A request for a dump with this header.
pub(crate) fn dump_request(seq: u32, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.header(kind, NLM_F_DUMP, seq);
    batch.bytes.extend_from_slice(body);
    let length = u32::try_from(batch.bytes.len()).expect("a request is small");
    batch.bytes[..4].copy_from_slice(&length.to_ne_bytes());
    batch.bytes
}

fn check_owned(id: NexthopId) -> Result<(), Refusal> {
    if id.is_owned() { Ok(()) } else { Err(Refusal::NotOwned(id.0)) }
}

#[cfg(test)]
mod tests;
