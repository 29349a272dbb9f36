//! Capabilities of OPEN (RFC 5492).
//!
//! A capability of a known code whose value has not the shape its RFC gives it counts as not understood: it is kept as
//! [`Capability::Unknown`] and nothing follows from it. The one exception is the four-octet AS number, see
//! [`super::open`]: without it nobody knows who the peer says it is.

use thiserror::Error;

use crate::{family::Family, id::Asn};

/// Codes of capabilities.
pub mod code {
    /// RFC 4760.
    pub const MULTIPROTOCOL: u8 = 1;
    /// RFC 2918.
    pub const ROUTE_REFRESH: u8 = 2;
    /// RFC 8950.
    pub const EXTENDED_NEXT_HOP: u8 = 5;
    /// RFC 8654.
    pub const EXTENDED_MESSAGE: u8 = 6;
    /// RFC 9234.
    pub const ROLE: u8 = 9;
    /// RFC 4724.
    pub const GRACEFUL_RESTART: u8 = 64;
    /// RFC 6793.
    pub const FOUR_OCTET_AS: u8 = 65;
    /// RFC 7911.
    pub const ADD_PATH: u8 = 69;
    /// RFC 7313.
    pub const ENHANCED_ROUTE_REFRESH: u8 = 70;
    /// RFC 9494.
    pub const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;
    /// draft-walton-bgp-hostname-capability, as FRR and BIRD send it.
    pub const FQDN: u8 = 73;
    /// draft-ietf-idr-bgp-bfd-strict-mode.
    pub const BFD_STRICT: u8 = 74;
}

/// Graceful restart: R.
const RESTARTED: u16 = 0x8000;
/// Graceful restart: N.
const NOTIFICATION: u16 = 0x4000;
/// Graceful restart: the time.
const RESTART_TIME: u16 = 0x0fff;
/// Graceful restart, plain and long-lived: F.
const FORWARDING: u8 = 0x80;
/// Longest stale time that 24 bits hold.
pub const STALE_TIME_S_MAX: u32 = 0x00ff_ffff;

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
    /// Code 74: the session waits for BFD (draft-ietf-idr-bgp-bfd-strict-mode).
    BfdStrict,
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

impl Role {
    /// The role of this octet.
    #[must_use]
    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            0 => Some(Self::Provider),
            1 => Some(Self::RouteServer),
            2 => Some(Self::RouteServerClient),
            3 => Some(Self::Customer),
            4 => Some(Self::Peer),
            _ => None,
        }
    }
}

impl AddPathMode {
    /// The mode of this octet.
    #[must_use]
    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Receive),
            2 => Some(Self::Send),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    /// The sender of the capability can receive several paths.
    #[must_use]
    pub const fn receives(self) -> bool {
        matches!(self, Self::Receive | Self::Both)
    }

    /// The sender of the capability can send several paths.
    #[must_use]
    pub const fn sends(self) -> bool {
        matches!(self, Self::Send | Self::Both)
    }
}

/// A value is longer than the length octet of a capability can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("capability {code} has {octets} octets, which is more than 255")]
pub struct CapabilityLengthError {
    /// Its code.
    pub code: u8,
    /// Octets of its value.
    pub octets: usize,
}

impl Capability {
    /// The capability for a family.
    #[must_use]
    pub const fn family(family: Family) -> Self {
        Self::Multiprotocol { afi: family.afi(), safi: family.safi() }
    }

    /// Its code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Multiprotocol { .. } => code::MULTIPROTOCOL,
            Self::RouteRefresh => code::ROUTE_REFRESH,
            Self::ExtendedNextHop(_) => code::EXTENDED_NEXT_HOP,
            Self::ExtendedMessage => code::EXTENDED_MESSAGE,
            Self::Role(_) => code::ROLE,
            Self::GracefulRestart(_) => code::GRACEFUL_RESTART,
            Self::FourOctetAs(_) => code::FOUR_OCTET_AS,
            Self::AddPath(_) => code::ADD_PATH,
            Self::EnhancedRouteRefresh => code::ENHANCED_ROUTE_REFRESH,
            Self::LongLivedGracefulRestart(_) => code::LONG_LIVED_GRACEFUL_RESTART,
            Self::Fqdn { .. } => code::FQDN,
            Self::BfdStrict => code::BFD_STRICT,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// The capability of a code and a value. Never refused: see the module.
    #[must_use]
    pub fn decode(code: u8, value: &[u8]) -> Self {
        Self::decode_known(code, value).unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() })
    }

    /// Appends code, length and value.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), CapabilityLengthError> {
        let code = self.code();
        let start = out.len();
        out.extend_from_slice(&[code, 0]);
        let value_start = out.len();
        self.encode_value(out);
        let octets = out.len() - value_start;
        match (u8::try_from(octets), out.get_mut(start + 1)) {
            (Ok(length), Some(field)) => {
                *field = length;
                Ok(())
            }
            _ => {
                out.truncate(start);
                Err(CapabilityLengthError { code, octets })
            }
        }
    }

    fn decode_known(code: u8, value: &[u8]) -> Option<Self> {
        Some(match (code, value) {
            (code::MULTIPROTOCOL, &[afi_high, afi_low, _, safi]) => {
                Self::Multiprotocol { afi: u16::from_be_bytes([afi_high, afi_low]), safi }
            }
            (code::ROUTE_REFRESH, []) => Self::RouteRefresh,
            (code::EXTENDED_NEXT_HOP, _) => {
                let (tuples, []) = value.as_chunks::<6>() else { return None };
                let number = |high, low| u16::from_be_bytes([high, low]);
                Self::ExtendedNextHop(
                    tuples.iter().map(|&[a, b, c, d, e, f]| (number(a, b), number(c, d), number(e, f))).collect(),
                )
            }
            (code::EXTENDED_MESSAGE, []) => Self::ExtendedMessage,
            (code::ROLE, &[role]) => Self::Role(Role::from_octet(role)?),
            (code::GRACEFUL_RESTART, _) => Self::GracefulRestart(GracefulRestart::decode(value)?),
            (code::FOUR_OCTET_AS, value) => Self::FourOctetAs(Asn(u32::from_be_bytes(value.try_into().ok()?))),
            (code::ADD_PATH, _) => Self::AddPath(add_path_families(value)?),
            (code::ENHANCED_ROUTE_REFRESH, []) => Self::EnhancedRouteRefresh,
            (code::LONG_LIVED_GRACEFUL_RESTART, _) => Self::LongLivedGracefulRestart(long_lived_families(value)?),
            (code::FQDN, _) => {
                let (host, rest) = counted_text(value)?;
                let (domain, []) = counted_text(rest)? else { return None };
                Self::Fqdn { host, domain }
            }
            (code::BFD_STRICT, []) => Self::BfdStrict,
            _ => return None,
        })
    }

    fn encode_value(&self, out: &mut Vec<u8>) {
        match self {
            Self::Multiprotocol { afi, safi } => {
                out.extend_from_slice(&afi.to_be_bytes());
                out.extend_from_slice(&[0, *safi]);
            }
            Self::ExtendedNextHop(tuples) => {
                let numbers = tuples.iter().flat_map(|&(afi, safi, next_hop_afi)| [afi, safi, next_hop_afi]);
                out.extend(numbers.flat_map(u16::to_be_bytes));
            }
            Self::Role(role) => out.push(*role as u8),
            Self::GracefulRestart(restart) => restart.encode(out),
            Self::FourOctetAs(asn) => out.extend_from_slice(&asn.0.to_be_bytes()),
            Self::AddPath(families) => {
                for family in families {
                    out.extend_from_slice(&family.afi.to_be_bytes());
                    out.extend_from_slice(&[family.safi, family.mode as u8]);
                }
            }
            Self::LongLivedGracefulRestart(families) => {
                for family in families {
                    out.extend_from_slice(&family.afi.to_be_bytes());
                    out.extend_from_slice(&[family.safi, if family.forwarding { FORWARDING } else { 0 }]);
                    let [_, time @ ..] = family.stale_time_s.min(STALE_TIME_S_MAX).to_be_bytes();
                    out.extend_from_slice(&time);
                }
            }
            Self::Fqdn { host, domain } => {
                for text in [host, domain] {
                    // Two texts of a length octet each can be longer than the value; the caller is told.
                    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                    out.extend_from_slice(text.as_bytes());
                }
            }
            Self::Unknown { value, .. } => out.extend_from_slice(value),
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRouteRefresh | Self::BfdStrict => {}
        }
    }
}

impl GracefulRestart {
    fn decode(value: &[u8]) -> Option<Self> {
        let (&head, families) = value.split_first_chunk::<2>()?;
        let head = u16::from_be_bytes(head);
        let (families, []) = families.as_chunks::<4>() else { return None };
        let family = |&[afi_high, afi_low, safi, flags]: &[u8; 4]| RestartFamily {
            afi: u16::from_be_bytes([afi_high, afi_low]),
            safi,
            forwarding: flags & FORWARDING != 0,
        };
        Some(Self {
            restarted: head & RESTARTED != 0,
            notification: head & NOTIFICATION != 0,
            restart_time_s: head & RESTART_TIME,
            families: families.iter().map(family).collect(),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let flags = if self.restarted { RESTARTED } else { 0 } | if self.notification { NOTIFICATION } else { 0 };
        out.extend_from_slice(&(flags | self.restart_time_s.min(RESTART_TIME)).to_be_bytes());
        for family in &self.families {
            out.extend_from_slice(&family.afi.to_be_bytes());
            out.extend_from_slice(&[family.safi, if family.forwarding { FORWARDING } else { 0 }]);
        }
    }
}

/// RFC 7911 section 4: with a mode that is none of the three, the whole capability counts as not understood.
fn add_path_families(value: &[u8]) -> Option<Vec<AddPathFamily>> {
    let (families, []) = value.as_chunks::<4>() else { return None };
    let family = |&[afi_high, afi_low, safi, mode]: &[u8; 4]| {
        let mode = AddPathMode::from_octet(mode)?;
        Some(AddPathFamily { afi: u16::from_be_bytes([afi_high, afi_low]), safi, mode })
    };
    families.iter().map(family).collect()
}

fn long_lived_families(value: &[u8]) -> Option<Vec<LongLivedFamily>> {
    let (families, []) = value.as_chunks::<7>() else { return None };
    let family = |&[afi_high, afi_low, safi, flags, a, b, c]: &[u8; 7]| LongLivedFamily {
        afi: u16::from_be_bytes([afi_high, afi_low]),
        safi,
        forwarding: flags & FORWARDING != 0,
        stale_time_s: u32::from_be_bytes([0, a, b, c]),
    };
    Some(families.iter().map(family).collect())
}

/// A text behind an octet with its length, and what follows it.
fn counted_text(octets: &[u8]) -> Option<(String, &[u8])> {
    let (&length, after) = octets.split_first()?;
    let (text, rest) = after.split_at_checked(usize::from(length))?;
    Some((std::str::from_utf8(text).ok()?.to_owned(), rest))
}

#[cfg(test)]
#[path = "capability_tests.rs"]
mod tests;
