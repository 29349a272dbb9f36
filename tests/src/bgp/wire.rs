//! The little of BGP that a generator and a sink need: written apart from the speaker that is tested, so that the two cannot agree on
//! a mistake, and fast, so that it is not what is measured.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail, ensure};

/// Octets of a header.
pub const HEADER: usize = 19;
const MESSAGE_MAX: usize = 4096;

/// Type of an OPEN.
pub const OPEN: u8 = 1;
/// Type of an UPDATE.
pub const UPDATE: u8 = 2;
/// Type of a NOTIFICATION.
pub const NOTIFICATION: u8 = 3;
/// Type of a KEEPALIVE.
pub const KEEPALIVE: u8 = 4;

/// An IPv4 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its address as a number; no bit behind the length is set.
    pub address: u32,
    /// Its length.
    pub length: u8,
}

impl Prefix {
    /// As one number, never 0.
    pub fn key(self) -> u64 {
        u64::from(self.address) << 8 | u64::from(self.length) | 1 << 63
    }

    fn put(self, out: &mut Vec<u8>) {
        out.push(self.length);
        out.extend_from_slice(&self.address.to_be_bytes()[..usize::from(self.length.div_ceil(8))]);
    }
}

/// What the prefixes of one set share. By default nothing but an origin.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// 0 for IGP, 1 for EGP, 2 for incomplete.
    pub origin: u8,
    /// Numbers behind the sender's own.
    pub path: Vec<u32>,
    /// `MULTI_EXIT_DISC`.
    pub med: Option<u32>,
    /// Communities.
    pub communities: Vec<u32>,
    /// Large communities.
    pub large: Vec<[u32; 3]>,
    /// AS and address of the aggregator.
    pub aggregator: Option<(u32, u32)>,
    /// `ATOMIC_AGGREGATE`.
    pub atomic: bool,
}

impl Attributes {
    fn put(&self, out: &mut Vec<u8>, asn: u32, next_hop: Ipv4Addr) {
        const WELL_KNOWN: u8 = 0x40;
        const OPTIONAL: u8 = 0x80;
        const TRANSITIVE: u8 = 0xc0;
        let mut attribute = |flags: u8, kind: u8, value: &[u8]| {
            match u8::try_from(value.len()) {
                Ok(length) => out.extend_from_slice(&[flags, kind, length]),
                Err(_) => {
                    out.extend_from_slice(&[flags | 0x10, kind]);
                    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
                }
            }
            out.extend_from_slice(value);
        };
        let octets = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
        attribute(WELL_KNOWN, 1, &[self.origin]);
        let path = [vec![2, self.path.len() as u8 + 1], asn.to_be_bytes().to_vec(), octets(&self.path)].concat();
        attribute(WELL_KNOWN, 2, &path);
        attribute(WELL_KNOWN, 3, &next_hop.octets());
        if let Some(med) = self.med {
            attribute(OPTIONAL, 4, &med.to_be_bytes());
        }
        if self.atomic {
            attribute(WELL_KNOWN, 6, &[]);
        }
        if let Some((asn, address)) = self.aggregator {
            attribute(TRANSITIVE, 7, &octets(&[asn, address]));
        }
        if !self.communities.is_empty() {
            attribute(TRANSITIVE, 8, &octets(&self.communities));
        }
        if !self.large.is_empty() {
            attribute(TRANSITIVE, 32, &octets(&self.large.concat()));
        }
    }
}

/// Appends UPDATEs that announce these prefixes: one, unless they do not fit.
pub fn announce(out: &mut Vec<u8>, attributes: &Attributes, asn: u32, next_hop: Ipv4Addr, prefixes: &[Prefix]) {
    let mut encoded = Vec::new();
    attributes.put(&mut encoded, asn, next_hop);
    let mut rest = prefixes.iter().peekable();
    while rest.peek().is_some() {
        let start = begin(out);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(encoded.len() as u16).to_be_bytes());
        out.extend_from_slice(&encoded);
        fill(out, start, &mut rest);
        end(out, start, UPDATE);
    }
}

/// Appends UPDATEs that withdraw these prefixes.
pub fn withdraw(out: &mut Vec<u8>, prefixes: &[Prefix]) {
    let mut rest = prefixes.iter().peekable();
    while rest.peek().is_some() {
        let start = begin(out);
        out.extend_from_slice(&[0, 0]);
        fill(out, start, &mut rest);
        let length = (out.len() - start - HEADER - 2) as u16;
        out[start + HEADER..start + HEADER + 2].copy_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        end(out, start, UPDATE);
    }
}

/// Appends prefixes as long as the message has room for one more and for the length of no attributes.
fn fill<'a>(out: &mut Vec<u8>, start: usize, rest: &mut std::iter::Peekable<impl Iterator<Item = &'a Prefix>>) {
    while out.len() - start + 5 + 2 <= MESSAGE_MAX
        && let Some(prefix) = rest.next()
    {
        prefix.put(out);
    }
}

/// Appends an OPEN with the capabilities for IPv4 unicast, route refresh and four-octet numbers.
pub fn open(out: &mut Vec<u8>, asn: u32, identifier: Ipv4Addr, hold_time_s: u16) {
    let start = begin(out);
    let short = u16::try_from(asn).unwrap_or(23456);
    out.push(4);
    out.extend_from_slice(&short.to_be_bytes());
    out.extend_from_slice(&hold_time_s.to_be_bytes());
    out.extend_from_slice(&identifier.octets());
    let capabilities = [&[1, 4, 0, 1, 0, 1, 2, 0, 65, 4][..], &asn.to_be_bytes()].concat();
    out.extend_from_slice(&[capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    out.extend_from_slice(&capabilities);
    end(out, start, OPEN);
}

/// Appends a KEEPALIVE.
pub fn keepalive(out: &mut Vec<u8>) {
    let start = begin(out);
    end(out, start, KEEPALIVE);
}

fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&[0, 0, 0]);
    start
}

fn end(out: &mut [u8], start: usize, kind: u8) {
    let length = (out.len() - start) as u16;
    out[start + 16..start + 18].copy_from_slice(&length.to_be_bytes());
    out[start + 18] = kind;
}

/// Type and body of a message, and the octets behind it.
pub type Message<'a> = (u8, &'a [u8], &'a [u8]);

/// The first whole message: its type, its body, and what is behind it.
///
/// # Errors
/// When what is there is no message.
pub fn split(buffer: &[u8]) -> anyhow::Result<Option<Message<'_>>> {
    let Some(header) = buffer.get(..HEADER) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    ensure!(length >= HEADER, "a message of {length} octets");
    if buffer.len() < length {
        return Ok(None);
    }
    Ok(Some((header[18], &buffer[HEADER..length], &buffer[length..])))
}

/// Calls `seen` for each prefix of an UPDATE, with whether it is announced.
///
/// # Errors
/// When it is malformed, or `seen` fails.
pub fn update(body: &[u8], mut seen: impl FnMut(Prefix, bool) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (withdrawn, rest) = counted(body)?;
    prefixes(withdrawn, |prefix| seen(prefix, false))?;
    let (_, announced) = counted(rest)?;
    prefixes(announced, |prefix| seen(prefix, true))
}

fn counted(octets: &[u8]) -> anyhow::Result<(&[u8], &[u8])> {
    let (length, rest) = octets.split_first_chunk::<2>().context("an UPDATE is too short")?;
    rest.split_at_checked(u16::from_be_bytes(*length).into()).context("a field reaches beyond an UPDATE")
}

fn prefixes(mut octets: &[u8], mut seen: impl FnMut(Prefix) -> anyhow::Result<()>) -> anyhow::Result<()> {
    while let Some((&length, rest)) = octets.split_first() {
        let count = usize::from(length.div_ceil(8));
        if count > 4 || rest.len() < count {
            bail!("a prefix of length {length} reaches beyond an UPDATE");
        }
        let mut address = [0; 4];
        address[..count].copy_from_slice(&rest[..count]);
        seen(Prefix { address: u32::from_be_bytes(address), length })?;
        octets = &rest[count..];
    }
    Ok(())
}
