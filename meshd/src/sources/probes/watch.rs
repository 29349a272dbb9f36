//! Sending, receiving and waiting.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use meshd_core::{
    derive::{PathPolicy, TunnelSettings},
    id::PROBE_LINK,
    observed::{Change, PathKey},
    probe::{
        Outgoing, PROBES_PER_S_MAX, PathEvent, Prober, SizeStep, Switch, Way,
        packet::{MESSAGE_LEN, Question, answer, encapsulate, read_answer},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UdpSocket,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    ProbeSource,
    convert::{self, Wanted},
    memory,
};
use crate::kernel::linux::tun::Tun;

/// Component of problems with links and sockets.
const COMPONENT: &str = "probes";
/// Component of paths that do not work natively.
const COMPONENT_BROKEN: &str = "paths";
/// Component of paths that lose large packets.
const COMPONENT_SIZE: &str = "paths/size";
/// Pause before links and sockets are opened again.
const RETRY: Duration = Duration::from_secs(2);
/// Changes of the tables are collected for so long.
const COLLECT: Duration = Duration::from_millis(200);
/// How often people see other figures.
const REPORT: Duration = Duration::from_secs(1);
/// Most packets taken in a row from one of the sources.
const BURST: usize = 64;
/// Most answers a second.
const ANSWERS_PER_S_MAX: u32 = 4 * PROBES_PER_S_MAX;
/// Paths that a problem names.
const NAMED_MAX: usize = 8;

impl ProbeSource {
    /// Runs until the pipeline is gone. Without a tunnel nothing is opened and nothing sent.
    pub async fn run(mut self) {
        let start = Instant::now();
        let mut prober = Prober::new(self.settings, std::mem::take(&mut self.remembered));
        loop {
            let policy = self.policies.borrow_and_update().clone();
            let opened = match policy.tunnel {
                None => None,
                Some(tunnel) => match Io::open(&self, tunnel, start) {
                    Ok(io) => {
                        self.problems.clear(COMPONENT);
                        Some(io)
                    }
                    Err(error) => {
                        self.problems.set(COMPONENT, error);
                        None
                    }
                },
            };
            let Some(mut io) = opened else {
                let wait = async {
                    if policy.tunnel.is_none() { std::future::pending().await } else { tokio::time::sleep(RETRY).await }
                };
                tokio::select! {
                    changed = self.policies.changed() => if changed.is_err() { return },
                    () = wait => {}
                }
                continue;
            };
            let Some(error) = self.watch(&mut io, &mut prober, &policy).await else { return };
            if let Some(error) = error {
                self.problems.set(COMPONENT, error);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Probes until something fails or the policy is another one (`Some(None)`); `None` when the pipeline is gone.
    async fn watch(&mut self, io: &mut Io, prober: &mut Prober, policy: &PathPolicy) -> Option<Option<String>> {
        let start = io.start;
        let mut wanted = Wanted::default();
        let mut look_at = Some(Instant::now());
        let mut report_at = Instant::now();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut answers = Answers::default();
        loop {
            let now = Instant::now();
            if look_at.is_some_and(|at| at <= now) {
                look_at = None;
                let snapshot = self.snapshots.borrow_and_update().clone();
                let new = convert::wanted(&snapshot, policy, &self.local);
                if new != wanted || snapshot.complete {
                    wanted = new;
                    prober.set_subjects(
                        wanted.subjects.clone(),
                        snapshot.complete && snapshot.local_known,
                        now - start,
                    );
                }
            }
            let mut events = prober.expire(now - start);
            for outgoing in prober.tick(now - start, rand::random) {
                io.send(&outgoing).await;
            }
            events.extend(self.receive(io, prober, &wanted, &mut buffer, &mut answers).await);
            self.tell(prober, &events).await?;
            if report_at <= now {
                report_at = now + REPORT;
                self.reports.set(prober.reports());
            }
            let next = prober.wake_at().map(|at| start + at);
            let wake = next.into_iter().chain(look_at).chain([report_at]).min().unwrap_or(report_at);
            tokio::select! {
                changed = self.snapshots.changed() => {
                    changed.ok()?;
                    look_at.get_or_insert_with(|| Instant::now() + COLLECT);
                }
                changed = self.policies.changed() => {
                    changed.ok()?;
                    return Some(None);
                }
                ready = io.readable() => if let Err(error) = ready {
                    return Some(Some(format!("the link {PROBE_LINK} failed: {error}; it is made again")));
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Takes what has arrived: questions are answered, answers go to the prober.
    async fn receive(
        &self,
        io: &mut Io,
        prober: &mut Prober,
        wanted: &Wanted,
        buffer: &mut [u8],
        answers: &mut Answers,
    ) -> Vec<PathEvent> {
        for _ in 0..BURST {
            let read = io.tun.try_io(Interest::READABLE, |tun| tun.read(buffer));
            let Ok(length) = read else { break };
            let Some((question, size)) = Question::decode(&buffer[..length], self.settings.port) else { continue };
            let is_ours = io.own.contains(&question.destination);
            let Some(node) = wanted.answered.get(&question.source).filter(|_| is_ours) else { continue };
            if answers.take() {
                io.answer(*node, self.settings.port, &answer(&question.token, size)).await;
            }
        }
        let mut events = Vec::new();
        let mut datagram = [0; MESSAGE_LEN + 1];
        for socket in [&io.v4, &io.v6].into_iter().flatten() {
            for _ in 0..BURST {
                let Ok((length, _)) = socket.try_recv_from(&mut datagram) else { break };
                if let Some(token) = read_answer(&datagram[..length]) {
                    events.extend(prober.answer(&token, io.start.elapsed()));
                }
            }
        }
        events
    }

    /// Says what changed, in the log, to routes, to people, and for the next run. `None` when the pipeline is gone.
    async fn tell(&self, prober: &mut Prober, events: &[PathEvent]) -> Option<()> {
        for event in events {
            log(event, prober);
        }
        let changes = prober.take_changes();
        if !changes.is_empty() {
            self.changes.send(Change::Paths(changes)).await.ok()?;
            memory::save(&self.state_dir, prober.broken());
            self.report_problems(prober);
        }
        Some(())
    }

    fn report_problems(&self, prober: &Prober) {
        let list = |keys: Vec<String>| {
            let more = keys.len().saturating_sub(NAMED_MAX);
            let named = keys.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{named} and {more} more") } else { named }
        };
        let broken: Vec<String> = prober.broken().map(name).collect();
        self.problems.report(
            COMPONENT_BROKEN,
            (!broken.is_empty()).then(|| {
                format!(
                    "packets of workloads do not arrive natively at {} and go through the tunnel: does a firewall or the network \
                     between the nodes drop packets from one PodCIDR to the other?",
                    list(broken)
                )
            }),
        );
        let narrow = prober.reports().into_iter().filter_map(|report| {
            let (way, mtu, full) = match (report.row.native_mtu, report.row.tunnel_mtu) {
                (Some(mtu), _) => ("natively", mtu, report.full.0),
                (None, Some(mtu)) => ("through the tunnel", mtu, report.full.1),
                (None, None) => return None,
            };
            Some(format!("{} ({way} {mtu} of {full} bytes)", name(&report.key)))
        });
        let narrow: Vec<String> = narrow.collect();
        self.problems.report(
            COMPONENT_SIZE,
            (!narrow.is_empty()).then(|| {
                format!(
                    "large packets get lost without an error (a black hole) on the way to {}; routes there have a smaller MTU; give the links \
                     of the nodes the MTU of the network between them",
                    list(narrow)
                )
            }),
        );
    }
}

fn name(key: &PathKey) -> String {
    format!("{}/{} ({})", key.cluster, key.node, if key.ipv4 { "IPv4" } else { "IPv6" })
}

fn log(event: &PathEvent, prober: &Prober) {
    match event {
        PathEvent::Switch(key, switch) => {
            let Some(report) = prober.reports().into_iter().find(|report| report.key == *key) else { return };
            let (native, tunnel) = (report.probe.stream(Way::Native), report.probe.stream(Way::Tunnel));
            let path = name(key);
            match switch {
                Switch::Tunnel => warn!(
                    path,
                    lost = native.lost_in_row,
                    tunnel_rtt = ?tunnel.rtt.unwrap_or_default(),
                    "packets of workloads do not arrive natively: through the tunnel from now on"
                ),
                Switch::Native if native.answered_in_row > 0 && tunnel.lost_in_row == 0 => {
                    info!(path, answered = native.answered_in_row, "packets of workloads arrive natively again");
                }
                Switch::Native => {
                    warn!(path, lost = tunnel.lost_in_row, "the tunnel does not work: natively from now on");
                }
            }
        }
        PathEvent::Size(key, way, SizeStep(size)) => {
            let way = if *way == Way::Native { "native" } else { "tunnel" };
            match size {
                Some(size) => warn!(path = name(key), way, size, "larger packets get lost without an error"),
                None => info!(path = name(key), way, "packets of full size arrive again"),
            }
        }
    }
}

/// How many answers there may be.
#[derive(Debug, Default)]
struct Answers {
    second: Option<Instant>,
    count: u32,
}

impl Answers {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        if self.second.is_none_or(|second| now - second >= Duration::from_secs(1)) {
            (self.second, self.count) = (Some(now), 0);
        }
        self.count += 1;
        self.count <= ANSWERS_PER_S_MAX
    }
}

/// The link and the sockets.
struct Io {
    start: Instant,
    own: Vec<IpAddr>,
    tun: AsyncFd<Tun>,
    /// Answers come and go here.
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// Questions in a tunnel's header leave here, and must not be cut into fragments.
    tunnel_v4: Option<UdpSocket>,
    tunnel_v6: Option<UdpSocket>,
    tunnel: TunnelSettings,
}

impl Io {
    fn open(source: &ProbeSource, tunnel: TunnelSettings, start: Instant) -> Result<Self, String> {
        let own = convert::own_addresses(&source.local);
        let opened = Tun::open(PROBE_LINK, &own).and_then(|tun| {
            // SAFETY: the link owns its descriptor, which stays the same and open until it is dropped.
            unsafe { AsyncFd::register_with_interest(tun, Interest::READABLE) }.map_err(io::Error::from)
        });
        let tun = opened.map_err(|error| {
            format!("no path is probed: the link {PROBE_LINK} cannot be made: {error}; it needs /dev/net/tun and CAP_NET_ADMIN")
        })?;
        let port = source.settings.port;
        let listen = |ipv4| {
            let bound = socket(ipv4, port, false);
            bound.map_err(|error| format!("no path is probed: UDP port {port} cannot be opened: {error}; choose another `routing.probe.port` on every node"))
        };
        let has = |ipv4: bool| source.local.addresses.iter().any(|address| address.is_ipv4() == ipv4);
        let open = |ipv4: bool| if has(ipv4) { listen(ipv4).map(Some) } else { Ok(None) };
        Ok(Self {
            start,
            own,
            tun,
            v4: open(true)?,
            v6: open(false)?,
            tunnel_v4: socket(true, 0, true).ok(),
            tunnel_v6: socket(false, 0, true).ok(),
            tunnel,
        })
    }

    /// What cannot be sent is a lost probe.
    async fn send(&self, outgoing: &Outgoing) {
        let Some(packet) = outgoing.question.encode(outgoing.size) else { return };
        match outgoing.way {
            Way::Native => {
                let _lost = self.tun.get_ref().write(&packet);
            }
            Way::Tunnel => {
                let socket = if outgoing.outer.is_ipv4() { &self.tunnel_v4 } else { &self.tunnel_v6 };
                if let Some(socket) = socket {
                    let datagram = encapsulate(self.tunnel, &packet);
                    let _lost = socket.try_send_to(&datagram, SocketAddr::new(outgoing.outer, self.tunnel.port));
                }
            }
        }
    }

    async fn answer(&self, node: IpAddr, port: u16, answer: &[u8]) {
        let socket = if node.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(socket) = socket {
            let _lost = socket.try_send_to(answer, SocketAddr::new(node, port));
        }
    }

    /// Waits until something has arrived.
    async fn readable(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.tun.readable() => ready.map(|mut guard| guard.retain_ready()),
            ready = arrived(self.v4.as_ref()) => ready,
            ready = arrived(self.v6.as_ref()) => ready,
        }
    }
}

/// Waits until a datagram has arrived; for ever without a socket.
async fn arrived(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

/// A socket for datagrams; `whole` keeps them from being cut, whatever the kernel believes about the path.
fn socket(ipv4: bool, port: u16, whole: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(if ipv4 { Domain::IPV4 } else { Domain::IPV6 }, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if !ipv4 {
        socket.set_only_v6(true)?;
    }
    if whole {
        let (level, name, value) = if ipv4 {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
        };
        let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: `value` is a live integer of the size given; the kernel only reads it.
        let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let any = if ipv4 { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(any, port).into())?;
    UdpSocket::from_std(socket.into())
}
