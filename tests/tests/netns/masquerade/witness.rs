//! Somebody who answers with the source address of what he was sent.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::Node;

use super::eventually;

const PORT: u16 = 7000;
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(50);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
    Ping,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ping];
}

/// Answers in a node until it is dropped.
pub(super) struct Witness {
    node: Node,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Answers at these addresses. Datagrams have a socket for each: an answer leaves with the address that was asked.
    pub(super) fn start(node: &Node, addresses: &[&str]) -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = node.within(|| TcpListener::bind(any)).expect("inside").expect("a listener");
        tcp.set_nonblocking(true).expect("not blocking");
        let tcp_stop = stop.clone();
        let tcp = thread::spawn(move || {
            while !tcp_stop.load(Ordering::Relaxed) {
                match tcp.accept() {
                    // Who has gone away needs no answer.
                    Ok((mut stream, peer)) => drop(stream.write_all(text(peer).as_bytes())),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        let mut threads = vec![tcp];
        for address in addresses {
            let address = SocketAddr::new(address.parse().expect("an address"), PORT);
            let udp = node.within(|| UdpSocket::bind(address)).expect("inside").expect("a socket");
            udp.set_read_timeout(Some(LOOK)).expect("a timeout");
            let stop = stop.clone();
            threads.push(thread::spawn(move || {
                let mut octets = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = udp.recv_from(&mut octets) {
                        let _gone = udp.send_to(text(peer).as_bytes(), peer);
                    }
                }
            }));
        }
        Self { node: node.clone(), stop, threads }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn text(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

/// The source that the witness sees of a packet from a node to one of his addresses; what went wrong when there is none.
pub(super) fn ask(from: &Node, witness: &Witness, target: &str, kind: Kind) -> String {
    let address: IpAddr = target.parse().expect("an address");
    match kind {
        Kind::Tcp => answer(from.within(|| over_tcp(address)).expect("inside")),
        Kind::Udp => answer(from.within(|| over_udp(address)).expect("inside")),
        Kind::Ping => ping(from, witness, address),
    }
}

fn answer(answer: std::io::Result<String>) -> String {
    answer.unwrap_or_else(|error| format!("no answer: {error}"))
}

pub(super) fn over_tcp(address: IpAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(super) fn over_udp(address: IpAddr) -> std::io::Result<String> {
    let any = SocketAddr::new(if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() }, 0);
    let socket = UdpSocket::bind(any)?;
    // The answer has to come from the address that was asked.
    socket.connect(SocketAddr::new(address, PORT))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(b"who am I?")?;
    let mut octets = [0; 64];
    let length = socket.recv(&mut octets)?;
    Ok(String::from_utf8_lossy(&octets[..length]).into_owned())
}

/// Pings and reads the source off the wire; the echo has to come back as well.
fn ping(from: &Node, witness: &Witness, address: IpAddr) -> String {
    let what = if address.is_ipv4() { "icmp[icmptype] == icmp-echo" } else { "icmp6 and ip6[40] == 128" };
    let capture = witness.node.spawn(&["tcpdump", "-n", "-l", "-i", "any", "-c", "1", what]).expect("tcpdump starts");
    assert!(eventually(|| capture.so_far().is_ok_and(|said| said.contains("listening on"))), "tcpdump does not listen");
    let target = address.to_string();
    let pinged = from.exec(&["ping", "-n", "-c", "1", "-W", "2", &target]).expect("ping runs");
    if !pinged.success() {
        return format!("no echo: {}", pinged.stdout);
    }
    let said = capture.finish(ANSWER * 2).expect("tcpdump ends").stdout;
    // `… IP 10.0.1.20 > 10.1.1.10: ICMP echo request, …`
    let words: Vec<&str> =
        said.lines().filter(|line| line.contains("echo request")).flat_map(str::split_whitespace).collect();
    let arrow = words.iter().position(|word| *word == ">");
    arrow.and_then(|at| words.get(at - 1)).map_or_else(|| format!("no source in {said}"), |source| (*source).to_owned())
}
