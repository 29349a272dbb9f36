//! The daemons that are measured: one configuration for each, made from the same list of peers.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::Context as _;
use lab::Node;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{
    bgp::speaker::Identity,
    routers::{Blueprint, Network},
};

use super::ours;
use tests::usage::Usage;

/// The number and the identifier of the daemon.
pub(super) const ASN: u32 = 65000;
pub(super) const ROUTER_ID: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);

/// A daemon that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    Meshd,
    Bird,
    Frr,
    GoBgp,
}

pub(super) const ALL: [Daemon; 4] = [Daemon::Meshd, Daemon::Bird, Daemon::Frr, Daemon::GoBgp];

/// A peer of the daemon, which is passive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) identity: Identity,
    /// Whether the daemon advertises to it.
    pub(super) export: bool,
}

/// What a daemon has to do.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) peers: Vec<Peer>,
    /// Whether it installs routes in the kernel.
    pub(super) fib: bool,
}

impl Daemon {
    /// The name in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Meshd => "meshd",
            Self::Bird => "bird2",
            Self::Frr => "frr",
            Self::GoBgp => "gobgp",
        }
    }

    /// Whether it is on this machine and can be asked to do this. GoBGP has no FIB of its own.
    pub(super) fn can(self, fib: bool) -> bool {
        let program = match self {
            Self::Meshd => return ours::is_able(),
            Self::Bird => "/usr/sbin/bird",
            Self::Frr => "/usr/lib/frr/bgpd",
            Self::GoBgp => "/usr/bin/gobgpd",
        };
        std::path::Path::new(program).exists() && !(fib && self == Self::GoBgp)
    }

    fn blueprint(self, task: &Task) -> Blueprint {
        match self {
            Self::Meshd => ours::blueprint(task),
            Self::Bird => Blueprint::bird("daemon", &bird(task)),
            Self::Frr => Blueprint::frr_with("daemon", &frr(task), if task.fib { "" } else { "-n" }),
            Self::GoBgp => Blueprint::gobgp("daemon", &gobgp(task)),
        }
    }
}

fn bird(task: &Task) -> String {
    let mut text = format!("router id {ROUTER_ID};\n");
    if task.fib {
        text.push_str("protocol kernel { ipv4 { import none; export all; }; }\n");
    }
    for Peer { identity: Identity { asn, address, daemon, .. }, export } in &task.peers {
        let export = if *export { "all" } else { "none" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "protocol bgp {{ local {daemon} as {ASN}; neighbor {address} as {asn}; passive; ipv4 {{ import all; export {export}; }}; }}"
        );
    }
    text
}

fn frr(task: &Task) -> String {
    let mut text = format!("router bgp {ASN}\n bgp router-id {ROUTER_ID}\n no bgp ebgp-requires-policy\n");
    for Peer { identity: Identity { asn, address, .. }, export } in &task.peers {
        let _ = write!(
            text,
            " neighbor {address} remote-as {asn}\n neighbor {address} passive\n neighbor {address} advertisement-interval 0\n"
        );
        if !export {
            let _ = writeln!(
                text,
                " address-family ipv4 unicast\n  neighbor {address} route-map nothing out\n exit-address-family"
            );
        }
    }
    text + "route-map nothing deny 10\n"
}

fn gobgp(task: &Task) -> String {
    let mut text = format!(
        "global:\n  config: {{as: {ASN}, router-id: {ROUTER_ID}}}\n  apply-policy: {{config: {{export-policy-list: [quiet]}}}}\nneighbors:\n"
    );
    for Peer { identity: Identity { asn, address, .. }, .. } in &task.peers {
        let _ = writeln!(
            text,
            "  - config: {{neighbor-address: {address}, peer-as: {asn}}}\n    transport: {{config: {{passive-mode: true}}}}"
        );
    }
    let silent: Vec<String> =
        task.peers.iter().filter(|peer| !peer.export).map(|peer| peer.identity.address.to_string()).collect();
    if silent.is_empty() {
        return text.replace("\n  apply-policy: {config: {export-policy-list: [quiet]}}", "");
    }
    let _ = write!(
        text,
        "defined-sets:\n  neighbor-sets: [{{neighbor-set-name: silent, neighbor-info-list: [{}]}}]\n\
         policy-definitions:\n  - name: quiet\n    statements:\n      - conditions: {{match-neighbor-set: {{neighbor-set: silent}}}}\n        \
         actions: {{route-disposition: reject-route}}\n",
        silent.join(", ")
    );
    text
}

/// A daemon that runs, with the generator's namespace wired to it.
pub(super) struct Bench {
    network: Network,
    /// Where the generator's sockets are.
    pub(super) generator: Node,
    pub(super) daemon: Node,
    /// Its processes. Asked once: from inside the generator's namespaces the lab's own files are out of sight.
    pids: Vec<u32>,
}

impl Bench {
    /// Starts it. Senders sit behind the link `in`, the sink behind `out`.
    pub(super) fn up(daemon: Daemon, task: &Task) -> anyhow::Result<Self> {
        let mut generator = Blueprint::plain("generator").run("ip address add 10.98.0.2/24 dev out");
        for Peer { identity, .. } in &task.peers {
            if identity.address.octets()[1] == 99 {
                generator = generator.run(&format!("ip address add {}/16 dev in", identity.address));
            }
        }
        let measured = daemon
            .blueprint(task)
            .run("ip address add 10.99.0.1/16 dev in")
            .run("ip address add 10.98.0.1/24 dev out")
            .run("sysctl -q -w net.ipv4.tcp_rmem=\"4096 1048576 16777216\"");
        let links = [("generator:in", "daemon:in"), ("generator:out", "daemon:out")];
        let network = Network::with_links(&[measured, generator], &links)
            .with_context(|| format!("failed to start {}", daemon.name()))?;
        let (generator, daemon) =
            (network.router("generator")?.node().clone(), network.router("daemon")?.node().clone());
        let pids = network.router("daemon")?.pids().into_iter().map(u32::try_from).collect::<Result<_, _>>()?;
        Ok(Self { network, generator, daemon, pids })
    }

    /// What its processes have used so far; several count together.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let mut total = Usage { cpu_s: 0.0, peak_rss_mib: 0.0, rss_mib: 0.0 };
        for &pid in &self.pids {
            let usage = Usage::of(pid).context("the daemon has ended")?;
            total.cpu_s += usage.cpu_s;
            total.peak_rss_mib += usage.peak_rss_mib;
            total.rss_mib += usage.rss_mib;
        }
        Ok(total)
    }

    /// Ends its processes without asking.
    pub(super) fn end(&self) {
        for &pid in &self.pids {
            // One that is gone already has ended, which is what was wanted.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// The end of its log, for what goes wrong.
    pub(super) fn log_end(&self) -> String {
        let log = self.network.router("daemon").and_then(|router| router.log()).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(10).collect();
        end.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Takes everything down.
    pub(super) fn down(self) -> anyhow::Result<()> {
        self.network.down()
    }
}
