//! Where each attribute of a message lies. Values are not looked at here.

use super::problem::{Disposition, Fault, Problem, Problems, UpdateError};
use crate::wire::attributes::{code, flag};

/// Codes below this are found by index; all that this speaker knows are.
const TABLE_LEN: usize = 64;
/// What an empty slot begins with; lists of attributes are shorter.
const NOWHERE: Slot = Slot { at: 0, length: 0, head: 0, flags: 0 };

/// One attribute in the list.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Where its flags are.
    at: u32,
    /// Octets of its value.
    length: u16,
    /// Octets before its value.
    head: u8,
    flags: u8,
}

/// An attribute as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) flags: u8,
    pub(super) value: &'a [u8],
    /// Flags, code, length and value.
    pub(super) octets: &'a [u8],
}

/// The attributes of a message, each code once.
#[derive(Debug)]
pub(super) struct Found<'a> {
    list: &'a [u8],
    table: [Slot; TABLE_LEN],
    /// Which of the table are there.
    present: u64,
    /// Codes from [`TABLE_LEN`] on, sorted.
    others: Vec<(u8, Slot)>,
    pub(super) problems: Problems,
}

impl<'a> Found<'a> {
    /// The attribute of a code of the table.
    pub(super) fn get(&self, code: u8) -> Option<Raw<'a>> {
        let slot = self.table.get(usize::from(code)).filter(|slot| slot.head != 0)?;
        Some(self.raw(*slot))
    }

    /// Codes of the table that are there, one bit each.
    pub(super) const fn present(&self) -> u64 {
        self.present
    }

    /// Attributes that the table has no place for, by ascending code.
    pub(super) fn others(&self) -> impl Iterator<Item = (u8, Raw<'a>)> {
        self.others.iter().map(|(code, slot)| (*code, self.raw(*slot)))
    }

    /// Notes what is wrong with an attribute.
    pub(super) fn note(&mut self, code: u8, disposition: Disposition, fault: Fault) {
        self.problems.push(Problem { code, disposition, fault });
    }

    fn raw(&self, slot: Slot) -> Raw<'a> {
        let at = slot.at as usize;
        let head = usize::from(slot.head);
        let octets = self.list.get(at..at + head + usize::from(slot.length)).unwrap_or_default();
        Raw { flags: slot.flags, value: octets.get(head..).unwrap_or_default(), octets }
    }

    fn insert(&mut self, code: u8, slot: Slot) -> Result<(), Fault> {
        match self.table.get_mut(usize::from(code)) {
            Some(place) if place.head == 0 => {
                *place = slot;
                self.present |= 1 << code;
                Ok(())
            }
            Some(_) => Err(Fault::Duplicate),
            None => match self.others.binary_search_by_key(&code, |(code, _)| *code) {
                Ok(_) => Err(Fault::Duplicate),
                Err(place) => {
                    self.others.insert(place, (code, slot));
                    Ok(())
                }
            },
        }
    }
}

/// Cuts the list into attributes. Of a code that is there twice the first one counts (RFC 7606 section 3 g), except that the
/// two attributes that carry prefixes must be unique. A list that ends inside an attribute is cut there (section 4).
pub(super) fn walk(list: &[u8]) -> Result<Found<'_>, UpdateError> {
    let mut found =
        Found { list, table: [NOWHERE; TABLE_LEN], present: 0, others: Vec::new(), problems: Problems::default() };
    let mut at = 0;
    while at < list.len() {
        let rest = list.get(at..).unwrap_or_default();
        let Some((flags, code, head, length)) = split_head(rest) else {
            found.note(0, Disposition::Withdraw, Fault::Truncated);
            break;
        };
        let octets = usize::from(head) + usize::from(length);
        if octets > rest.len() {
            found.note(0, Disposition::Withdraw, Fault::Truncated);
            break;
        }
        let slot = Slot { at: u32::try_from(at).unwrap_or(u32::MAX), length, head, flags };
        if let Err(fault) = found.insert(code, slot) {
            if matches!(code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
                return Err(UpdateError::new(code, fault, &[]));
            }
            found.note(code, Disposition::Discard, fault);
        }
        at += octets;
    }
    Ok(found)
}

/// The first attribute of a code as it came, for the data of a NOTIFICATION.
pub(super) fn octets_of(list: &[u8], code: u8) -> &[u8] {
    let mut rest = list;
    while let Some((_, this, head, length)) = split_head(rest) {
        let Some((octets, after)) = rest.split_at_checked(usize::from(head) + usize::from(length)) else {
            break;
        };
        if this == code {
            return octets;
        }
        rest = after;
    }
    &[]
}

/// Flags, code, octets of the head and of the value.
fn split_head(octets: &[u8]) -> Option<(u8, u8, u8, u16)> {
    let (&[flags, code, length], after) = octets.split_first_chunk::<3>()?;
    if flags & flag::EXTENDED_LENGTH == 0 {
        Some((flags, code, 3, u16::from(length)))
    } else {
        Some((flags, code, 4, u16::from_be_bytes([length, *after.first()?])))
    }
}
