//! ROUTE-REFRESH (RFC 2918, RFC 7313).

/// What a ROUTE-REFRESH message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// Its subtype.
    pub kind: RefreshKind,
}

/// Subtypes of RFC 7313.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefreshKind {
    /// Send everything again.
    Request = 0,
    /// Beginning of route refresh.
    Begin = 1,
    /// End of route refresh.
    End = 2,
}
