//! Fragments: later ones have no ports, so those of the first are remembered.

use meshd_abi::{Fragment, FragmentKey};
use meshd_steps::{Packet, Part};

use crate::maps::Tables;

/// Fills in the ports of a later fragment, and remembers those of a first one. False: the ports are not known.
#[inline(always)]
pub fn complete<A: Tables>(packet: &mut Packet<A>) -> bool {
    if packet.part == Part::Whole {
        return true;
    }
    let key = FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        id: packet.id,
        protocol: packet.key.protocol,
        reserved: [0; 3],
    };
    if packet.part == Part::First {
        let ports = Fragment { source_port: packet.key.source_port, destination_port: packet.key.destination_port };
        A::put_fragment(&key, &ports);
        return true;
    }
    let Some(ports) = A::fragment(&key) else { return false };
    packet.key.source_port = ports.source_port;
    packet.key.destination_port = ports.destination_port;
    true
}
