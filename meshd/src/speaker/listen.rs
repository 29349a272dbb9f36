//! Connections that peers open to us.
//!
//! A connection from somebody who is no peer is closed before a byte of it is read. Accepting costs a few microseconds and
//! keeps nothing, so a source that opens connections without end is only counted.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use bgp::{id::PeerId, session::PeerKey};
use ipnet::IpNet;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, spawn_local, yield_now},
    time::sleep,
};
use tracing::{debug, info, warn};

use super::{
    core::{Core, Shared},
    transport::{self, Key},
};
use crate::lifecycle::Problems;

/// How long to wait after the system refused to accept, which it does when it has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait before trying again to listen.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// Every socket that waits for connections. Dropping it stops listening.
#[derive(Default)]
pub(super) struct Listeners {
    running: BTreeMap<SocketAddr, (Rc<socket2::Socket>, JoinHandle<()>)>,
    /// Keys that listeners have.
    keys: BTreeMap<(SocketAddr, IpNet), Key>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

impl Listeners {
    /// Listens where the settings say, with the keys of all peers. Returns when to try again, if something failed.
    pub(super) fn update(&mut self, core: &Shared, problems: &Problems) -> Option<Duration> {
        let wanted = core.borrow().settings.listen.clone();
        self.running.retain(|address, (_, task)| {
            let keep = wanted.contains(address) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        let running = &self.running;
        self.keys.retain(|(address, _), _| running.contains_key(address));
        let mut failures = Vec::new();
        let mut unsigned = Vec::new();
        for address in wanted {
            let known = self.running.get(&address).map(|(socket, _)| socket.clone());
            let is_open = known.is_some();
            let before = self.keys.clone();
            let socket = match known.map_or_else(|| transport::listener(address, None).map(Rc::new), Ok) {
                Ok(socket) => socket,
                Err(error) => {
                    failures.push(error.to_string());
                    continue;
                }
            };
            unsigned.extend(set_keys(core, address, &socket, &mut self.keys, &mut failures));
            // Who was there before its key was set is not signed, and must not be taken for one that is.
            if is_open
                && before != self.keys
                && let Err(error) = transport::close_waiting(&socket)
            {
                failures.push(format!("{address}: {error}"));
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = self.running.entry(address) {
                match start(core, &socket) {
                    Ok(task) => {
                        entry.insert((socket, task));
                    }
                    Err(error) => failures.push(format!("{address}: {error}")),
                }
            }
        }
        core.borrow_mut().unsigned = unsigned;
        let message = (!failures.is_empty()).then(|| failures.join("; "));
        let retry = message.is_some().then_some(LISTEN_RETRY);
        problems.report("bgp/listen", message);
        retry
    }
}

/// Gives a listener the key of every peer that has one; returns the prefixes for which that failed.
fn set_keys(
    core: &Shared,
    address: SocketAddr,
    socket: &socket2::Socket,
    keys: &mut BTreeMap<(SocketAddr, IpNet), Key>,
    failures: &mut Vec<String>,
) -> Vec<IpNet> {
    let core = core.borrow();
    let peers = core.known.values().filter(|known| known.range.is_none()).filter_map(|known| match &known.key {
        PeerKey::Address(ip, _) => Some((IpNet::from(*ip), known.settings.transport.key.as_ref())),
        // Its address is not known before it speaks; it is connected to, with its key, and not accepted from.
        PeerKey::Interface(_) => None,
    });
    let ranges = core.settings.ranges.iter().map(|range| (range.prefix, range.template.transport.key.as_ref()));
    let mut unsigned = Vec::new();
    let wanted: Vec<(IpNet, Option<&Key>)> =
        peers.chain(ranges).filter(|(prefix, _)| prefix.addr().is_ipv4() == address.is_ipv4()).collect();
    let gone = |(of, prefix): &(SocketAddr, IpNet)| *of == address && wanted.iter().all(|(known, _)| known != prefix);
    for place in keys.keys().filter(|place| gone(place)).copied().collect::<Vec<_>>() {
        match transport::set_key(socket, place.1, keys.get(&place), None) {
            Ok(()) => drop(keys.remove(&place)),
            Err(error) => failures.push(error.to_string()),
        }
    }
    for (prefix, key) in wanted {
        // The others get theirs: one peer must not open the door for all.
        let place = (address, prefix);
        match (transport::set_key(socket, prefix, keys.get(&place), key), key) {
            (Ok(()), Some(key)) => drop(keys.insert(place, key.clone())),
            (Ok(()), None) => drop(keys.remove(&place)),
            (Err(error), _) => {
                keys.remove(&place);
                failures.push(error.to_string());
                unsigned.push(prefix);
            }
        }
    }
    unsigned
}

fn start(core: &Shared, socket: &socket2::Socket) -> Result<JoinHandle<()>, String> {
    transport::listen(socket).map_err(|error| error.to_string())?;
    let second = socket.try_clone().map_err(|error| format!("failed to share a socket: {error}"))?;
    let listener = TcpListener::from_std(second.into()).map_err(|error| format!("failed to listen: {error}"))?;
    Ok(spawn_local(accept(core.clone(), listener)))
}

async fn accept(core: Shared, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                take(&core, stream, remote);
                // A flood of connections must not keep the others of this thread waiting.
                yield_now().await;
            }
            Err(error) if is_of_the_connection(&error) => {
                debug!(%error, "a connection was gone before it was accepted")
            }
            Err(error) => {
                warn!(%error, "cannot accept BGP connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn take(core: &Shared, stream: TcpStream, remote: SocketAddr) {
    let Some(id) = peer_of(core, remote) else {
        return;
    };
    let refused = {
        let core = core.borrow();
        let transport = core.known.get(&id).map(|known| known.settings.transport.clone()).unwrap_or_default();
        let ip = remote.ip().to_canonical();
        let has_address = core.known.get(&id).is_some_and(|known| matches!(known.key, PeerKey::Address(..)));
        let is_unsigned = !has_address || core.unsigned.iter().any(|prefix| prefix.contains(&ip));
        if transport.key.is_some() && is_unsigned {
            Err("the peer has a key, and the listener could not be given it".to_owned())
        } else {
            transport::accepted(&SockRef::from(&stream), remote.ip(), &transport).map_err(|error| error.to_string())
        }
    };
    match refused {
        Ok(()) => Core::accept(core, id, stream),
        Err(why) => core.borrow_mut().refuse(id, &why),
    }
}

/// Counts a connection that is nobody's, and says so once in a while.
fn refuse_stranger(core: &Shared, ip: IpAddr, why: &str) {
    let mut core = core.borrow_mut();
    let now = core.now();
    match core.strangers.add(now, why) {
        Some(more) => info!(%ip, why, more, "closed a BGP connection of a stranger"),
        None => debug!(%ip, why, "closed a BGP connection of a stranger"),
    }
}

/// Whose connection is it? A peer of a range is made known by it.
fn peer_of(core: &Shared, remote: SocketAddr) -> Option<PeerId> {
    let found = core.borrow().peer_at(remote);
    found.or_else(|| admit(core, remote.ip().to_canonical()))
}

/// Makes a peer known that is in a range with room.
pub(super) fn admit(core: &Shared, ip: IpAddr) -> Option<PeerId> {
    let key = PeerKey::Address(ip, None);
    let found = {
        let core = core.borrow();
        let ranges = core.settings.ranges.iter().enumerate();
        let longest =
            ranges.filter(|(_, range)| range.prefix.contains(&ip)).max_by_key(|(_, range)| range.prefix.prefix_len());
        match longest {
            None => Err("no peer has this address".to_owned()),
            Some((number, range)) => {
                let here = core.known.values().filter(|known| known.range == Some(number)).count();
                if here >= range.limit {
                    Err(format!("the range {} has {here} peers already", range.prefix))
                } else {
                    Ok((number, range.peer(ip)))
                }
            }
        }
    };
    let (number, settings) = match found {
        Ok(found) => found,
        Err(why) => {
            refuse_stranger(core, ip, &why);
            return None;
        }
    };
    Core::add(core, key.clone(), settings, Some(number));
    core.borrow().ids.get(&key).copied()
}
