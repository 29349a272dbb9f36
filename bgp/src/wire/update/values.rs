//! The value of each attribute: checked, and written in canonical form (RFC 7606 section 7).

use super::{
    Context, as_path, multiprotocol,
    problem::{Disposition, Fault, UpdateError},
    walk::{Found, Raw},
};
use crate::{
    NextHop,
    family::Family,
    id::Asn,
    session::PeerKind,
    wire::{
        attributes::{Origin, code, flag, known_flags, write_attribute},
        nlri::Nlri,
    },
};

/// What is not part of the canonical form.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts<'a> {
    /// NEXT_HOP.
    pub(super) next_hop: Option<NextHop>,
    /// MP_REACH_NLRI of a negotiated family.
    pub(super) reach: Option<multiprotocol::Reach<'a>>,
    /// MP_REACH_NLRI has prefixes, of whatever family.
    pub(super) reach_is_there: bool,
    /// MP_UNREACH_NLRI of a negotiated family.
    pub(super) unreach: Option<Nlri<'a>>,
    /// It is the only attribute.
    pub(super) only_unreach: bool,
    /// It is the only attribute, and without prefixes.
    pub(super) end_of_rib: Option<Family>,
}

/// What follows from a malformed value.
struct Malformed {
    disposition: Disposition,
    fault: Fault,
}

const fn withdraw(fault: Fault) -> Malformed {
    Malformed { disposition: Disposition::Withdraw, fault }
}

const fn discard(fault: Fault) -> Malformed {
    Malformed { disposition: Disposition::Discard, fault }
}

/// Faults found in an AS_PATH or a next hop leave no path to use.
impl From<Fault> for Malformed {
    fn from(fault: Fault) -> Self {
        withdraw(fault)
    }
}

/// Checks all attributes that were found and writes them. `announces` says that there are prefixes outside of them.
pub(super) fn read<'a>(
    context: &Context,
    found: &mut Found<'a>,
    out: &mut Vec<u8>,
    announces: bool,
) -> Result<Parts<'a>, UpdateError> {
    let mut parts = Parts::default();
    let mut present = found.present();
    while present != 0 {
        // At most 63, so that it is a code.
        let code = present.trailing_zeros() as u8;
        present &= present - 1;
        let Some(raw) = found.get(code) else { continue };
        // RFC 4760 section 3: without prefixes of its own it means nothing. Some speakers leave it 0.0.0.0 then.
        if code == code::NEXT_HOP && !announces && found.get(code::MP_REACH_NLRI).is_some() {
            continue;
        }
        if let Err(malformed) = one(context, found, code, raw, &mut parts, out)? {
            found.note(code, malformed.disposition, malformed.fault);
        }
    }
    for (code, raw) in found.others() {
        unknown(code, raw, out)?;
    }
    parts.only_unreach = found.present() == 1 << code::MP_UNREACH_NLRI && found.others().next().is_none();
    parts.end_of_rib = parts.unreach.filter(|nlri| parts.only_unreach && nlri.is_empty()).map(Nlri::family);

    // RFC 7606 section 3 d.
    let reaches = parts.reach.is_some_and(|reach| !reach.nlri.is_empty());
    let mandatory =
        [(code::ORIGIN, announces || reaches), (code::AS_PATH, announces || reaches), (code::NEXT_HOP, announces)];
    for (code, needed) in mandatory {
        if needed && found.get(code).is_none() {
            found.note(code, Disposition::Withdraw, Fault::Missing);
        }
    }
    Ok(parts)
}

/// Checks one attribute and writes it, if it is to be kept. The outer error resets the session.
fn one<'a>(
    context: &Context,
    found: &Found<'a>,
    code: u8,
    raw: Raw<'a>,
    parts: &mut Parts<'a>,
    out: &mut Vec<u8>,
) -> Result<Result<(), Malformed>, UpdateError> {
    let Some(flags) = known_flags(code) else {
        return unknown(code, raw, out).map(Ok);
    };
    if !is_expected(context, code) {
        return Ok(Err(discard(Fault::NotExpected)));
    }
    let reset = |fault| UpdateError::new(code, fault, raw.octets);
    // These two are read before their flags are judged: their prefixes are needed to treat them as withdrawn.
    match code {
        code::MP_REACH_NLRI => {
            let (reach, there) = multiprotocol::reach(context, raw.value).map_err(reset)?;
            parts.reach_is_there = there;
            match reach {
                Ok(reach) => parts.reach = Some(reach),
                Err(fault) => return Ok(Err(discard(fault))),
            }
        }
        code::MP_UNREACH_NLRI => match multiprotocol::unreach(context, raw.value).map_err(reset)? {
            Ok(nlri) => parts.unreach = Some(nlri),
            Err(fault) => return Ok(Err(discard(fault))),
        },
        _ => {}
    }
    let kept = flag::OPTIONAL | flag::TRANSITIVE;
    if raw.flags & kept != flags {
        return Ok(Err(withdraw(Fault::Flags(raw.flags))));
    }
    // Partial stays once somebody has set it (RFC 4271 section 5); elsewhere it means nothing.
    let partial = if flags == kept { raw.flags & flag::PARTIAL } else { 0 };
    Ok(value(context, found, code, raw, parts).and_then(|form| write(context, found, code, flags | partial, form, out)))
}

/// Attributes that a peer of this kind may send.
fn is_expected(context: &Context, code: u8) -> bool {
    match code {
        // RFC 4271 section 5.1.5; inside a confederation it goes everywhere (RFC 5065 section 4).
        code::LOCAL_PREF => context.kind != PeerKind::External,
        // RFC 4456: they never leave an AS.
        code::ORIGINATOR_ID | code::CLUSTER_LIST => context.kind == PeerKind::Internal,
        // RFC 6793 section 4.1.
        code::AS4_PATH | code::AS4_AGGREGATOR => !context.asn4,
        _ => true,
    }
}

/// How a checked value is written.
enum Form<'a> {
    /// Not at all.
    Nothing,
    /// As it came.
    Same(&'a [u8]),
    /// AS_PATH of two-octet numbers.
    WidePath(&'a [u8], as_path::Shape),
    /// AGGREGATOR of a two-octet number, or what stands for it.
    WideAggregator([u8; 8]),
    /// Large communities with repetitions.
    Repeated(&'a [[u8; 12]]),
}

fn value<'a>(
    context: &Context,
    found: &Found<'a>,
    code: u8,
    raw: Raw<'a>,
    parts: &mut Parts<'a>,
) -> Result<Form<'a>, Malformed> {
    let value = raw.value;
    let length = Fault::Length(value.len());
    match code {
        code::ORIGIN => match value {
            [octet] => Origin::from_octet(*octet).map(|_| ()).ok_or(withdraw(Fault::Value(*octet)))?,
            _ => return Err(withdraw(length)),
        },
        code::AS_PATH => {
            let shape = as_path::check_for(context, value)?;
            if !context.asn4 {
                return Ok(Form::WidePath(value, shape));
            }
        }
        code::NEXT_HOP => {
            let octets = value.try_into().map_err(|_| withdraw(length))?;
            let refused = Fault::NextHop(multiprotocol::refused_address(value));
            parts.next_hop = Some(multiprotocol::ipv4(octets).ok_or(refused)?);
            return Ok(Form::Nothing);
        }
        code::MP_REACH_NLRI => {
            if parts.reach.is_some_and(|reach| reach.next_hop.is_none() && !reach.nlri.is_empty()) {
                let octets = value.get(4..).unwrap_or_default();
                let octets =
                    octets.get(..value.get(3).map_or(0, |length| usize::from(*length).min(16))).unwrap_or_default();
                return Err(withdraw(Fault::NextHop(multiprotocol::refused_address(octets))));
            }
            return Ok(Form::Nothing);
        }
        code::MP_UNREACH_NLRI => return Ok(Form::Nothing),
        code::MED | code::LOCAL_PREF | code::ORIGINATOR_ID | code::OTC if value.len() != 4 => {
            return Err(withdraw(length));
        }
        code::ATOMIC_AGGREGATE if !value.is_empty() => return Err(discard(length)),
        code::AGGREGATOR => return aggregator(context, found, value),
        code::COMMUNITIES | code::CLUSTER_LIST if !is_list_of::<4>(value) => return Err(withdraw(length)),
        code::EXTENDED_COMMUNITIES if !is_list_of::<8>(value) => return Err(withdraw(length)),
        code::LARGE_COMMUNITIES => match value.as_chunks::<12>() {
            (values @ [_, ..], []) if has_repetitions(values) => return Ok(Form::Repeated(values)),
            ([_, ..], []) => {}
            _ => return Err(withdraw(length)),
        },
        code::AS4_PATH => {
            as_path::check_as4(value, false).map_err(discard)?;
            if context.refuse_as_sets {
                as_path::check_as4(value, true)?;
            }
            return Ok(Form::Nothing);
        }
        code::AS4_AGGREGATOR => {
            as4_aggregator(value).map_err(discard)?;
            return Ok(Form::Nothing);
        }
        _ => {}
    }
    Ok(Form::Same(value))
}

fn write(
    context: &Context,
    found: &Found<'_>,
    code: u8,
    flags: u8,
    form: Form<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    match form {
        Form::Nothing => {}
        Form::Same(value) => write_attribute(out, flags, code, value),
        Form::WideAggregator(value) => write_attribute(out, flags, code, &value),
        Form::WidePath(path, shape) => write_open(out, flags, code, |out| match usable_as4_path(context, found) {
            Some((as4_path, as4_shape)) => as_path::merge(path, shape, as4_path, as4_shape, out),
            None => as_path::widen(path, out),
        })?,
        Form::Repeated(values) => write_open(out, flags, code, |out| write_without_repetitions(values, out))?,
    }
    Ok(())
}

/// Writes an attribute whose length is known only afterwards.
fn write_open(out: &mut Vec<u8>, flags: u8, code: u8, value: impl FnOnce(&mut Vec<u8>)) -> Result<(), Malformed> {
    let start = out.len();
    out.extend_from_slice(&[flags, code, 0]);
    let value_start = out.len();
    value(out);
    let length = u16::try_from(out.len() - value_start).map_err(|_| {
        out.truncate(start);
        withdraw(Fault::PathTooLong)
    })?;
    match u8::try_from(length) {
        Ok(length) => out[start + 2] = length,
        Err(_) => {
            let [high, low] = length.to_be_bytes();
            out[start] |= flag::EXTENDED_LENGTH;
            out[start + 2] = high;
            out.insert(start + 3, low);
        }
    }
    Ok(())
}

/// AGGREGATOR with four octets for its AS (RFC 7606 section 7.7: otherwise it is dropped).
fn aggregator<'a>(context: &Context, found: &Found<'a>, value: &'a [u8]) -> Result<Form<'a>, Malformed> {
    let expected = context.as_width() + 4;
    if value.len() != expected {
        return Err(discard(Fault::Length(value.len())));
    }
    if value.iter().take(context.as_width()).all(|octet| *octet == 0) {
        return Err(discard(Fault::AsZero));
    }
    let Some((&[high, low], &[a, b, c, d])) =
        value.split_first_chunk::<2>().and_then(|(asn, id)| Some((asn, id.as_array::<4>()?)))
    else {
        return Ok(Form::Same(value));
    };
    let as4 = found.get(code::AS4_AGGREGATOR).and_then(|raw| as4_aggregator(raw.value).ok());
    let is_trans = [high, low] == Asn::TRANS.two_octets().to_be_bytes();
    Ok(Form::WideAggregator(as4.filter(|_| is_trans).unwrap_or([0, 0, high, low, a, b, c, d])))
}

fn as4_aggregator(value: &[u8]) -> Result<[u8; 8], Fault> {
    let octets: [u8; 8] = value.try_into().map_err(|_| Fault::Length(value.len()))?;
    if octets.starts_with(&[0; 4]) { Err(Fault::AsZero) } else { Ok(octets) }
}

/// AS4_PATH, unless it is malformed or somebody who does not know it has aggregated since (RFC 6793 section 4.2.3).
fn usable_as4_path<'a>(context: &Context, found: &Found<'a>) -> Option<(&'a [u8], as_path::Shape)> {
    let raw = found.get(code::AS4_PATH).filter(|raw| !context.asn4 && has_flags(*raw, code::AS4_PATH))?;
    let trans = Asn::TRANS.two_octets().to_be_bytes();
    let aggregated_since = found.get(code::AS4_AGGREGATOR).is_some()
        && found.get(code::AGGREGATOR).is_some_and(|aggregator| !aggregator.value.starts_with(&trans));
    if aggregated_since {
        return None;
    }
    Some((raw.value, as_path::check_as4(raw.value, false).ok()?))
}

fn has_flags(raw: Raw<'_>, code: u8) -> bool {
    Some(raw.flags & (flag::OPTIONAL | flag::TRANSITIVE)) == known_flags(code)
}

/// Passes on what this speaker does not know, marked as such, or drops it (RFC 4271 section 5).
fn unknown(code: u8, raw: Raw<'_>, out: &mut Vec<u8>) -> Result<(), UpdateError> {
    if raw.flags & flag::OPTIONAL == 0 {
        return Err(UpdateError::new(code, Fault::Unrecognized, raw.octets));
    }
    if raw.flags & flag::TRANSITIVE != 0 {
        write_attribute(out, flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL, code, raw.value);
    }
    Ok(())
}

const fn is_list_of<const N: usize>(value: &[u8]) -> bool {
    !value.is_empty() && value.len().is_multiple_of(N)
}

/// Large communities that are compared each with each; of more of them a sorted copy is made.
const COMPARED_MAX: usize = 32;

fn has_repetitions(values: &[[u8; 12]]) -> bool {
    if values.len() <= COMPARED_MAX {
        return values.iter().enumerate().any(|(index, value)| values.iter().take(index).any(|before| before == value));
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// RFC 8092 section 5: of equal ones the first is kept.
fn write_without_repetitions(values: &[[u8; 12]], out: &mut Vec<u8>) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|index| values.get(*index));
    order.dedup_by_key(|index| values.get(*index));
    order.sort_unstable();
    out.extend(order.into_iter().filter_map(|index| values.get(index)).flatten());
}
