//! Authentication of control packets (RFC 5880 sections 4.2 to 4.4 and 6.7).
//!
//! Every type of section is read. Keyed SHA1 is spoken, plain and meticulous; a simple password proves nothing on a wire
//! that others can read, and MD5 is broken, so both are refused by name ([`Discard::AuthenticationUnsupported`]).
//!
//! The digest is not an HMAC: it is the SHA1 of the whole packet with the key, padded with zeros to twenty octets, lying
//! where the digest will be.

use std::fmt;

use sha1::{Digest, Sha1};

use super::{
    packet::{DecodeError, Encoded, PACKET_LEN, Packet, Received},
    session::Discard,
};

/// Octets of the longest section this speaker sends: keyed SHA1.
pub const SECTION_LEN_MAX: usize = 28;
/// Octets of a SHA1 digest, and the most that a key can have.
pub const DIGEST_LEN: usize = 20;
/// Octets of a section before the digest: type, length, key id, reserved, sequence number.
const SECTION_HEAD_LEN: usize = SECTION_LEN_MAX - DIGEST_LEN;

/// Authentication types (RFC 5880 section 4.1).
mod kind {
    pub(super) const SIMPLE_PASSWORD: u8 = 1;
    pub(super) const KEYED_MD5: u8 = 2;
    pub(super) const METICULOUS_KEYED_MD5: u8 = 3;
    pub(super) const KEYED_SHA1: u8 = 4;
    pub(super) const METICULOUS_KEYED_SHA1: u8 = 5;
}

/// An authentication section whose length is right for its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section<'a> {
    /// A password of 1 to 16 octets.
    SimplePassword {
        /// Which password.
        key_id: u8,
        /// The password.
        password: &'a [u8],
    },
    /// Keyed MD5.
    Md5 {
        /// With a sequence number that grows with each packet.
        meticulous: bool,
        /// Which key.
        key_id: u8,
        /// Against replay.
        sequence: u32,
        /// The digest.
        digest: &'a [u8; 16],
    },
    /// Keyed SHA1.
    Sha1 {
        /// With a sequence number that grows with each packet.
        meticulous: bool,
        /// Which key.
        key_id: u8,
        /// Against replay.
        sequence: u32,
        /// The digest.
        digest: &'a [u8; DIGEST_LEN],
    },
    /// A type of another RFC.
    Other {
        /// The type.
        kind: u8,
    },
}

impl<'a> Section<'a> {
    /// Reads what follows the mandatory part, up to the length of the packet.
    pub(super) fn decode(octets: &'a [u8]) -> Result<Self, DecodeError> {
        let (&[kind, length], _) =
            octets.split_first_chunk::<2>().ok_or(DecodeError::AuthenticationLength { kind: 0, length: 0 })?;
        let bad_length = DecodeError::AuthenticationLength { kind, length };
        let value = octets.get(2..usize::from(length)).ok_or(bad_length)?;
        Ok(match kind {
            kind::SIMPLE_PASSWORD => {
                let (&key_id, password) = value.split_first().ok_or(bad_length)?;
                if !(1..=16).contains(&password.len()) {
                    return Err(bad_length);
                }
                Self::SimplePassword { key_id, password }
            }
            kind::KEYED_MD5 | kind::METICULOUS_KEYED_MD5 => {
                let (key_id, sequence, digest) = keyed(value).ok_or(bad_length)?;
                Self::Md5 { meticulous: kind == kind::METICULOUS_KEYED_MD5, key_id, sequence, digest }
            }
            kind::KEYED_SHA1 | kind::METICULOUS_KEYED_SHA1 => {
                let (key_id, sequence, digest) = keyed(value).ok_or(bad_length)?;
                Self::Sha1 { meticulous: kind == kind::METICULOUS_KEYED_SHA1, key_id, sequence, digest }
            }
            kind => Self::Other { kind },
        })
    }

    /// The number of its type.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::SimplePassword { .. } => kind::SIMPLE_PASSWORD,
            Self::Md5 { meticulous: false, .. } => kind::KEYED_MD5,
            Self::Md5 { meticulous: true, .. } => kind::METICULOUS_KEYED_MD5,
            Self::Sha1 { meticulous: false, .. } => kind::KEYED_SHA1,
            Self::Sha1 { meticulous: true, .. } => kind::METICULOUS_KEYED_SHA1,
            Self::Other { kind } => *kind,
        }
    }
}

/// Key id, reserved, sequence number and exactly `N` octets of digest.
fn keyed<const N: usize>(value: &[u8]) -> Option<(u8, u32, &[u8; N])> {
    let (&[key_id, _reserved, a, b, c, d], digest) = value.split_first_chunk::<6>()?;
    Some((key_id, u32::from_be_bytes([a, b, c, d]), digest.try_into().ok()?))
}

/// A shared secret of 1 to 20 octets. Neither `Debug` nor anything else shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; DIGEST_LEN]);

impl Key {
    /// The key of a text; `None` when it is empty or longer than 20 octets.
    #[must_use]
    pub fn new(secret: &[u8]) -> Option<Self> {
        let mut key = [0; DIGEST_LEN];
        key.get_mut(..secret.len()).filter(|place| !place.is_empty())?.copy_from_slice(secret);
        Some(Self(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How a session signs its packets and expects the other side's to be signed: keyed SHA1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// The sequence number grows with each packet, so that no packet can be replayed at all.
    pub meticulous: bool,
    /// Which key, where both sides know several.
    pub key_id: u8,
    /// The key.
    pub key: Key,
}

/// Sequence numbers of one session: bfd.XmitAuthSeq, bfd.RcvAuthSeq and bfd.AuthSeqKnown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequences {
    next: u32,
    /// The last one heard, while it binds the next.
    heard: Option<u32>,
}

impl Sequences {
    /// Begins at a number that nobody can guess.
    pub(super) const fn starting_at(next: u32) -> Self {
        Self { next, heard: None }
    }

    /// Nothing was heard for so long that the other side may have begun anew.
    pub(super) const fn forget(&mut self) {
        self.heard = None;
    }

    /// True while the last number binds the next.
    pub(super) const fn known(self) -> bool {
        self.heard.is_some()
    }

    /// Signs a packet. Without the meticulous form the number grows only with `changed` content, so that a lossy path
    /// does not leave the window of the other side.
    pub(super) fn sign(&mut self, authentication: &Authentication, encoded: &mut Encoded, changed: bool) {
        if authentication.meticulous || changed {
            self.next = self.next.wrapping_add(1);
        }
        let kind = if authentication.meticulous { kind::METICULOUS_KEYED_SHA1 } else { kind::KEYED_SHA1 };
        let mut section = [0; SECTION_LEN_MAX];
        section[..4].copy_from_slice(&[kind, SECTION_LEN_MAX as u8, authentication.key_id, 0]);
        section[4..SECTION_HEAD_LEN].copy_from_slice(&self.next.to_be_bytes());
        section[SECTION_HEAD_LEN..].copy_from_slice(&authentication.key.0);
        encoded.authenticate(&section);
        let digest: [u8; DIGEST_LEN] = Sha1::digest(encoded.as_ref()).into();
        encoded.octets_mut()[PACKET_LEN + SECTION_HEAD_LEN..].copy_from_slice(&digest);
    }

    /// Section 6.7.4. The digest is checked before the sequence number is believed: the RFC's order would let a forged
    /// packet choose the number that the next real one must follow.
    pub(super) fn verify(
        &mut self,
        authentication: Option<&Authentication>,
        received: &Received<'_>,
    ) -> Result<(), Discard> {
        let (authentication, section) = match (authentication, received.authentication) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(Discard::AuthenticationUnexpected),
            (Some(_), None) => return Err(Discard::AuthenticationMissing),
            (Some(authentication), Some(section)) => (authentication, section),
        };
        let Section::Sha1 { meticulous, key_id, sequence, digest } = section else {
            return Err(Discard::AuthenticationUnsupported(section.kind()));
        };
        if (meticulous, key_id) != (authentication.meticulous, authentication.key_id) {
            return Err(Discard::AuthenticationKey { kind: section.kind(), key_id });
        }
        let mut hash = Sha1::new();
        let before = received.octets.get(..PACKET_LEN + SECTION_HEAD_LEN).unwrap_or_default();
        hash.update(before);
        hash.update(authentication.key.0);
        // Nothing of RFC 5880 follows the section, but the length field may count more, and the digest covers it.
        hash.update(received.octets.get(PACKET_LEN + SECTION_LEN_MAX..).unwrap_or_default());
        let expected: [u8; DIGEST_LEN] = hash.finalize().into();
        if !equal_in_constant_time(&expected, digest) {
            return Err(Discard::AuthenticationDigest);
        }
        if let Some(heard) = self.heard {
            let ahead = sequence.wrapping_sub(heard);
            let window = window(&received.packet);
            if ahead > window || (meticulous && ahead == 0) {
                return Err(Discard::AuthenticationSequence { heard, sequence });
            }
        }
        self.heard = Some(sequence);
        Ok(())
    }
}

/// How far a sequence number may be ahead of the last: three times the multiplier.
fn window(packet: &Packet) -> u32 {
    u32::from(packet.multiplier.get()) * 3
}

fn equal_in_constant_time(left: &[u8; DIGEST_LEN], right: &[u8; DIGEST_LEN]) -> bool {
    left.iter().zip(right).fold(0, |difference, (left, right)| difference | (left ^ right)) == 0
}
