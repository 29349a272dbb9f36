//! Connections that peers open to us.
//!
//! A connection from somebody who is no peer is closed before a byte of it is read. Accepting costs a few microseconds and
//! keeps nothing, so a source that opens connections without end is only counted.
//!
//! A listener has the keys of all peers before it listens. The key of a peer that is configured by link follows when the link's
//! router has said its address. The kernel knows keys by address alone (it takes the number of a VRF beside it, but not that
//! of a link), so where routers on several links have one address and not one key, the listener has none of them: these
//! peers are connected to, and not accepted from.

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
    restart,
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
}

/// Keys that listeners have, by the address of the listener and those of the peers.
pub(super) type Keys = BTreeMap<(SocketAddr, IpNet), Key>;

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
        let mut keys = std::mem::take(&mut core.borrow_mut().listener_keys);
        keys.retain(|(address, _), _| self.running.contains_key(address));
        let mut failures = Vec::new();
        let mut outdated = Vec::new();
        for address in wanted {
            let known = self.running.get(&address).map(|(socket, _)| socket.clone());
            let is_open = known.is_some();
            let socket = match known.map_or_else(|| transport::listener(address, None).map(Rc::new), Ok) {
                Ok(socket) => socket,
                Err(error) => {
                    failures.push(error.to_string());
                    continue;
                }
            };
            let changed = set_keys(&core.borrow(), address, &socket, &mut keys, &mut failures);
            if is_open && !changed.is_empty() {
                outdated.push((address, socket.clone(), changed));
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = self.running.entry(address) {
                match start(core, address, &socket) {
                    Ok(task) => {
                        entry.insert((socket, task));
                    }
                    Err(error) => failures.push(format!("{address}: {error}")),
                }
            }
        }
        core.borrow_mut().listener_keys = keys;
        for (address, socket, changed) in outdated {
            if let Err(error) = sort_out(core, address, &socket, &changed) {
                failures.push(format!("{address}: {error}"));
            }
        }
        let message = (!failures.is_empty()).then(|| failures.join("; "));
        let retry = message.is_some().then_some(LISTEN_RETRY);
        problems.report("bgp/listen", message);
        retry
    }
}

/// Gives a listener the key of every peer that has one; returns the prefixes for which it has another one than before.
fn set_keys(
    core: &Core,
    address: SocketAddr,
    socket: &socket2::Socket,
    keys: &mut Keys,
    failures: &mut Vec<String>,
) -> Vec<IpNet> {
    let wanted = wanted_keys(core, address.is_ipv4());
    let mut changed = Vec::new();
    let has = keys.keys().filter(|(of, _)| *of == address).map(|(_, prefix)| *prefix);
    let gone: Vec<IpNet> = has.filter(|prefix| !wanted.contains_key(prefix)).collect();
    for prefix in gone {
        let place = (address, prefix);
        changed.push(prefix);
        match transport::set_key(socket, prefix, keys.get(&place), None) {
            Ok(()) => drop(keys.remove(&place)),
            Err(error) => failures.push(error.to_string()),
        }
    }
    for (prefix, key) in wanted {
        let place = (address, prefix);
        if keys.get(&place) == Some(key) {
            continue;
        }
        changed.push(prefix);
        // The others get theirs: one peer must not open the door for all.
        match transport::set_key(socket, prefix, keys.get(&place), Some(key)) {
            Ok(()) => drop(keys.insert(place, key.clone())),
            Err(error) => {
                keys.remove(&place);
                failures.push(error.to_string());
            }
        }
    }
    changed
}

/// The keys that listeners of a family are to have.
fn wanted_keys(core: &Core, ipv4: bool) -> BTreeMap<IpNet, &Key> {
    let ranges = core.settings.ranges.iter().map(|range| (range.prefix, range.template.transport.key.as_ref()));
    let mut wanted: BTreeMap<IpNet, Option<&Key>> = ranges.collect();
    let mut of_peers: BTreeMap<IpNet, Option<&Key>> = BTreeMap::new();
    for known in core.known.values().filter(|known| known.range.is_none()) {
        let address = match &known.key {
            PeerKey::Address(ip, _) => Some(*ip),
            PeerKey::Interface(link) => core.host.router_on(link.as_str()).map(IpAddr::V6),
        };
        let Some(address) = address else { continue };
        let key = known.settings.transport.key.as_ref();
        let place = of_peers.entry(address.into()).or_insert(key);
        if *place != key {
            *place = None;
        }
    }
    // A single address is more than a range of one.
    wanted.extend(of_peers);
    let of_family = wanted.into_iter().filter(|(prefix, _)| prefix.addr().is_ipv4() == ipv4);
    of_family.filter_map(|(prefix, key)| Some((prefix, key?))).collect()
}

/// The key with which the kernel has judged what came to a listener from an address: that of the longest prefix.
fn key_for(keys: &Keys, listener: SocketAddr, ip: IpAddr) -> Option<&Key> {
    let here = keys.iter().filter(|((of, prefix), _)| *of == listener && prefix.contains(&ip));
    here.max_by_key(|((_, prefix), _)| prefix.prefix_len()).map(|(_, key)| key)
}

/// Keys have changed. Connections that wait to be accepted were judged by those of before, or by none, and must not be taken for
/// signed: those from addresses whose key has changed are closed. The others are taken as if nothing had happened.
fn sort_out(
    core: &Shared,
    address: SocketAddr,
    socket: &socket2::Socket,
    changed: &[IpNet],
) -> Result<(), transport::TransportError> {
    for _ in 0..transport::WAITING_MAX {
        let Some((stream, remote)) = transport::next_waiting(socket)? else { return Ok(()) };
        let ip = remote.ip().to_canonical();
        if changed.iter().any(|prefix| prefix.contains(&ip)) {
            debug!(%ip, "closed a BGP connection that was opened before its key was set");
            continue;
        }
        take(core, address, stream, remote);
    }
    Ok(())
}

fn start(core: &Shared, address: SocketAddr, socket: &socket2::Socket) -> Result<JoinHandle<()>, String> {
    transport::listen(socket).map_err(|error| error.to_string())?;
    let second = socket.try_clone().map_err(|error| format!("failed to share a socket: {error}"))?;
    let listener = TcpListener::from_std(second.into()).map_err(|error| format!("failed to listen: {error}"))?;
    Ok(spawn_local(accept(core.clone(), address, listener)))
}

async fn accept(core: Shared, address: SocketAddr, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                take(&core, address, stream, remote);
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

/// Takes a connection that came to the listener at `listener`.
fn take(core: &Shared, listener: SocketAddr, stream: TcpStream, remote: SocketAddr) {
    let Some(id) = peer_of(core, remote) else {
        return;
    };
    let refused = {
        let core = core.borrow();
        let transport = core.known.get(&id).map(|known| known.settings.transport.clone()).unwrap_or_default();
        let has = key_for(&core.listener_keys, listener, remote.ip().to_canonical());
        if transport.key.is_some() && transport.key.as_ref() != has {
            Err("the peer has a key, and the listener could not be given it for this address".to_owned())
        } else {
            transport::accepted(&SockRef::from(&stream), remote.ip(), &transport).map_err(|error| error.to_string())
        }
    };
    match refused {
        Ok(()) => restart::accept_after_bfd(core, id, stream),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use meshd_core::{
        id::IfIndex,
        observed::{LinkRow, Observed},
    };

    use super::*;
    use crate::speaker::{
        settings::Settings,
        testing::{connect, core, key, on_thread, read_until, settings, until, waiting_at},
        transport::Secret,
    };

    fn secret(text: &str) -> Key {
        Key::Md5(Secret::new(text.as_bytes().to_vec()))
    }

    /// Whoever was let in by the keys of before is shut out again; the others do not notice.
    #[test]
    fn a_connection_that_waits_while_its_key_changes_is_closed_and_no_other() {
        let peer = |last: u8| format!("{{address: 127.0.0.{last}, remote_as: 6500{last}, passive: true}}");
        let mut settings = settings(&format!("{}, {}", peer(2), peer(3)));
        let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        settings.listen = vec![address];
        let test = async {
            let core = core(settings.clone());
            let mut listeners = Listeners::default();
            assert_eq!(listeners.update(&core, &Problems::default()), None);
            let (socket, accepting) = &listeners.running[&address];
            // Nobody is accepted meanwhile: both wait, as they do while this thread is busy.
            accepting.abort();
            until("the end of the task", || accepting.is_finished()).await;
            let at = socket.local_addr().expect("an address").as_socket().expect("of IP");
            let (mut signed, mut other) = (connect("127.0.0.2", at).await, connect("127.0.0.3", at).await);
            until("both to wait", || waiting_at(at) == 2).await;
            let socket = socket.clone();

            let changed = settings.peers.get_mut(&key("127.0.0.2")).expect("a peer");
            changed.transport.key = Some(secret("hush"));
            Core::settle(&core, settings);
            let (mut keys, mut failures) = (Keys::new(), Vec::new());
            let changed = set_keys(&core.borrow(), address, &socket, &mut keys, &mut failures);
            assert_eq!((changed.len(), failures), (1, Vec::<String>::new()));
            core.borrow_mut().listener_keys = keys;
            sort_out(&core, address, &socket, &changed).expect("sorted out");

            // An OPEN: somebody has taken it.
            read_until(&mut other, 1).await;
            let mut octet = [0; 1];
            let end = tokio::io::AsyncReadExt::read(&mut signed, &mut octet).await;
            assert!(!matches!(end, Ok(1)), "{end:?}");
            let core = core.borrow();
            let is_taken = |name: &str| core.any_ends(core.ids[&key(name)]).is_some();
            assert!(is_taken("127.0.0.3") && !is_taken("127.0.0.2"));
        };
        on_thread(test);
    }

    /// Keys come before listening, and a change of another one's key is none of its business: the first attempt of a peer that
    /// signs is taken, whatever happens while it waits.
    #[test]
    fn the_first_connection_of_a_signed_peer_is_taken() {
        let peer = |last: u8| format!("{{address: 127.0.0.{last}, remote_as: 6500{last}, passive: true}}");
        let mut settings = settings(&format!("{}, {}", peer(2), peer(3)));
        let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        settings.listen = vec![address];
        let has_key = |settings: &mut Settings, name: &str, text: &str| {
            settings.peers.get_mut(&key(name)).expect("a peer").transport.key = Some(secret(text));
        };
        has_key(&mut settings, "127.0.0.2", "hush");
        let test = async {
            let core = core(settings.clone());
            let mut listeners = Listeners::default();
            assert_eq!(listeners.update(&core, &Problems::default()), None);
            let at = listeners.running[&address].0.local_addr().expect("an address").as_socket().expect("of IP");
            let mine = transport::Transport {
                key: Some(secret("hush")),
                source: Some("127.0.0.2".parse().expect("an address")),
                ..transport::Transport::default()
            };
            let socket = transport::outgoing(at, &mine).expect("a socket");
            // Nothing else runs on this thread meanwhile, and so nobody is accepted.
            socket.set_nonblocking(false).expect("blocking");
            socket.connect(&at.into()).expect("the first attempt");
            socket.set_nonblocking(true).expect("non-blocking");
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while waiting_at(at) == 0 {
                assert!(std::time::Instant::now() < deadline, "nobody waits");
                std::thread::yield_now();
            }
            assert_eq!(listeners.update(&core, &Problems::default()), None);
            has_key(&mut settings, "127.0.0.3", "another");
            Core::settle(&core, settings);
            assert_eq!(listeners.update(&core, &Problems::default()), None);
            read_until(&mut TcpStream::from_std(socket.into()).expect("a stream"), 1).await;
        };
        on_thread(test);
    }

    /// The kernel judges by the longest prefix, and by the address of the listener alone.
    #[test]
    fn a_connection_is_signed_with_the_key_of_the_longest_prefix() {
        let listener = |last: u8| SocketAddr::from(([192, 0, 2, last], 179));
        let place = |last, prefix: &str| (listener(last), prefix.parse::<IpNet>().expect("a prefix"));
        let keys = Keys::from([
            (place(1, "10.0.0.0/8"), secret("range")),
            (place(1, "10.1.0.0/16"), secret("inner range")),
            (place(1, "10.1.0.7/32"), secret("peer")),
            (place(2, "10.9.0.0/16"), secret("another listener")),
        ]);
        for (last, ip, expected) in [
            (1, "10.1.0.7", Some("peer")),
            (1, "10.1.0.8", Some("inner range")),
            (1, "10.9.0.1", Some("range")),
            (2, "10.9.0.1", Some("another listener")),
            (2, "10.1.0.7", None),
            (1, "192.0.2.9", None),
        ] {
            let found = key_for(&keys, listener(last), ip.parse().expect("an address"));
            assert_eq!(found, expected.map(secret).as_ref(), "{ip} at {last}");
        }
    }

    /// The key of a peer that is configured by link belongs to the router that is heard there, while it is heard.
    #[test]
    fn the_key_of_a_link_is_that_of_its_router() {
        let link = |name: &str| format!("{{interface: {name}, remote_as: external}}");
        let mut settings = settings(&format!("{}, {}", link("one"), link("two")));
        let router: Ipv6Addr = "fe80::7".parse().expect("an address");
        let listeners_have = |core: &Shared| -> Vec<(String, Key)> {
            let core = core.borrow();
            let keys = wanted_keys(&core, false);
            keys.into_iter().map(|(prefix, key)| (prefix.to_string(), key.clone())).collect()
        };
        let test = async {
            let core = core(settings.clone());
            let mut observed = Observed::default();
            for (index, name) in [(1, "one"), (2, "two")] {
                let name = name.into();
                let row = LinkRow { name, up: true, running: true, loopback: false, mtu: 1500, kind: None, mac: None };
                observed.links.upsert(IfIndex(index), row);
            }
            core.borrow_mut().host.update(&observed);
            let has_key = |settings: &mut Settings, name: &str, text: &str| {
                settings.peers.get_mut(&key(name)).expect("a peer").transport.key = Some(secret(text));
            };
            has_key(&mut settings, "one", "hush");
            Core::settle(&core, settings.clone());
            assert_eq!(listeners_have(&core), [], "nobody was heard");
            core.borrow_mut().host.set_router(IfIndex(1), Some(router));
            assert_eq!(listeners_have(&core), [("fe80::7/128".to_owned(), secret("hush"))]);
            // The same address on the other link, where nobody signs: the kernel cannot tell them apart.
            core.borrow_mut().host.set_router(IfIndex(2), Some(router));
            assert_eq!(listeners_have(&core), []);
            has_key(&mut settings, "two", "another");
            Core::settle(&core, settings.clone());
            assert_eq!(listeners_have(&core), []);
            has_key(&mut settings, "two", "hush");
            Core::settle(&core, settings);
            assert_eq!(listeners_have(&core), [("fe80::7/128".to_owned(), secret("hush"))]);
            core.borrow_mut().host.set_router(IfIndex(1), None);
            core.borrow_mut().host.set_router(IfIndex(2), None);
            assert_eq!(listeners_have(&core), []);
        };
        on_thread(test);
    }
}
