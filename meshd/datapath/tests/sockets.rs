//! The programs of sockets, by sockets: each test runs in a thread with a network and a mount namespace of its own, and its process is
//! in a control group of its own, which is the only one with programs.
//!
//! The maps are written by hand. Nothing has a route to a service, so what reaches a backend was translated.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use meshd_abi::{
    Address, Backend, BackendState, NO_TABLE, Reason, Scope, Service, ServiceKey, Settings, V4, V6, service_flags,
};
use meshd_datapath::{Attached, ControlGroup, FamilyMaps, Maps, Programs, SocketProgram, shape::Sizes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where backends listen.
const BACKEND_PORT: u16 = 8_080;
/// Backends of each family, and their indexes: from one on.
const BACKENDS: u32 = 4;

/// A family and its addresses.
#[derive(Clone, Copy, Debug)]
struct Net {
    service: &'static str,
    empty: &'static str,
    backend: fn(u32) -> IpAddr,
    /// How a socket of the other family writes the service.
    mapped: Option<&'static str>,
}

const NET4: Net = Net {
    service: "10.2.0.80:80",
    empty: "10.2.0.81:80",
    backend: |index| IpAddr::from([10, 1, 0, index as u8]),
    mapped: Some("[::ffff:10.2.0.80]:80"),
};
const NET6: Net = Net {
    service: "[fd02::80]:80",
    empty: "[fd02::81]:80",
    backend: |index| Ipv6Addr::from([0xfd01, 0, 0, 0, 0, 0, 0, index as u16]).into(),
    mapped: None,
};
const NETS: [Net; 2] = [NET4, NET6];

/// A control group that the process of the test is in until the end.
struct Group {
    path: PathBuf,
    before: PathBuf,
}

impl Group {
    fn enter() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mount = mounts
            .lines()
            .find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4)).flatten()
            })
            .expect("control groups of version 2 are mounted");
        let own = fs::read_to_string("/proc/self/cgroup").expect("groups");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group of version 2");
        let group = Self {
            path: Path::new(mount).join(format!("meshd-sockets-{}", std::process::id())),
            before: Path::new(mount).join(own),
        };
        fs::create_dir(&group.path).expect("a group");
        group.take(&group.path);
        group
    }

    fn take(&self, group: &Path) {
        fs::write(group.join("cgroup.procs"), "0").expect("the process changes its group");
    }

    /// Makes a socket outside of the group.
    fn outside<T>(&self, make: impl FnOnce() -> T) -> T {
        self.take(&self.before);
        let made = make();
        self.take(&self.path);
        made
    }

    fn open(&self) -> ControlGroup {
        ControlGroup::open(&self.path).expect("the group")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.take(&self.before);
        // The kernel takes a moment to count the process out.
        for _ in 0..1_000 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A place with programs on a group, backends that listen, and services in the maps.
struct Place {
    group: Group,
    pins: PathBuf,
    programs: Programs,
    /// What listens stays open; the kernel answers connections by itself.
    _listeners: Vec<TcpListener>,
    echoes: Vec<UdpSocket>,
}

fn small() -> Sizes {
    Sizes {
        connections: 1_024,
        recent: 256,
        services: 256,
        backends: 256,
        members: 256,
        maglev: 16,
        identities: 256,
        sockets: 4_096,
        ..Sizes::default()
    }
}

fn in_place(test: impl FnOnce(Place) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads programs into the kernel and needs root; without it: cargo nextest run --profile unprivileged"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
        let folder = tempfile::tempdir().expect("a folder");
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("make mounts private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing).expect("mount a bpf file system");
        let output = Command::new("sh")
            .args(["-ec", "ip link set lo up; for i in 1 2 3 4; do ip addr add 10.1.0.$i/32 dev lo; ip addr add fd01::$i/128 dev lo nodad; done"])
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{output:?}");
        let mut listeners = Vec::new();
        let mut echoes = Vec::new();
        for net in NETS {
            for index in 1..=BACKENDS {
                let at = ((net.backend)(index), BACKEND_PORT);
                listeners.push(TcpListener::bind(at).expect("listen"));
                echoes.push(UdpSocket::bind(at).expect("bind"));
            }
        }
        let group = Group::enter();
        let pins = folder.path().join("meshd");
        let mut programs = Programs::load(&pins, &small()).expect("load");
        write_maps(&programs.maps);
        for program in SocketProgram::ALL {
            assert_eq!(programs.attach_socket(program, &group.open()).expect("attach"), Attached::Group);
        }
        test(Place { group, pins, programs, _listeners: listeners, echoes });
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmount the bpf file system");
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn write_maps(maps: &Maps) {
    maps.settings.put(&0, &Settings { seed: 7_606, ..Settings::default() }).expect("settings");
    let members: Vec<u32> = (0..=BACKENDS).collect();
    maps.members.put_all(&members, &members).expect("members");
    for net in NETS {
        for index in 1..=BACKENDS {
            put_backend(maps, net, index, BackendState::Active);
        }
        for protocol in [TCP, UDP] {
            put_service(maps, net.service, protocol, |_| ());
            put_service(maps, net.empty, protocol, |service| service.count = 0);
        }
    }
}

fn v4(ip: IpAddr) -> V4 {
    let IpAddr::V4(ip) = ip else { panic!("{ip} is IPv6") };
    V4::from_octets(ip.octets())
}

fn v6(ip: IpAddr) -> V6 {
    let IpAddr::V6(ip) = ip else { panic!("{ip} is IPv4") };
    V6::from_octets(ip.octets())
}

/// One service of each family has both protocols.
const fn id_of(is_v4: bool) -> u32 {
    if is_v4 { 4 } else { 6 }
}

fn put_backend(maps: &Maps, net: Net, index: u32, state: BackendState) {
    fn put<A: Address>(maps: &FamilyMaps<A>, address: A, index: u32, state: BackendState) {
        let backend = Backend {
            address,
            next_hop: 0,
            port: BACKEND_PORT.to_be(),
            state: state as u8,
            local: 1,
            owner: id_of(A::IS_V4),
        };
        maps.backends.put(&index, &backend).expect("a backend");
    }
    let ip = (net.backend)(index);
    if ip.is_ipv4() { put(&maps.v4, v4(ip), index, state) } else { put(&maps.v6, v6(ip), index, state) }
}

fn put_service(maps: &Maps, at: &str, protocol: u8, change: impl FnOnce(&mut Service)) {
    fn put<A: Address>(maps: &FamilyMaps<A>, address: A, port: u16, protocol: u8, service: Service) {
        let key = ServiceKey::new(address, port.to_be(), protocol, Scope::Internal);
        maps.services.put(&key, &service).expect("a service");
    }
    let at: SocketAddr = at.parse().expect("an address");
    let mut service = Service {
        id: id_of(at.is_ipv4()),
        table: NO_TABLE,
        slots: BACKENDS,
        members: 1,
        affinity: 0,
        count: BACKENDS as u16,
        flags: 0,
    };
    change(&mut service);
    if at.is_ipv4() {
        put(&maps.v4, v4(at.ip()), at.port(), protocol, service);
    } else {
        put(&maps.v6, v6(at.ip()), at.port(), protocol, service);
    }
}

fn to(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

impl Place {
    /// Whom so many connections really reach, and how often.
    fn connect(&self, service: &str, times: usize) -> BTreeMap<IpAddr, usize> {
        let mut reached = BTreeMap::new();
        for _ in 0..times {
            let stream = TcpStream::connect(to(service)).unwrap_or_else(|error| panic!("{service}: {error}"));
            assert_eq!(stream.peer_addr().expect("a peer"), to(service), "the service is what the process sees");
            *reached.entry(self.accept()).or_default() += 1;
        }
        reached
    }

    /// Which backend was connected to.
    fn accept(&self) -> IpAddr {
        for listener in &self._listeners {
            listener.set_nonblocking(true).expect("not blocking");
            if let Ok((stream, _)) = listener.accept() {
                return stream.local_addr().expect("an address").ip();
            }
        }
        panic!("no backend was connected to")
    }

    /// Answers the one datagram that came; tells to whom it came.
    fn echo(&self) -> IpAddr {
        let mut buffer = [0; 16];
        for echo in &self.echoes {
            echo.set_nonblocking(true).expect("not blocking");
            if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                echo.send_to(&buffer[..length], from).expect("answered");
                return echo.local_addr().expect("an address").ip();
            }
        }
        panic!("no backend got a datagram")
    }

    fn counted(&self, reason: Reason) -> u64 {
        let copies = self.programs.maps.counters.get(reason as u32).expect("a counter");
        copies.iter().map(|counter| counter.packets).sum()
    }
}

/// A socket of the family that a written address has.
fn socket_for(service: &str) -> UdpSocket {
    let any = if to(service).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket
}

/// All ways to write the services.
fn written() -> impl Iterator<Item = (Net, &'static str)> {
    NETS.into_iter().flat_map(|net| [Some(net.service), net.mapped].into_iter().flatten().map(move |text| (net, text)))
}

fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error()
}

#[test]
fn a_connection_reaches_every_backend_and_sees_the_service() {
    in_place(|place| {
        for (net, service) in written() {
            let reached = place.connect(service, 400);
            assert_eq!(reached.len(), BACKENDS as usize, "{reached:?}");
            for (ip, times) in reached {
                assert!((1..=BACKENDS).any(|index| (net.backend)(index) == ip), "{ip}");
                // Five standard deviations of a fair choice.
                assert!((56..=144).contains(&times), "{ip}: {times} of 400");
            }
        }
        assert_eq!(place.counted(Reason::SocketTranslated), 1_200);
    });
}

#[test]
fn datagrams_of_a_socket_stay_together_and_come_back_from_the_service() {
    in_place(|place| {
        for (_, service) in written() {
            let mut reached = BTreeMap::<IpAddr, usize>::new();
            let mut buffer = [0; 16];
            for _ in 0..100 {
                let socket = socket_for(service);
                let mut first = None;
                for _ in 0..3 {
                    socket.send_to(b"question", to(service)).expect("sent");
                    let ip = place.echo();
                    let (_, from) = socket.recv_from(&mut buffer).expect("an answer");
                    assert_eq!(from, to(service));
                    assert_eq!(*first.get_or_insert(ip), ip, "one socket, one backend");
                }
                *reached.entry(first.expect("a backend")).or_default() += 1;
            }
            assert_eq!(reached.len(), BACKENDS as usize, "sockets are spread: {reached:?}");
            // A connected one.
            let socket = socket_for(service);
            socket.connect(to(service)).expect("connected");
            assert_eq!(socket.peer_addr().expect("a peer"), to(service));
            socket.send(b"question").expect("sent");
            place.echo();
            assert_eq!(socket.recv_from(&mut buffer).expect("an answer").1, to(service));
        }
        // Once for each socket, not for each datagram.
        assert_eq!(place.counted(Reason::SocketTranslated), 303);
    });
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    in_place(|place| {
        for net in NETS {
            let error = TcpStream::connect(to(net.empty)).expect_err("nobody is there");
            assert_eq!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
            let socket = socket_for(net.empty);
            let error = socket.send_to(b"question", to(net.empty)).expect_err("nobody is there");
            assert_eq!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
            // Backends that are all on their way out are none for new connections.
            for index in 1..=BACKENDS {
                put_backend(&place.programs.maps, net, index, BackendState::Terminating);
            }
            let error = TcpStream::connect(to(net.service)).expect_err("nobody is there");
            assert_eq!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
        }
        assert_eq!(place.counted(Reason::SocketRefused), 6);
        assert_eq!(place.counted(Reason::SocketTranslated), 0);
    });
}

#[test]
fn what_is_no_service_and_what_is_outside_of_the_group_is_left_alone() {
    in_place(|place| {
        for net in NETS {
            let backend = SocketAddr::new((net.backend)(2), BACKEND_PORT);
            let stream = TcpStream::connect(backend).expect("connected");
            assert_eq!((stream.peer_addr().expect("a peer"), place.accept()), (backend, backend.ip()));
            let error = place.group.outside(|| TcpStream::connect(to(net.service))).expect_err("there is no route");
            assert_ne!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
            // Another protocol of the same address and port is another destination.
            let key = ServiceKey::new(V4::from_octets([10, 2, 0, 80]), 80_u16.to_be(), UDP, Scope::Internal);
            place.programs.maps.v4.services.remove(&key).expect("removed");
            assert!(socket_for(NET4.service).send_to(b"?", to(NET4.service)).is_err());
        }
        assert_eq!(place.counted(Reason::SocketTranslated), 0);
    });
}

#[test]
fn a_backend_that_asks_its_own_service_talks_to_itself() {
    in_place(|place| {
        // Only the first one is left.
        for net in NETS {
            for protocol in [TCP, UDP] {
                put_service(&place.programs.maps, net.service, protocol, |service| {
                    (service.count, service.slots) = (1, 1);
                });
            }
            let own = (net.backend)(1);
            let socket = UdpSocket::bind((own, 0)).expect("bind");
            socket.send_to(b"question", to(net.service)).expect("sent");
            let mut buffer = [0; 16];
            let echo = place.echoes.iter().find(|echo| echo.local_addr().expect("an address").ip() == own);
            let (_, from) = echo.expect("it listens").recv_from(&mut buffer).expect("a question");
            // No address in between: a packet translated on its way could not keep it.
            assert_eq!(from, socket.local_addr().expect("an address"));
        }
    });
}

#[test]
fn a_namespace_keeps_its_backend_with_session_affinity() {
    in_place(|place| {
        for net in NETS {
            put_service(&place.programs.maps, net.service, TCP, |service| service.affinity = 600);
            let reached = place.connect(net.service, 30);
            let [(first, 30)] = reached.into_iter().collect::<Vec<_>>()[..] else { panic!("it changes") };
            let index = (1..=BACKENDS).find(|index| (net.backend)(*index) == first).expect("a backend");
            put_backend(&place.programs.maps, net, index, BackendState::Terminating);
            // Among the members it is still, as it is for a moment when a backend goes.
            let second = (0..20)
                .find_map(|_| TcpStream::connect(to(net.service)).ok().map(|_| place.accept()))
                .expect("another backend");
            assert_ne!(first, second);
            assert_eq!(place.connect(net.service, 30).into_iter().collect::<Vec<_>>(), [(second, 30)]);
            // The choice by client is the same without memory.
            put_backend(&place.programs.maps, net, index, BackendState::Active);
            put_service(&place.programs.maps, net.service, TCP, |service| service.flags = service_flags::BY_SOURCE);
            assert_eq!(place.connect(net.service, 30).len(), 1);
        }
    });
}

/// What the kernel says is on the group.
fn on(group: &Path) -> Vec<String> {
    let output = Command::new("bpftool").args(["cgroup", "show"]).arg(group).output().expect("bpftool runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut names: Vec<String> =
        text.lines().filter_map(|line| Some(line.split_whitespace().last()?.to_owned())).collect();
    names.retain(|name| name.starts_with("socket_"));
    names.sort();
    names
}

#[test]
fn attachments_outlive_their_process_and_are_taken_over_and_away() {
    in_place(|place| {
        let Place { group, pins, programs, .. } = &place;
        assert_eq!(on(&group.path).len(), 8, "{:?}", on(&group.path));
        let mut found = programs.attached_sockets();
        found.sort();
        let mut expected: Vec<_> =
            SocketProgram::ALL.into_iter().map(|program| (program, group.open().number())).collect();
        expected.sort();
        assert_eq!(found, expected);
        // The next process.
        let mut next = Programs::load(pins, &small()).expect("load");
        for program in SocketProgram::ALL {
            assert_eq!(next.attach_socket(program, &group.open()).expect("adopt"), Attached::Adopted);
        }
        assert_eq!(on(&group.path).len(), 8, "one of each");
        assert_eq!(place.connect(NET4.service, 8).values().sum::<usize>(), 8);
        // Another group: the old one is told apart by its number.
        let other = group.path.join("other");
        fs::create_dir(&other).expect("a group");
        let opened = ControlGroup::open(&other).expect("the group");
        assert_eq!(next.attach_socket(SocketProgram::Connect4, &opened).expect("attach"), Attached::Group);
        assert_eq!(next.attached_sockets().len(), 9);
        assert!(next.detach_socket(SocketProgram::Connect4, group.open().number()).expect("detach"));
        assert!(!next.detach_socket(SocketProgram::Connect4, group.open().number()).expect("it was gone"));
        assert_eq!((on(&group.path).len(), on(&other).len()), (7, 1));
        fs::remove_dir(&other).expect("the group goes");
        next.remove().expect("removed");
        assert_eq!(on(&group.path), [""; 0]);
        assert!(TcpStream::connect(to(NET4.service)).is_err(), "nothing is translated any more");
        let error = ControlGroup::open(Path::new("/sys")).expect_err("it is none");
        assert!(error.to_string().contains("services.cgroup"), "{error}");
    });
}
