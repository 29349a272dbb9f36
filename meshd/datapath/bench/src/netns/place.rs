//! The namespaces: a client, one or two routers in between, a server, and our programs in the routers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use meshd_core::id::IfIndex;
use meshd_datapath::{Program, Programs, shape::Sizes};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};

use crate::shell;

/// The link to the client in the first router, and the one that leads on.
pub(super) const CLIENT_LINK: IfIndex = IfIndex(31);
pub(super) const UP_LINK: IfIndex = IfIndex(32);
/// Link-layer addresses: the router's to the client, the client's, the router's on, the next one's.
pub(super) const MACS: [&str; 4] = ["02:00:00:00:31:01", "02:00:00:00:31:02", "02:00:00:00:32:01", "02:00:00:00:32:02"];

/// The last router's to the server, and the server's.
pub(super) const SERVER_MACS: (&str, &str) = ("02:00:00:00:33:01", "02:00:00:00:33:02");

/// A network namespace.
pub(super) struct Namespace(File);

impl Namespace {
    /// Makes one, which the thread is in from then on.
    fn new() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
        let namespace = File::open("/proc/thread-self/ns/net").context("failed to open the network namespace")?;
        shell("ip link set lo up; sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv4.conf.default.rp_filter=0")?;
        Ok(Self(namespace))
    }

    /// Goes there with the calling thread.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("failed to enter a network namespace")
    }

    /// For another thread.
    pub(super) fn again(&self) -> anyhow::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Everything, with the calling thread in the first router.
pub(super) struct Place {
    pub(super) client: Namespace,
    pub(super) routers: Vec<Namespace>,
    pub(super) server: Namespace,
    /// By router.
    programs: BTreeMap<usize, Programs>,
    folder: tempfile::TempDir,
}

impl Place {
    /// One router or two: addresses are 10.64.0.0/24 at the client, 10.65.0.0/24 at the server, 192.0.2.0/24 between routers.
    pub(super) fn new(nodes: usize) -> anyhow::Result<Self> {
        let client = Namespace::new()?;
        let server = Namespace::new()?;
        let routers = (0..nodes).map(|_| Namespace::new()).collect::<anyhow::Result<Vec<_>>>()?;
        let folder = tempfile::tempdir()?;
        let nothing: Option<&str> = None;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing)?;
        let place = Self { client, routers, server, programs: BTreeMap::new(), folder };
        place.join()?;
        place.routers[0].enter()?;
        Ok(place)
    }

    fn join(&self) -> anyhow::Result<()> {
        let [near, peer, on, next] = MACS;
        let (first, last) = (&self.routers[0], &self.routers[self.routers.len() - 1]);
        let is_alone = self.routers.len() == 1;
        let (on_ip, next_ip) = if is_alone { ("10.65.0.1", "10.65.0.2") } else { ("192.0.2.1", "192.0.2.2") };
        let next_namespace = if is_alone { &self.server } else { last };
        first.enter()?;
        shell(&format!(
            "sysctl -qw net.ipv4.ip_forward=1
             ip link add cl index {CLIENT_LINK} address {near} type veth peer name c0 address {peer} netns {client}
             ip link add wan0 index {UP_LINK} address {on} type veth peer name s0 address {next} netns {next_namespace}
             ip addr add 10.64.0.1/24 dev cl; ip link set cl up
             ip addr add {on_ip}/24 dev wan0; ip link set wan0 up
             ip neigh replace 10.64.0.2 lladdr {peer} dev cl nud permanent
             ip neigh replace {next_ip} lladdr {next} dev wan0 nud permanent",
            client = self.client.path(),
            next_namespace = next_namespace.path(),
        ))?;
        self.client.enter()?;
        shell(&format!(
            "ip addr add 10.64.0.2/24 dev c0; ip link set c0 up; ip route add default via 10.64.0.1
             ip neigh replace 10.64.0.1 lladdr {near} dev c0 nud permanent"
        ))?;
        let (to_server, of_server) = SERVER_MACS;
        next_namespace.enter()?;
        if is_alone {
            return shell(&format!(
                "ip addr add 10.65.0.2/24 dev s0; ip link set s0 up; ip route add default via 10.65.0.1
                 ip neigh replace 10.65.0.1 lladdr {on} dev s0 nud permanent"
            ));
        }
        shell(&format!(
            "sysctl -qw net.ipv4.ip_forward=1
             ip addr add 192.0.2.2/24 dev s0; ip link set s0 up
             ip neigh replace 192.0.2.1 lladdr {on} dev s0 nud permanent
             ip link add sv address {to_server} type veth peer name w0 address {of_server} netns {server}
             ip addr add 10.65.0.1/24 dev sv; ip link set sv up
             ip neigh replace 10.65.0.2 lladdr {of_server} dev sv nud permanent",
            server = self.server.path()
        ))?;
        self.server.enter()?;
        shell(&format!(
            "ip addr add 10.65.0.2/24 dev w0; ip link set w0 up; ip route add default via 10.65.0.1
             ip neigh replace 10.65.0.1 lladdr {to_server} dev w0 nud permanent",
        ))
    }

    /// Runs lines in a router.
    pub(super) fn in_router(&self, number: usize, lines: &str) -> anyhow::Result<()> {
        self.within(number, || shell(lines))
    }

    /// Index of a router's link.
    pub(super) fn link(&self, number: usize, name: &str) -> anyhow::Result<IfIndex> {
        self.within(number, || if_nametoindex(name).map(IfIndex).with_context(|| format!("no link {name}")))
    }

    /// Does something in a router.
    fn within<T>(&self, number: usize, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.routers[number].enter()?;
        let outcome = act();
        self.routers[0].enter()?;
        outcome
    }

    /// The programs of a router, loaded when they are asked for first.
    pub(super) fn programs(&mut self, number: usize) -> anyhow::Result<&mut Programs> {
        match self.programs.entry(number) {
            Entry::Occupied(loaded) => Ok(loaded.into_mut()),
            Entry::Vacant(room) => {
                let folder: PathBuf = self.folder.path().join(format!("meshd{number}"));
                let sizes = Sizes { connections: crate::CONNECTIONS, ..Sizes::default() };
                Ok(room.insert(Programs::load(&folder, &sizes)?))
            }
        }
    }

    /// Puts programs onto links of a router.
    pub(super) fn attach(&mut self, number: usize, all: &[(Program, IfIndex)]) -> anyhow::Result<()> {
        self.routers[number].enter()?;
        let programs = self.programs(number)?;
        let attached = all.iter().try_for_each(|(program, link)| programs.attach(*program, *link).map(drop));
        self.routers[0].enter()?;
        Ok(attached?)
    }

    /// Takes them off again.
    pub(super) fn detach(&mut self, number: usize, all: &[(Program, IfIndex)]) -> anyhow::Result<()> {
        self.routers[number].enter()?;
        let programs = self.programs(number)?;
        let detached = all.iter().try_for_each(|(program, link)| programs.detach(*program, *link).map(drop));
        self.routers[0].enter()?;
        Ok(detached?)
    }

    /// Everything else goes with the thread.
    pub(super) fn end(self) -> anyhow::Result<()> {
        for programs in self.programs.into_values() {
            programs.remove()?;
        }
        let path: &Path = self.folder.path();
        Ok(umount2(path, MntFlags::MNT_DETACH)?)
    }
}
