//! Policies as written.

use super::Address;
use super::bgp_peer::Words;
use crate::config::described::{choice, section, text};

text! {
    /// A line of a prefix list.
    PrefixLineText = "a prefix such as 10.0.0.0/8, 10.0.0.0/8 ge 16 le 24 or 10.0.0.0/8+";
    /// A community or a pattern of them.
    CommunityText = "a community such as 65000:1, 65000:1:2, rt:65000:1 or no-export";
    /// A pattern of AS paths.
    AsPathText = "an AS path pattern such as _65001_ or ^65001( 65001)*$";
    /// Numbers from one to another.
    RangeText = "a number, or two with - between them";
    /// An AS to put in front.
    PrependAsText = "own, first or an AS number";
    /// What the next hop becomes.
    NextHopText = "self, unchanged or an address";
}

choice! {
    /// Address families.
    RawFamilyName {
        /// IPv4 unicast.
        Ipv4 = "ipv4",
        /// IPv6 unicast.
        Ipv6 = "ipv6",
    }
}

choice! {
    /// ORIGIN.
    RawOrigin {
        /// Interior.
        Igp = "igp",
        /// The protocol of that name.
        Egp = "egp",
        /// Anything else.
        Incomplete = "incomplete",
    }
}

choice! {
    /// Where a path is from.
    RawSource {
        /// The workloads of this node.
        PodCidr = "pod-cidr",
        /// Services.
        Service = "service",
        /// The addresses of this node.
        NodeAddress = "node-address",
        /// `prefixes` of `bgp.advertise`.
        Static = "static",
        /// `aggregates` of `bgp.advertise`.
        Aggregate = "aggregate",
        /// An external peer.
        External = "external",
        /// An internal peer.
        Internal = "internal",
        /// A peer in our confederation.
        Confederation = "confederation",
    }
}

choice! {
    /// State of prefix and origin (RFC 6811).
    RawValidity {
        /// Allowed.
        Valid = "valid",
        /// Not allowed.
        Invalid = "invalid",
        /// Nobody says.
        NotFound = "not-found",
    }
}

choice! {
    /// What a rule decides.
    RawThen {
        /// The path is accepted.
        Accept = "accept",
        /// The path is rejected.
        Reject = "reject",
        /// The next rule sees the path as this one changed it.
        Next = "next",
        /// The next policy of the peer does.
        NextPolicy = "next-policy",
    }
}

section! {
    /// A rule: what matches is changed and decided about.
    RawBgpRule {
        /// Its name, shown by `meshd bgp rib` where it decided.
        name: Option<Words> = "its number, from 1",
        /// All of this must hold.
        r#match: RawBgpMatch = "everything",
        /// And not all of this.
        unless: Option<RawBgpMatch> = "nothing",
        /// What is changed.
        set: RawBgpSet = "",
        /// What is decided.
        then: Option<RawThen> = "accept",
    }
}

section! {
    /// What a path must be like: all keys that are given must fit; of a list one entry.
    RawBgpMatch {
        /// Prefixes, as in `bgp.prefix_lists`.
        prefixes: Option<Vec<PrefixLineText>> = "any",
        /// Names of `bgp.prefix_lists`.
        prefix_lists: Option<Vec<super::Name>> = "any",
        /// Address families.
        families: Option<Vec<RawFamilyName>> = "any",
        /// The path has one of these communities.
        communities: Option<Vec<CommunityText>> = "any",
        /// The path has a community of one of these `bgp.community_lists`.
        community_lists: Option<Vec<super::Name>> = "any",
        /// The path has all of these communities.
        all_communities: Option<Vec<CommunityText>> = "any",
        /// AS path patterns, as in `bgp.as_path_lists`.
        as_path: Option<Vec<AsPathText>> = "any",
        /// Names of `bgp.as_path_lists`.
        as_path_lists: Option<Vec<super::Name>> = "any",
        /// Length of the AS path; an AS_SET counts as one.
        as_path_length: Option<RangeText> = "any",
        /// The first AS of the path.
        neighbor_as: Option<Vec<RangeText>> = "any",
        /// The AS that originated the path.
        origin_as: Option<Vec<RangeText>> = "any",
        /// Where the path is from.
        sources: Option<Vec<RawSource>> = "any",
        /// Addresses of peers the path is from.
        peers: Option<Vec<Address>> = "any",
        /// AS of the peer the path is from.
        peer_as: Option<Vec<RangeText>> = "any",
        /// What the next hop is in, as in `bgp.prefix_lists`; addresses have the length 32 or 128.
        next_hop: Option<Vec<PrefixLineText>> = "any",
        /// ORIGIN.
        origin: Option<Vec<RawOrigin>> = "any",
        /// MED; a path without has 0.
        med: Option<RangeText> = "any",
        /// LOCAL_PREF; a path without has 100.
        local_pref: Option<RangeText> = "any",
        /// What the RPKI says of prefix and origin.
        rpki: Option<Vec<RawValidity>> = "any",
    }
}

section! {
    /// What a rule changes.
    RawBgpSet {
        /// LOCAL_PREF.
        local_pref: Option<u32> = "unchanged",
        /// So much more LOCAL_PREF.
        add_local_pref: Option<u32> = "unchanged",
        /// So much less LOCAL_PREF.
        subtract_local_pref: Option<u32> = "unchanged",
        /// MED.
        med: Option<u32> = "unchanged",
        /// So much more MED.
        add_med: Option<u32> = "unchanged",
        /// So much less MED.
        subtract_med: Option<u32> = "unchanged",
        /// Take MED away.
        remove_med: Option<bool> = "false",
        /// ORIGIN.
        origin: Option<RawOrigin> = "unchanged",
        /// Take away what is like this; `*:*`, `*:*:*` and `extended:*` are all of a kind. Done before adding.
        remove_communities: Vec<CommunityText> = "none",
        /// These in place of all of their kind.
        communities: Vec<CommunityText> = "unchanged",
        /// These as well.
        add_communities: Vec<CommunityText> = "none",
        /// Makes the AS path longer.
        prepend: Option<RawPrepend> = "unchanged",
        /// The next hop.
        next_hop: Option<NextHopText> = "unchanged",
    }
}

section! {
    /// Makes the AS path longer.
    RawPrepend {
        /// What is put in front: `own` AS, the `first` of the path, or a number.
        r#as: Option<PrependAsText> = "own",
        /// How often, up to 32.
        count: Option<u16> = "1",
    }
}
