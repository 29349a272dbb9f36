//! A speaker's core for tests: its real tasks and sockets on loopback addresses, without a daemon around it.

use std::{collections::BTreeSet, fs, io::Write as _, net::SocketAddr, time::Duration};

use bgp::{
    id::{Asn, RouterId},
    session::{LocalRestart, PeerKey, RemoteAs, SessionConfig, our_open},
    speaker::Speaker,
};
use meshd_core::derive::LocalNode;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    convert::{self, SpeakerConfig},
    core::{Core, Shared},
    paths,
    settings::Settings,
};
use crate::{
    config::{Config, Environment, Overrides},
    lifecycle::Problems,
};

/// Longest wait for what has to happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Settings of a speaker of AS 65010 with these peers, as the configuration says them.
pub(super) fn settings(peers: &str) -> Settings {
    let text = format!(
        "cluster: {{name: west, id: 1}}\nnode: {{name: ours, addresses: [192.0.2.10], pod_cidrs: [10.0.1.0/24]}}\n\
         store: {{mode: embedded, listen: \"127.0.0.1:2379\"}}\n\
         bgp: {{asn: 65010, listen: {{enabled: false}}, peers: [{peers}]}}\n"
    );
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let config = Config::load(file.path(), &Environment::new(), &Overrides::new());
    let config = config.unwrap_or_else(|error| panic!("{text}\n{error}"));
    let wanted = SpeakerConfig::of(&config).expect("a speaker");
    let local = LocalNode {
        cluster: config.cluster.name,
        name: config.node.name.expect("a name"),
        addresses: config.node.addresses,
        pod_cidrs: config.node.pod_cidrs,
        zone: None,
    };
    let (settings, refused) = convert::settings(&wanted, &local, None).expect("settings");
    assert_eq!(refused, []);
    settings
}

/// Runs a test as the speaker's thread runs.
pub(super) fn on_thread(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(test);
}

/// A core with these settings, for [`on_thread`].
pub(super) fn core(settings: Settings) -> Shared {
    let speaker = Speaker::new(settings.rib.clone(), LocalRestart::default(), 7);
    let (events, _) = mpsc::channel(paths::EVENTS_MAX);
    let (had_session, _) = watch::channel(BTreeSet::new());
    let empty = Settings { originate: Vec::new(), aggregates: Vec::new(), ..settings.clone() };
    let core =
        std::rc::Rc::new(std::cell::RefCell::new(Core::new(speaker, empty, events, Problems::default(), had_session)));
    Core::settle(&core, settings);
    core
}

/// A key of a peer.
pub(super) fn key(text: &str) -> PeerKey {
    text.parse().expect("a peer")
}

/// Both ends of a connection: the peer's, from its address, and ours.
pub(super) async fn connection(peer: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let client = connect(peer, listener.local_addr().expect("an address")).await;
    let (server, _) = listener.accept().await.expect("a connection");
    (client, server)
}

/// A connection from an address.
pub(super) async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("the address");
    socket.connect(to).await.expect("a connection")
}

/// The OPEN of a peer of this AS, which does strict BFD when it is to.
pub(super) fn open(asn: u32, bfd_strict: bool) -> Vec<u8> {
    let config = SessionConfig::new(Asn(asn), RemoteAs::Number(Asn(65_010)), RouterId(asn));
    our_open(&SessionConfig { bfd_strict, ..config }, &LocalRestart::default()).encode().expect("an OPEN")
}

/// A message without a body.
pub(super) fn message(kind: u8) -> Vec<u8> {
    [&[0xff; 16][..], &[0, 19, kind]].concat()
}

/// Reads messages until one of this kind has come; returns its body.
pub(super) async fn read_until(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    let read = async {
        loop {
            let mut header = [0; 19];
            stream.read_exact(&mut header).await.expect("a message");
            let mut body = vec![0; usize::from(u16::from_be_bytes([header[16], header[17]])) - header.len()];
            stream.read_exact(&mut body).await.expect("its body");
            if header[18] == kind {
                return body;
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("waited for a message of kind {kind}"))
}

/// Waits until something is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "waited for {what}");
        sleep(LOOK_INTERVAL).await;
    }
}

/// How many connections wait to be accepted at an address, as the kernel says it.
pub(super) fn waiting_at(address: SocketAddr) -> usize {
    let text = fs::read_to_string("/proc/net/tcp").expect("the kernel's list");
    let of = format!(":{:04X} 00000000:0000 0A ", address.port());
    let line = text.lines().find(|line| line.contains(&of)).expect("a listener");
    let queue = line.split_whitespace().nth(4).and_then(|queues| queues.split(':').nth(1)).expect("a queue");
    usize::from_str_radix(queue, 16).expect("a number")
}
