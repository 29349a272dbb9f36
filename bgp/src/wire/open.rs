//! OPEN (RFC 4271 section 4.2, RFC 5492, RFC 9072).

use super::capability::Capability;
use crate::id::{Asn, RouterId};

/// An OPEN message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS: the number of the four-octet capability when there is one, else that of the fixed field.
    pub asn: Asn,
    /// Hold time offered; 0 for none. 1 and 2 are refused (RFC 4271 section 6.2).
    pub hold_time_s: u16,
    /// Identifier; never 0.
    pub router_id: RouterId,
    /// Capabilities in the order of the wire.
    pub capabilities: Vec<Capability>,
}
