//! Mistakes made on purpose.

use ::bgp::{
    RouterId,
    wire::header::{LengthLimit, MessageType, next_frame},
};

use crate::clock::Rng;

/// A deliberate mistake, to prove that it would be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Some UPDATEs are never sent.
    LoseUpdates,
    /// What was sent as one arrives in another order.
    SwapPieces,
    /// No timer is ever handled.
    DeafTimers,
    /// A speaker that restarted does not originate its prefixes again.
    ForgetOrigin,
    /// The reflectors do not reflect.
    NoReflection,
    /// One speaker has another identifier than the others think.
    WrongIdentifier,
    /// Those that are to be told several paths are told one.
    OnePath,
    /// A speaker that is gone is not missed: connections to it stay.
    KeepConnections,
}

/// The speaker with the wrong identifier, one whose right identifier is high.
const MISTAKEN: usize = 19;

impl Sabotage {
    /// Takes messages out of what a speaker said.
    pub(crate) fn spoil_octets(self, rng: &mut Rng, out: &mut Vec<u8>) {
        if self != Self::LoseUpdates {
            return;
        }
        let whole = std::mem::take(out);
        let mut rest = whole.as_slice();
        while let Ok(Some(frame)) = next_frame(rest, LengthLimit::Extended) {
            let is_update = frame.header.message_type() == MessageType::Update;
            if !is_update || !rng.one_in(20) {
                out.extend_from_slice(&rest[..rest.len() - frame.rest.len()]);
            }
            rest = frame.rest;
        }
    }

    /// The identifier a speaker is given.
    pub(crate) fn router_id(self, speaker: usize, right: RouterId) -> RouterId {
        if self == Self::WrongIdentifier && speaker == MISTAKEN { RouterId(1) } else { right }
    }
}
