//! Counters by reason: what became of packets.

/// Packets and bytes of one reason on one CPU. Element of `counters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Their length in bytes, link-layer header included, frame check sequence not.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);

impl Counter {
    /// The sum of two counters, which is how the copies of several CPUs become one figure. Wraps like the counters
    /// themselves do.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $drop:literal;)*) => {
        /// Why a packet was counted. The discriminant is the index into `counters`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All reasons in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Number of reasons, which is the number of elements of `counters`.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The word that metrics and events use.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// True when the packet was dropped.
            #[must_use]
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$name => $drop,)* }
            }
        }
    };
}

reasons! {
    /// Not for us: passed on unchanged.
    Passed = "passed", false;
    /// Translated to a backend, connection known before.
    ToBackend = "to_backend", false;
    /// Translated to a backend, first packet of a connection.
    NewConnection = "new_connection", false;
    /// An answer translated back.
    Reply = "reply", false;
    /// Source replaced on the way out of the mesh.
    Masqueraded = "masqueraded", false;
    /// An answer from outside translated back to its workload.
    MasqueradeReply = "masquerade_reply", false;
    /// An ICMP error whose inner packet was translated.
    IcmpError = "icmp_error", false;
    /// The service has no backend for this client.
    NoBackend = "no_backend", true;
    /// The client is outside of the service's source ranges.
    SourceRange = "source_range", true;
    /// The hop limit ended here.
    TtlExpired = "ttl_expired", true;
    /// No free port for a translated source after all tries.
    NoPort = "no_port", true;
    /// The table of connections took no entry.
    NoConnection = "no_connection", true;
    /// The backend was removed and its connections are ended.
    BackendKilled = "backend_killed", true;
    /// A header is cut short or contradicts itself: left to the stack, which drops it.
    Malformed = "malformed", false;
    /// A fragment whose first one was not seen: left to the stack.
    FragmentUnknown = "fragment_unknown", false;
    /// This node has no address of the family to translate the source to.
    NoSource = "no_source", true;
    /// The kernel has no route or no neighbor.
    NoRoute = "no_route", true;
    /// The packet could not be rewritten.
    RewriteFailed = "rewrite_failed", true;
    /// The packet is longer than its way takes and has no other; who sent it was told, if it must not be fragmented and an error could be made of
    /// it.
    TooBig = "too_big", true;
    /// Flow events that found no room in the ring: nobody reads it fast enough.
    EventsLost = "events_lost", false;
    /// Flow events that were not made, because this CPU had made as many of the kind as a tick may have.
    EventsLimited = "events_limited", false;
    /// Another node sent it here for a service, and it goes on without what it was sent in.
    DsrReceived = "dsr_received", false;
    /// It says that another node sent it for a service, and that is not so: nobody of the mesh sent it, or the service does not have
    /// this backend.
    DsrRefused = "dsr_refused", true;
    /// A socket that named a service was given a backend. No packet: the bytes stay zero.
    SocketTranslated = "socket_translated", false;
    /// A socket named a service that has no backend, and its call was refused. No packet: the bytes stay zero.
    SocketRefused = "socket_refused", true;
    /// Sent to another node inside of a tunnel's frame that a program wrote.
    Encapsulated = "encapsulated", false;
    /// Taken out of a tunnel's frame by a program.
    Decapsulated = "decapsulated", false;
    /// A frame of the tunnel from somebody who is no node of the mesh, or with the address of a workload of this node inside.
    TunnelRefused = "tunnel_refused", true;
    /// The number in a tunnel's header is another identity than the one that is known of the source, which counts.
    IdentityMismatch = "identity_mismatch", false;
    /// Sent by the fast path between workloads of two nodes, past this node's routing and packet filter.
    Forwarded = "forwarded", false;
    /// A reset of a connection that nobody knows, while connections are taken over from the maps of before: it may be one of them.
    ResetHeld = "reset_held", true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_wrap() {
        let almost_full = Counter { packets: u64::MAX, bytes: 10 };
        let one = Counter { packets: 1, bytes: 60 };
        assert_eq!(almost_full.plus(one), Counter { packets: 0, bytes: 70 });
    }

    #[test]
    fn reasons_are_their_index_and_have_words_of_their_own() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::ALL.iter().filter(|other| other.word() == reason.word()).count(), 1);
        }
    }
}
