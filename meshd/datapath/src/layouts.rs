//! Elements of earlier layouts, as far as they differ from today's.
//!
//! | layout | what changed |
//! |---|---|
//! | 2 | first one that was released for trial |
//! | 3 | a backend names the service it serves; tables of source ranges, of sockets and of far ends of tunnels |
//! | 4 | connections are in buckets of their own kind; before they were in a hash table of the kernel |
//! | 5 | a map that says until when resets are held back; lines in front of the identities of IPv4 |
//! | 6 | where a connection's entry is depends on its direction, too |

use std::collections::HashMap;

use meshd_abi::{Address, Backend, Connection, ConnectionKey};

use crate::{Connections, DatapathError, generation::Generation, takeover::all};

/// Since this layout the elements of all maps that programs write themselves are what they are today, but those of connections, which
/// another kind of map tells apart.
pub(crate) const LIVE_SINCE: u32 = 2;

/// Since this layout connections are where they are today.
pub(crate) const CONNECTIONS_SINCE: u32 = 6;

/// What a map held, with keys `K` and values `V`.
type Elements<K, V> = Result<Vec<(K, V)>, DatapathError>;

/// A backend of layout 2.
#[repr(C)]
#[derive(Clone, Copy)]
struct Backend2<A> {
    address: A,
    next_hop: u32,
    port: u16,
    state: u8,
    local: u8,
}

/// Backends that are in use. `owners` tells the service that a backend serves, where its element does not.
pub(crate) fn backends<A: Address>(
    from: &Generation,
    family: &str,
    owners: &HashMap<u32, u32>,
) -> Elements<u32, Backend<A>> {
    let name = format!("BACKENDS{family}");
    if from.layout > 2 {
        let mut all: Vec<(u32, Backend<A>)> = all(&from.path, &name)?;
        all.retain(|(_, backend)| backend.state != 0);
        return Ok(all);
    }
    let all: Vec<(u32, Backend2<A>)> = all(&from.path, &name)?;
    let used = all.into_iter().filter(|(_, backend)| backend.state != 0);
    let today = used.map(|(index, Backend2 { address, next_hop, port, state, local })| {
        let owner = owners.get(&index).copied().unwrap_or(0);
        (index, Backend { address, next_hop, port, state, local, owner })
    });
    Ok(today.collect())
}

/// Known connections.
pub(crate) fn connections<A: Address>(
    from: &Generation,
    name: &'static str,
) -> Elements<ConnectionKey<A>, Connection<A>> {
    if from.layout < 4 {
        return all(&from.path, name);
    }
    Connections::open(&from.path, name)?.map_or_else(|| Ok(Vec::new()), |table| table.all())
}
