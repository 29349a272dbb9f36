//! ROUTE-REFRESH (RFC 2918, RFC 7313).

use thiserror::Error;

use super::{
    header::{Header, LengthLimit, MessageType},
    notification::{ErrorCode, Notification, route_refresh_error},
};
use crate::family::Family;

/// Octets of a body without outbound route filters.
const BODY_LEN: usize = 4;

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

/// A ROUTE-REFRESH of a length that its subtype cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("route refresh has {} octets instead of {}", .body.len(), BODY_LEN)]
pub struct RouteRefreshError {
    body: Vec<u8>,
}

impl RouteRefreshError {
    /// The NOTIFICATION of RFC 7313 section 5, which quotes the whole message.
    #[must_use]
    pub fn notification(&self) -> Notification {
        let header = Header::for_body(MessageType::RouteRefresh, self.body.len(), LengthLimit::Extended);
        let mut data = header.map_or_else(|_| Vec::new(), |header| header.encode().to_vec());
        data.extend_from_slice(&self.body);
        Notification { code: ErrorCode::RouteRefresh, subcode: route_refresh_error::INVALID_LENGTH, data }
    }
}

impl RouteRefresh {
    /// A message for a family.
    #[must_use]
    pub const fn new(family: Family, kind: RefreshKind) -> Self {
        Self { afi: family.afi(), safi: family.safi(), kind }
    }

    /// The family, if this speaker knows it.
    #[must_use]
    pub const fn family(self) -> Option<Family> {
        Family::from_numbers(self.afi, self.safi)
    }

    /// Reads a body. Without the enhanced route refresh capability the subtype is a reserved octet that nobody looks at
    /// (RFC 2918 section 3); with it, `None` is a subtype this speaker does not know, which is ignored (RFC 7313 section 5).
    ///
    /// A plain request may be longer: outbound route filters (RFC 5291) follow, which this speaker never asks for.
    pub fn decode(body: &[u8], enhanced: bool) -> Result<Option<Self>, RouteRefreshError> {
        let error = || RouteRefreshError { body: body.to_vec() };
        let (&[afi_high, afi_low, subtype, safi], after) = body.split_first_chunk::<BODY_LEN>().ok_or_else(error)?;
        let kind = match subtype {
            _ if !enhanced => RefreshKind::Request,
            0 => RefreshKind::Request,
            1 => RefreshKind::Begin,
            2 => RefreshKind::End,
            _ => return Ok(None),
        };
        if kind != RefreshKind::Request && !after.is_empty() {
            return Err(error());
        }
        Ok(Some(Self { afi: u16::from_be_bytes([afi_high, afi_low]), safi, kind }))
    }

    /// Appends the whole message.
    pub fn encode(self, out: &mut Vec<u8>) {
        if let Ok(header) = Header::for_body(MessageType::RouteRefresh, BODY_LEN, LengthLimit::Standard) {
            out.extend_from_slice(&header.encode());
        }
        let [afi_high, afi_low] = self.afi.to_be_bytes();
        out.extend_from_slice(&[afi_high, afi_low, self.kind as u8, self.safi]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::header::HEADER_LEN;

    #[test]
    fn what_is_made_decodes_to_itself() {
        for kind in [RefreshKind::Request, RefreshKind::Begin, RefreshKind::End] {
            let refresh = RouteRefresh::new(Family::Ipv6Unicast, kind);
            let mut out = Vec::new();
            refresh.encode(&mut out);
            assert_eq!(RouteRefresh::decode(&out[HEADER_LEN..], true), Ok(Some(refresh)));
            assert_eq!(refresh.family(), Some(Family::Ipv6Unicast));
        }
    }

    #[test]
    fn subtypes_count_only_when_negotiated() {
        let kind = |octet, enhanced| {
            RouteRefresh::decode(&[0, 1, octet, 1], enhanced).map(|refresh| refresh.map(|refresh| refresh.kind))
        };
        assert_eq!(kind(1, true), Ok(Some(RefreshKind::Begin)));
        assert_eq!(kind(1, false), Ok(Some(RefreshKind::Request)));
        assert_eq!(kind(3, true), Ok(None));
        assert_eq!(kind(3, false), Ok(Some(RefreshKind::Request)));
    }

    #[test]
    fn wrong_lengths_quote_the_message() {
        let request_with_filters = [0, 1, 0, 1, 1, 0x80, 0, 1, 0x80];
        assert!(RouteRefresh::decode(&request_with_filters, true).is_ok());
        for body in [&[][..], &[0, 1, 0], &[0, 1, 1, 1, 9], &[0, 1, 2, 1, 0]] {
            let error = RouteRefresh::decode(body, true).expect_err("a wrong length");
            let notification = error.notification();
            assert_eq!((notification.code, notification.subcode), (ErrorCode::RouteRefresh, 1));
            assert_eq!(notification.data[HEADER_LEN..], *body);
            assert_eq!(usize::from(notification.data[17]), HEADER_LEN + body.len());
        }
    }
}
