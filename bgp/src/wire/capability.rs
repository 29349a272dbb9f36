//! Capabilities of OPEN (RFC 5492).

use crate::{family::Family, id::Asn};

/// One capability. What this speaker does not know is kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Code 1: a family (RFC 4760). Families this speaker does not know are kept by number.
    Multiprotocol {
        /// Address family identifier.
        afi: u16,
        /// Subsequent address family identifier.
        safi: u8,
    },
    /// Code 2: route refresh (RFC 2918).
    RouteRefresh,
    /// Code 5: next hops of another family (RFC 8950): NLRI AFI, NLRI SAFI, next hop AFI.
    ExtendedNextHop(Vec<(u16, u16, u16)>),
    /// Code 6: messages up to 65,535 octets (RFC 8654).
    ExtendedMessage,
    /// Code 9: role (RFC 9234).
    Role(Role),
    /// Code 64: graceful restart (RFC 4724, RFC 8538).
    GracefulRestart(GracefulRestart),
    /// Code 65: AS numbers of four octets (RFC 6793).
    FourOctetAs(Asn),
    /// Code 69: add-path (RFC 7911).
    AddPath(Vec<AddPathFamily>),
    /// Code 70: enhanced route refresh (RFC 7313).
    EnhancedRouteRefresh,
    /// Code 71: long-lived graceful restart (RFC 9494).
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// Code 73: host and domain name of the speaker.
    Fqdn {
        /// Host name.
        host: String,
        /// Domain name; may be empty.
        domain: String,
    },
    /// Any other.
    Unknown {
        /// Code.
        code: u8,
        /// Value.
        value: Vec<u8>,
    },
}

/// What this side of a session is to the other one (RFC 9234 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Role {
    /// Sells transit to the other side.
    Provider = 0,
    /// A route server.
    RouteServer = 1,
    /// A client of a route server.
    RouteServerClient = 2,
    /// Buys transit from the other side.
    Customer = 3,
    /// Exchanges own and customers' routes.
    Peer = 4,
}

/// Graceful restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the speaker has restarted.
    pub restarted: bool,
    /// N: also after a NOTIFICATION and a hold time (RFC 8538).
    pub notification: bool,
    /// How long the session may be away, 12 bits.
    pub restart_time_s: u16,
    /// Families with their forwarding state bit.
    pub families: Vec<RestartFamily>,
}

/// A family of graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartFamily {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// F: forwarding state was kept.
    pub forwarding: bool,
}

/// A family of long-lived graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLivedFamily {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// F: forwarding state was kept.
    pub forwarding: bool,
    /// How long paths may stay stale, 24 bits.
    pub stale_time_s: u32,
}

/// A family of add-path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddPathFamily {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// What the sender of the capability can do.
    pub mode: AddPathMode,
}

/// Direction of add-path, as the sender of the capability sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddPathMode {
    /// It can receive several paths.
    Receive = 1,
    /// It can send several paths.
    Send = 2,
    /// Both.
    Both = 3,
}

impl Capability {
    /// The capability for a family.
    #[must_use]
    pub const fn family(family: Family) -> Self {
        Self::Multiprotocol { afi: family.afi(), safi: family.safi() }
    }
}
