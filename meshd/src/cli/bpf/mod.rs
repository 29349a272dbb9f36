//! `meshd bpf`: what the maps of the kernel's programs hold, read from their pins.
//!
//! The daemon is not asked, so this works while it is down and shows what packets meet and not what somebody believes they do. Entries
//! are printed as they are read: a table of half a million connections takes no memory here.

mod printer;
mod views;

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use meshd_abi::{Address, BPFFS_FOLDER, Connection, ConnectionKey, Identity, V4, V6, connection_flags};
use meshd_datapath::{DatapathError, FamilyMaps, Maps, ticks};
use serde::Serialize;

use self::printer::{Printer, Row};
use self::views::{ConnectionView, FrontendView, IdentityView, PortsView, PrefixView, Reader};
use super::failure::Failure;
use super::options::OutputOptions;
use crate::config::error::chain;

/// Show the maps of the kernel's programs, also while the daemon is down; needs root
#[derive(Debug, Subcommand)]
pub(super) enum Bpf {
    /// Frontends of services and their backends
    Lb(Table),
    /// Known connections, each direction of them
    Ct(Table),
    /// Connections whose source is translated
    Nat(Nat),
    /// Addresses and the identities behind them, and prefixes that have one
    Ipcache(Table),
    /// Prefixes that masquerade knows: those of own workloads, and those that keep their source
    Masq(Table),
}

/// What to do with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Show every entry
    List,
    /// Show the entries of these addresses
    Get,
    /// Remove entries of connections
    Flush,
}

/// The same with what only translated sources have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum NatAction {
    /// Show every entry
    List,
    /// Show the entries of these addresses
    Get,
    /// Show how many ports are used towards each destination, most first
    Ports,
    /// Remove entries of connections
    Flush,
}

/// A table and what to do with it.
#[derive(Debug, Args)]
pub(super) struct Table {
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: Action,
    #[command(flatten)]
    options: Options,
}

/// See [`Table`].
#[derive(Debug, Args)]
pub(super) struct Nat {
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: NatAction,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// Addresses, with a port or without; for `get`, and for `flush` of some entries only
    #[arg(value_name = "ADDRESS[:PORT]", value_parser = Wanted::read)]
    addresses: Vec<Wanted>,
    /// Stop after so many entries; 0: show all
    #[arg(long, value_name = "N", default_value = "0")]
    limit: u64,
    /// Really flush: connections break
    #[arg(long)]
    force: bool,
    /// Folder of the pins
    #[arg(long, value_name = "DIR", default_value = BPFFS_FOLDER)]
    bpffs: PathBuf,
    #[command(flatten)]
    output: OutputOptions,
}

/// An address that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    address: IpAddr,
    port: Option<u16>,
}

impl Wanted {
    fn read(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(at) => Ok(Self { address: at.ip(), port: Some(at.port()) }),
            Err(_) => {
                Err(format!("{text:?} is no address, and no address with a port such as 10.2.0.80:80 or [fd00::1]:80"))
            }
        }
    }

    fn is(&self, at: SocketAddr) -> bool {
        self.address == at.ip() && self.port.is_none_or(|port| port == at.port())
    }
}

impl Bpf {
    pub(super) fn run(self) -> Result<(), Failure> {
        let not_ours = |name: &str| {
            Failure::usage(
                format!(
                    "{name} cannot be flushed: the daemon keeps it equal to its tables, and packets would meet a gap"
                ),
                "restart the daemon to compare everything again (systemctl restart meshd), or change its configuration",
            )
        };
        match self {
            Self::Lb(Table { action: Action::Flush, .. }) => Err(not_ours("lb")),
            Self::Ipcache(Table { action: Action::Flush, .. }) => Err(not_ours("ipcache")),
            Self::Masq(Table { action: Action::Flush, .. }) => Err(not_ours("masq")),
            Self::Lb(table) => table.options.show("lb", table.action == Action::Get, frontends),
            Self::Ipcache(table) => table.options.show("ipcache", table.action == Action::Get, identities),
            Self::Masq(table) => table.options.show("masq", table.action == Action::Get, prefixes),
            Self::Ct(table) => match table.action {
                Action::Flush => table.options.flush("ct", false),
                action => table.options.show("ct", action == Action::Get, connections),
            },
            Self::Nat(table) => match table.action {
                NatAction::Flush => table.options.flush("nat", true),
                NatAction::Ports => table.options.show("nat", false, ports),
                action => table.options.show("nat", action == NatAction::Get, translations),
            },
        }
    }
}

/// Opens the maps, or says what is in the way.
fn open(folder: &Path) -> Result<Maps, Failure> {
    Maps::existing(folder).map_err(|error| {
        let failure = failed(&error);
        // The folder is root's, and so are the calls.
        if nix::unistd::geteuid().is_root() { failure } else { failure.hint("run this as root") }
    })
}

/// A refusal of the kernel; some say themselves what to do.
fn failed(error: &DatapathError) -> Failure {
    let text = chain(error);
    match text.split_once("; hint: ") {
        Some((message, hint)) => Failure::message(message).hint(hint),
        None => Failure::message(text),
    }
}

type Show<T> = fn(&Maps, &[Wanted], &mut dyn FnMut(T) -> ControlFlow<()>) -> Result<(), DatapathError>;

impl Options {
    /// Prints what `walk` finds; `get` asks for some addresses and fails when there is nothing.
    fn show<T: Row + Serialize>(self, table: &str, is_get: bool, walk: Show<T>) -> Result<(), Failure> {
        if is_get && self.addresses.is_empty() {
            let hint = format!("write `meshd bpf {table} get 10.0.0.1`; `meshd bpf {table} list` shows everything");
            return Err(Failure::usage("get needs an address", hint));
        }
        if !is_get && !self.addresses.is_empty() {
            let hint = format!("write `meshd bpf {table} get {}`", self.addresses[0].address);
            return Err(Failure::usage("list takes no address", hint));
        }
        let maps = open(&self.bpffs)?;
        let mut printer = Printer::new(self.output.output, self.limit);
        let walked = walk(&maps, &self.addresses, &mut |row: T| printer.put(&row));
        walked.map_err(|error| failed(&error))?;
        let count = printer.finish::<T>()?;
        if is_get && count == 0 {
            return Err(Failure::message(format!("nothing in {table} has this address"))
                .hint(format!("`meshd bpf {table} list` shows what there is")));
        }
        Ok(())
    }

    fn flush(self, table: &str, nat_only: bool) -> Result<(), Failure> {
        if !self.force {
            let what = if nat_only { "translated sources" } else { "services, masquerade and translated sources" };
            return Err(Failure::usage(
                format!(
                    "flush makes this node forget connections of {what}: those that are open break, because their packets get no translation \
                     any more or another backend, and answers that come are not recognised; new connections work"
                ),
                format!(
                    "`meshd bpf {table} flush --force` does it; with addresses only their connections are forgotten"
                ),
            ));
        }
        let maps = open(&self.bpffs)?;
        let flushed = flush(&maps.v4, &self.addresses, nat_only);
        let count = flushed.and_then(|count| Ok(count + flush(&maps.v6, &self.addresses, nat_only)?));
        let count = count.and_then(|count| maps.forget_recent().map(|()| count)).map_err(|error| failed(&error))?;
        super::output::text(&format!("{count} entries removed\n"))
    }
}

fn frontends(
    maps: &Maps,
    wanted: &[Wanted],
    put: &mut dyn FnMut(FrontendView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    let reader = Reader::new(maps)?;
    let mut all = reader.frontends(&maps.v4)?;
    all.extend(reader.frontends(&maps.v6)?);
    all.sort_by_key(|view| (view.address, view.port, view.protocol.clone(), view.scope.clone()));
    for view in all {
        let at = SocketAddr::new(view.address, view.port);
        let is_wanted = wanted.is_empty() || wanted.iter().any(|wanted| wanted.is(at));
        if is_wanted && put(view).is_break() {
            break;
        }
    }
    Ok(())
}

fn connections(
    maps: &Maps,
    wanted: &[Wanted],
    put: &mut dyn FnMut(ConnectionView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    of_connections(maps, wanted, |_| true, put)
}

/// Of each connection the direction whose source is translated.
fn translations(
    maps: &Maps,
    wanted: &[Wanted],
    put: &mut dyn FnMut(ConnectionView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    of_connections(maps, wanted, |flags| is_translation(flags) && flags & connection_flags::REPLY == 0, put)
}

fn is_translation(flags: u8) -> bool {
    flags & connection_flags::SNAT != 0
}

fn of_connections(
    maps: &Maps,
    wanted: &[Wanted],
    fits: fn(u8) -> bool,
    put: &mut dyn FnMut(ConnectionView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    fn family<A: Address>(
        maps: &FamilyMaps<A>,
        wanted: &[Wanted],
        fits: fn(u8) -> bool,
        put: &mut dyn FnMut(ConnectionView) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DatapathError> {
        let now = ticks();
        let mut flow = ControlFlow::Continue(());
        maps.connections.walk_until(|key, connection| {
            if fits(connection.flags) && is_of(key, connection, wanted) {
                flow = put(ConnectionView::new(key, connection, now));
            }
            flow
        })?;
        Ok(flow)
    }
    if family(&maps.v4, wanted, fits, put)?.is_continue() {
        let _ended: ControlFlow<()> = family(&maps.v6, wanted, fits, put)?;
    }
    Ok(())
}

/// True when an end of the connection, before translation or after, is asked for.
fn is_of<A: Address>(key: &ConnectionKey<A>, connection: &Connection<A>, wanted: &[Wanted]) -> bool {
    let tuple = &connection.tuple;
    wanted.is_empty()
        || [
            views::socket(key.source, key.source_port),
            views::socket(key.destination, key.destination_port),
            views::socket(tuple.source, tuple.source_port),
            views::socket(tuple.destination, tuple.destination_port),
        ]
        .into_iter()
        .any(|end| wanted.iter().any(|wanted| wanted.is(end)))
}

/// Destinations by how many ports of ours talk to them.
fn ports(maps: &Maps, _: &[Wanted], put: &mut dyn FnMut(PortsView) -> ControlFlow<()>) -> Result<(), DatapathError> {
    let reader = Reader::new(maps)?;
    let mut views = reader.ports(&maps.v4)?;
    views.extend(reader.ports(&maps.v6)?);
    views.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.destination.cmp(&b.destination)));
    let _ended: ControlFlow<()> = views.into_iter().try_for_each(put);
    Ok(())
}

fn identities(
    maps: &Maps,
    wanted: &[Wanted],
    put: &mut dyn FnMut(IdentityView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    if wanted.is_empty() {
        let mut flow = ControlFlow::Continue(());
        maps.v4.identities.walk_until(|address, identity| {
            flow = put(IdentityView::new(views::ip(*address), identity));
            flow
        })?;
        if flow.is_continue() {
            maps.v6.identities.walk_until(|address, identity| {
                flow = put(IdentityView::new(views::ip(*address), identity));
                flow
            })?;
        }
        if flow.is_continue() {
            let known = known_prefixes(maps)?;
            let _ended: ControlFlow<()> =
                known.iter().try_for_each(|(prefix, identity)| put(IdentityView::new(prefix, identity)));
        }
        return Ok(());
    }
    let prefixes = known_prefixes(maps)?;
    for Wanted { address, .. } in wanted {
        let found = match address {
            IpAddr::V4(v4) => maps.v4.identities.get(&V4::from_octets(v4.octets()))?,
            IpAddr::V6(v6) => maps.v6.identities.get(&V6::from_octets(v6.octets()))?,
        };
        // Without one of its own, what is known of the longest prefix around it.
        let around = || {
            let covering = prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
            covering.max_by_key(|(prefix, _)| prefix.prefix_len())
        };
        let view = match found {
            Some(identity) => Some(IdentityView::new(address, &identity)),
            None => around().map(|(prefix, identity)| IdentityView::new(prefix, identity)),
        };
        if view.is_some_and(|view| put(view).is_break()) {
            break;
        }
    }
    Ok(())
}

/// Prefixes that have an identity, in order.
fn known_prefixes(maps: &Maps) -> Result<Vec<(IpNet, Identity)>, DatapathError> {
    fn all<A: Address>(maps: &FamilyMaps<A>) -> Result<Vec<(IpNet, Identity)>, DatapathError> {
        let rows = maps.cidrs.all()?;
        Ok(rows.into_iter().filter_map(|(key, identity)| Some((views::prefix(&key)?, identity))).collect())
    }
    let mut known = all(&maps.v4)?;
    known.extend(all(&maps.v6)?);
    known.sort_by_key(|(prefix, _)| *prefix);
    Ok(known)
}

fn prefixes(
    maps: &Maps,
    wanted: &[Wanted],
    put: &mut dyn FnMut(PrefixView) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    fn all<A: Address>(maps: &FamilyMaps<A>) -> Result<Vec<PrefixView>, DatapathError> {
        let rows = maps.mesh.all()?;
        Ok(rows.into_iter().filter_map(|(key, flags)| Some(PrefixView::new(views::prefix(&key)?, flags))).collect())
    }
    let mut views = all(&maps.v4)?;
    views.extend(all(&maps.v6)?);
    views.sort_by_key(|view| view.prefix);
    if !wanted.is_empty() {
        // What the programs find is the longest of those that cover it.
        let of = |wanted: &Wanted| {
            let covering = views.iter().filter(|view| view.prefix.contains(&wanted.address));
            covering.max_by_key(|view| view.prefix.prefix_len()).cloned()
        };
        views = wanted.iter().filter_map(of).collect();
    }
    let _ended: ControlFlow<()> = views.into_iter().try_for_each(put);
    Ok(())
}

/// Removes entries of connections, both directions of each.
fn flush<A: Address>(maps: &FamilyMaps<A>, wanted: &[Wanted], nat_only: bool) -> Result<usize, DatapathError> {
    maps.connections
        .remove_if(|key, connection| (!nat_only || is_translation(connection.flags)) && is_of(key, connection, wanted))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        bpf: Bpf,
    }

    fn run(arguments: &[&str]) -> Failure {
        let line = Line::try_parse_from([&["bpf"], arguments].concat()).unwrap();
        line.bpf.run().unwrap_err()
    }

    #[test]
    fn what_cannot_be_done_is_said_before_anything_is_opened() {
        let nowhere = ["--bpffs", "/nonexistent"];
        for (arguments, said) in [
            (["lb", "flush", "--force"].as_slice(), "lb cannot be flushed"),
            (&["ipcache", "flush"], "ipcache cannot be flushed"),
            (&["masq", "flush"], "masq cannot be flushed"),
            (&["ct", "flush"], "those that are open break"),
            (&["nat", "flush"], "connections of translated sources"),
            (&["ct", "get"], "get needs an address"),
            (&["ct", "list", "10.0.0.1"], "list takes no address"),
        ] {
            let failure = run(&[arguments, &nowhere].concat());
            assert!(matches!(&failure, Failure::Usage { message, .. } if message.contains(said)), "{failure:?}");
        }
        for table in ["lb", "ct", "nat", "ipcache", "masq"] {
            let failure = run(&[&[table][..], &nowhere].concat());
            assert!(
                matches!(&failure, Failure::Failed { message, hint: Some(_) } if message.contains("/nonexistent")),
                "{failure:?}"
            );
        }
        for bad in ["10.0.0", "10.0.0.1:70000", "fd00::1:80:", "name"] {
            assert!(Line::try_parse_from(["bpf", "ct", "get", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_have_a_port_or_not() {
        let at: SocketAddr = "[fd00::1]:80".parse().unwrap();
        assert!(Wanted::read("fd00::1").unwrap().is(at) && Wanted::read("[fd00::1]:80").unwrap().is(at));
        assert!(!Wanted::read("[fd00::1]:81").unwrap().is(at) && !Wanted::read("10.0.0.1").unwrap().is(at));
    }
}
