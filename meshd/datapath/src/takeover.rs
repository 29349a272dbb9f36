//! What new maps take over from those of an earlier generation.
//!
//! What the programs write themselves is not copied where that can be helped: a map of connections whose shape and layout are as before belongs
//! to both generations ([`share`]), so that the old programs and the new ones see the same while one after the other is replaced.
//!
//! Of the rest first everything, before any program looks at the new maps. Then the connections of a table that got another size once more immediately before
//! the first attachment gets its new program, and again after the last, because packets went on through the old programs meanwhile. Of a
//! connection that begins between those two packets are lost and come again: the programs hold back what would end it (map `HANDOVER`). What the old generation had no map for
//! begins empty, and what there is no room for is left behind and counted.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use aya::maps::{MapData, MapInfo};

use meshd_abi::{
    Address, AffinityKey, AffinityValue, Backend, CidrKey, Connection, ConnectionKey, Direct, Identity, Policy,
    PolicyKey, RangeKey, ReceiverKey, Service, ServiceKey, SocketClient, SocketKey, SocketValue, Tunnel, V6,
};
use tracing::{info, warn};

use crate::{
    Connections, DatapathError, FamilyMaps, Maps, Table,
    connections::client_of,
    generation::Generation,
    layouts, pins, programs,
    shape::{MapSpec, Sizes},
};

/// What an error calls a map of an earlier generation.
pub(crate) const OLD: &str = "of an earlier generation";

/// Maps that programs write with every packet or every connection.
const LIVE: [&str; 10] = [
    "SEED",
    "CONNECTIONS4",
    "CONNECTIONS6",
    "AFFINITY4",
    "AFFINITY6",
    "FRAGMENTS4",
    "FRAGMENTS6",
    "SOCKETS4",
    "SOCKETS6",
    "SOCKET_AFFINITY",
];

/// Names of maps that belong to both generations.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Shared(BTreeSet<&'static str>);

impl Shared {
    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// True when no connection has to be taken over.
    pub(crate) fn has_connections(&self) -> bool {
        self.has("CONNECTIONS4") && self.has("CONNECTIONS6")
    }
}

/// Pins live maps of an earlier generation in this one as well where they can serve both. To be called before this one's maps are
/// made; says also what an earlier process has shared.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn share(from: &Generation, to: &Generation, specs: &[MapSpec]) -> Result<Shared, DatapathError> {
    let mut shared = BTreeSet::new();
    if from.layout < layouts::LIVE_SINCE {
        return Ok(Shared::default());
    }
    let has_moved = |name: &str| name.starts_with("CONNECTIONS") && from.layout < layouts::CONNECTIONS_SINCE;
    for spec in specs.iter().filter(|spec| LIVE.contains(&spec.name) && !has_moved(spec.name)) {
        let [old, new] = [from, to].map(|generation| generation.path.join(spec.name));
        if pins::shape_of(&old, spec.name)? != Some(spec.shape) {
            continue;
        }
        let error = |source| DatapathError::Map { map: spec.name, source: Box::new(source) };
        if !new.exists() {
            let map = MapData::from_pin(&old).map_err(error)?;
            map.pin(&new).map_err(|source| DatapathError::Pin { path: new.clone(), source })?;
        }
        let number = |pin: &Path| MapInfo::from_pin(pin).map(|info| info.id()).map_err(error);
        if number(&old)? == number(&new)? {
            shared.insert(spec.name);
        }
    }
    Ok(Shared(shared))
}

/// How many elements were taken over, and how many there was no room for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Taken {
    elements: usize,
    left: usize,
}

/// Takes everything over.
///
/// # Errors
/// When a map cannot be read or written.
pub(crate) fn everything(maps: &Maps, sizes: &Sizes, from: &Generation, shared: &Shared) -> Result<(), DatapathError> {
    let mut taken = Taken::default();
    let path = &from.path;
    taken.indexed(pinned(path, "NEXT_HOPS")?, &maps.next_hops, sizes.next_hops)?;
    if let Some(old) = pinned(path, "NEIGHBORS")? {
        let neighbors = old.all()?.into_iter().filter(|(_, index): &(_, u32)| *index < sizes.next_hops);
        taken.put(neighbors.collect(), &maps.neighbors);
    }
    let tunnels: Vec<(u32, Tunnel)> = all(path, "TUNNELS")?;
    let used = tunnels.into_iter().filter(|(index, tunnel)| *index < sizes.next_hops && *tunnel != Tunnel::default());
    taken.put(used.collect(), &maps.tunnels);
    let far_ends: Vec<(V6, u32)> = all(path, "FAR_ENDS")?;
    taken.put(far_ends.into_iter().filter(|(_, index)| *index < sizes.next_hops).collect(), &maps.far_ends);
    taken.indexed(pinned(path, "MEMBERS")?, &maps.members, sizes.members)?;
    if let Some(old) = pinned::<u32, u32>(path, "MAGLEV")? {
        for (index, id) in old.all()?.into_iter().filter(|(index, _)| *index < sizes.maglev) {
            maps.share_chunk(index, id)?;
            taken.elements += 1;
        }
    }
    taken.put::<PolicyKey, Policy>(all(path, "POLICY")?, &maps.policy);
    if !shared.has("SOCKET_AFFINITY") {
        taken.put::<SocketClient, AffinityValue>(all(path, "SOCKET_AFFINITY")?, &maps.socket_affinity);
    }
    taken.family(&maps.v4, "4", sizes, from)?;
    taken.family(&maps.v6, "6", sizes, from)?;
    taken.live(&maps.v4, "4", from, shared)?;
    taken.live(&maps.v6, "6", from, shared)?;
    info!(from = %path.display(), elements = taken.elements, "took over what the maps before held");
    if taken.left > 0 {
        warn!(elements = taken.left, "left behind what the new maps have no room for");
    }
    Ok(())
}

/// Which service each backend serves, by what the services' members name.
fn owners<A>(path: &Path, services: &[(ServiceKey<A>, Service)]) -> Result<HashMap<u32, u32>, DatapathError> {
    let members: Vec<u32> = all(path, "MEMBERS")?.into_iter().map(|(_, backend): (u32, u32)| backend).collect();
    let mut owners = HashMap::new();
    for (_, service) in services {
        let own = members.iter().skip(service.members as usize).take(service.count.into());
        owners.extend(own.map(|backend| (*backend, service.id)));
    }
    Ok(owners)
}

/// Every element of a pinned map; none when there is no such map of this layout.
pub(crate) fn all<K: Copy, V: Copy>(path: &Path, name: &str) -> Result<Vec<(K, V)>, DatapathError> {
    pinned(path, name)?.map_or_else(|| Ok(Vec::new()), |table| table.all())
}

/// A pinned map of an earlier generation. `None` when there is none, or when its elements are not what is asked for.
fn pinned<K: Copy, V: Copy>(path: &Path, name: &str) -> Result<Option<Table<K, V>>, DatapathError> {
    let pin = path.join(name);
    let Some(shape) = pins::shape_of(&pin, OLD)? else { return Ok(None) };
    if shape.key_size as usize != size_of::<K>() || shape.value_size as usize != size_of::<V>() {
        warn!(map = %pin.display(), %shape, "not taken over: its elements are others");
        return Ok(None);
    }
    programs::table(&pin, OLD).map(Some)
}

/// Takes over connections that were made or used since everything was taken over.
///
/// # Errors
/// When a map cannot be read.
pub(crate) fn connections(maps: &Maps, from: &Generation, shared: &Shared) -> Result<(), DatapathError> {
    let mut taken = Taken::default();
    taken.later(&maps.v4, "4", from, shared)?;
    taken.later(&maps.v6, "6", from, shared)?;
    if taken.left > 0 {
        warn!(connections = taken.left, "left behind what the new maps have no room for");
    }
    Ok(())
}

impl Taken {
    fn family<A: Address>(
        &mut self,
        maps: &FamilyMaps<A>,
        family: &str,
        sizes: &Sizes,
        from: &Generation,
    ) -> Result<(), DatapathError> {
        let path = &from.path;
        let named = |name: &str| format!("{name}{family}");
        let services: Vec<(ServiceKey<A>, Service)> = all(path, &named("SERVICES"))?;
        let owners = owners(path, &services)?;
        let backends: Vec<(u32, Backend<A>)> = layouts::backends(from, family, &owners)?;
        self.put(backends.into_iter().filter(|(index, _)| *index < sizes.backends).collect(), &maps.backends);
        // Whoever takes over looks through all services afterwards.
        self.put(services, maps.services.table());
        let direct: Vec<(u32, Direct<A>)> = all(path, &named("DIRECT"))?;
        let direct =
            direct.into_iter().filter(|(index, direct)| *index < sizes.backends && *direct != Direct::default());
        self.put(direct.collect(), &maps.direct);
        self.put::<ReceiverKey<A>, u32>(all(path, &named("RECEIVERS"))?, &maps.receivers);
        self.put::<A, Identity>(all(path, &named("IDENTITIES"))?, maps.identities.table());
        self.put::<CidrKey<A>, Identity>(all(path, &named("CIDRS"))?, &maps.cidrs);
        self.put::<CidrKey<A>, u32>(all(path, &named("MESH"))?, &maps.mesh);
        self.put::<RangeKey<A>, u32>(all(path, &named("RANGES"))?, &maps.ranges);
        Ok(())
    }

    /// What programs write, as far as it is not shared. Last, because it ages.
    fn live<A: Address>(
        &mut self,
        maps: &FamilyMaps<A>,
        family: &str,
        from: &Generation,
        shared: &Shared,
    ) -> Result<(), DatapathError> {
        let path = &from.path;
        let [affinity, sockets] = ["AFFINITY", "SOCKETS"].map(|name| format!("{name}{family}"));
        let connections = maps.connections.name();
        if !shared.has(connections) {
            self.connect(layouts::connections(from, connections)?, &maps.connections)?;
        }
        if !shared.has(&affinity) {
            self.put::<AffinityKey<A>, AffinityValue>(all(path, &affinity)?, &maps.affinity);
        }
        if !shared.has(&sockets) {
            self.put::<SocketKey<A>, SocketValue<A>>(all(path, &sockets)?, &maps.sockets);
        }
        Ok(())
    }

    /// What of the connections is later than what is known.
    fn later<A: Address>(
        &mut self,
        maps: &FamilyMaps<A>,
        family: &str,
        from: &Generation,
        shared: &Shared,
    ) -> Result<(), DatapathError> {
        let connections = maps.connections.name();
        if !shared.has(connections) {
            let mut later = layouts::connections::<A>(from, connections)?;
            let view = maps.connections.view()?;
            // Time runs in a circle.
            later.retain(|(key, connection)| {
                let known = view.get(key, client_of(connection));
                known.is_none_or(|known| connection.used.wrapping_sub(known.used).cast_signed() > 0)
            });
            self.connect(later, &maps.connections)?;
        }
        if !shared.has(&format!("SOCKETS{family}")) {
            let mut sockets: Vec<(SocketKey<A>, SocketValue<A>)> = all(&from.path, &format!("SOCKETS{family}"))?;
            sockets.retain(|(key, _)| !matches!(maps.sockets.get(key), Ok(Some(_))));
            self.put(sockets, &maps.sockets);
        }
        Ok(())
    }

    /// Entries of connections.
    fn connect<A: Address>(
        &mut self,
        entries: Vec<(ConnectionKey<A>, Connection<A>)>,
        to: &Connections<A>,
    ) -> Result<(), DatapathError> {
        let view = to.view()?;
        for (key, connection) in &entries {
            match view.put(key, connection) {
                Ok(()) => self.elements += 1,
                Err(_) => self.left += 1,
            }
        }
        Ok(())
    }

    /// An array's elements with an index below `room`.
    fn indexed<V: Copy>(
        &mut self,
        old: Option<Table<u32, V>>,
        new: &Table<u32, V>,
        room: u32,
    ) -> Result<(), DatapathError> {
        let old = old.map_or_else(|| Ok(Vec::new()), |old| old.all())?;
        self.put(old.into_iter().filter(|(index, _)| *index < room).collect(), new);
        Ok(())
    }

    /// Elements are written together, and one by one when the kernel refuses one of them.
    fn put<K: Copy, V: Copy>(&mut self, elements: Vec<(K, V)>, table: &Table<K, V>) {
        let (keys, values): (Vec<K>, Vec<V>) = elements.into_iter().unzip();
        if table.put_all(&keys, &values).is_ok() {
            self.elements += keys.len();
            return;
        }
        for (key, value) in keys.iter().zip(&values) {
            match table.put(key, value) {
                Ok(()) => self.elements += 1,
                Err(_) => self.left += 1,
            }
        }
    }
}
