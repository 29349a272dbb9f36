//! The programs of sockets on their control group, and the end of sockets whose backend is gone.
//!
//! A socket that was translated when it connected goes on with its backend whatever the maps say. So a backend that is removed is
//! looked for among what sockets asked for: its connected sockets of datagrams are ended always, because nothing would ever tell them
//! that nobody listens, and those of TCP when the service says `on_backend_removal: kill`. A second look after the next sweep finds
//! a socket that was just choosing when the backend went.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use meshd_abi::{Address, Backend, BackendState, SocketKey, V4, V6};
use meshd_core::plan::datapath::{Existing, Write};
use meshd_datapath::{Attached, ControlGroup, DatapathError, FamilyMaps, Maps, Programs, SocketProgram};
use tracing::{info, warn};

use super::{LinkStatus, error_chain};
use crate::kernel::sockets::{Destroyer, Victim};

/// How often the entries are counted. Those of sockets that were closed stay until their room is needed, so the figure grows slowly.
const COUNT_PERIOD: Duration = Duration::from_secs(60);
/// IP protocol number of UDP.
const UDP: u8 = 17;

/// A backend that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Gone {
    index: u32,
    peer: SocketAddr,
    /// Its connections of TCP end as well.
    kill: bool,
}

/// What is known of sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    group: Option<PathBuf>,
    /// The group the programs are on, by number.
    number: Option<u64>,
    attached: BTreeMap<SocketProgram, Result<Attached, String>>,
    destroyer: Option<Destroyer>,
    /// Backends that were removed since the last look, and those of the look before.
    gone: BTreeSet<Gone>,
    again: BTreeSet<Gone>,
    /// Sockets that the destroyer had no room for.
    victims: BTreeSet<Victim>,
    problem: Option<String>,
    counted: Option<Instant>,
    /// Entries, per family.
    pub(super) used: [usize; 2],
}

impl Sockets {
    /// `existing` is what an earlier process left: backends that it removed may have sockets it did not come to.
    pub(super) fn new(group: Option<PathBuf>, existing: &Existing) -> Self {
        let mut sockets = Self { group, ..Self::default() };
        for (index, backend) in &existing.backends4 {
            sockets.note_backend(*index, backend);
        }
        for (index, backend) in &existing.backends6 {
            sockets.note_backend(*index, backend);
        }
        if let Some(group) = &sockets.group {
            match Destroyer::start(group.clone()) {
                Ok(destroyer) => sockets.destroyer = Some(destroyer),
                Err(error) => warn!(%error, "sockets of backends that go will not be ended"),
            }
        }
        sockets
    }

    /// Notes the backends that a plan removes, before it is carried out.
    pub(super) fn note(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Backend4(index, backend) => self.note_backend(*index, backend),
                Write::Backend6(index, backend) => self.note_backend(*index, backend),
                _ => {}
            }
        }
    }

    fn note_backend<A: Address>(&mut self, index: u32, backend: &Backend<A>) {
        if is_gone(backend.state) {
            let peer = SocketAddr::new(ip(backend.address), u16::from_be(backend.port));
            self.gone.insert(Gone { index, peer, kill: backend.state == BackendState::Killed as u8 });
        }
    }

    /// Ends the sockets of backends that were removed.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub(super) fn end(&mut self, maps: &Maps) -> Result<(), DatapathError> {
        let gone = std::mem::take(&mut self.gone);
        if !gone.is_empty() {
            find::<V4>(&maps.v4, &gone, &mut self.victims)?;
            find::<V6>(&maps.v6, &gone, &mut self.victims)?;
            self.again.extend(gone);
        }
        if self.victims.is_empty() {
            return Ok(());
        }
        if let Some(destroyer) = &self.destroyer {
            self.victims = destroyer.submit(std::mem::take(&mut self.victims)).err().unwrap_or_default();
        } else {
            self.victims.clear();
        }
        Ok(())
    }

    /// Looks a second time, and counts when it is time.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub(super) fn sweep(&mut self, maps: &Maps) -> Result<(), DatapathError> {
        let again = std::mem::take(&mut self.again);
        find::<V4>(&maps.v4, &again, &mut self.victims)?;
        find::<V6>(&maps.v6, &again, &mut self.victims)?;
        self.end(maps)?;
        if self.group.is_some() && self.counted.is_none_or(|counted| counted.elapsed() >= COUNT_PERIOD) {
            self.counted = Some(Instant::now());
            self.used = [0; 2];
            maps.v4.sockets.walk(|_, _| self.used[0] += 1)?;
            maps.v6.sockets.walk(|_, _| self.used[1] += 1)?;
        }
        Ok(())
    }

    /// Puts the programs on the control group, and takes them off every other one. What fails is tried again with the next call.
    pub(super) fn follow(&mut self, programs: &mut Programs) {
        self.problem = None;
        let Some(path) = &self.group else {
            self.leave(programs, None);
            return;
        };
        let group = match ControlGroup::open(path) {
            Ok(group) => group,
            Err(error) => {
                self.problem = Some(error_chain(&error));
                return;
            }
        };
        if self.number != Some(group.number()) {
            // Another group, perhaps of the same name.
            self.attached.clear();
        }
        for program in SocketProgram::ALL {
            if matches!(self.attached.get(&program), Some(Ok(_))) {
                continue;
            }
            let outcome = programs.attach_socket(program, &group).map_err(|error| error_chain(&error));
            match &outcome {
                Ok(attached) => info!(group = %path.display(), program = program.name(), ?attached, "attached"),
                Err(error) => self.problem = Some(error.clone()),
            }
            self.attached.insert(program, outcome);
        }
        if self.number != Some(group.number()) {
            self.number = Some(group.number());
            self.leave(programs, self.number);
        }
    }

    /// Takes the programs off every group but one.
    fn leave(&mut self, programs: &mut Programs, but: Option<u64>) {
        for (program, number) in programs.attached_sockets() {
            if Some(number) == but {
                continue;
            }
            match programs.detach_socket(program, number) {
                Ok(true) => info!(group = number, program = program.name(), "detached"),
                Ok(false) => {}
                Err(error) => {
                    warn!(group = number, program = program.name(), error = error_chain(&error), "failed to detach")
                }
            }
        }
    }

    /// What is wrong.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone().or_else(|| self.destroyer.as_ref()?.report().problem)
    }

    /// Whether there is a group at all.
    pub(super) fn is_wanted(&self) -> bool {
        self.group.is_some()
    }

    /// Where the programs are.
    pub(super) fn status(&self) -> impl Iterator<Item = LinkStatus> {
        let group = self.group.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        self.attached.iter().map(move |(program, outcome)| LinkStatus {
            program: program.name(),
            link: group.clone(),
            outcome: outcome.clone().map(|attached| attached.word().to_owned()),
        })
    }
}

fn is_gone(state: u8) -> bool {
    state == BackendState::Removed as u8 || state == BackendState::Killed as u8
}

/// Finds the sockets that were given one of these backends and are to end, and forgets what they asked for.
fn find<A: Address>(
    maps: &FamilyMaps<A>,
    gone: &BTreeSet<Gone>,
    victims: &mut BTreeSet<Victim>,
) -> Result<(), DatapathError> {
    let gone: BTreeMap<u32, &Gone> =
        gone.iter().filter(|gone| gone.peer.is_ipv4() == A::IS_V4).map(|gone| (gone.index, gone)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let mut found: Vec<SocketKey<A>> = Vec::new();
    maps.sockets.walk(|key, asked| {
        let peer = SocketAddr::new(ip(key.address), u16::from_be(key.port));
        // The index may be another backend's by now.
        let is_victim = |gone: &&Gone| gone.peer == peer && (gone.kill || key.protocol == UDP);
        if gone.get(&asked.backend).is_some_and(is_victim) {
            victims.insert(Victim {
                cookie: u64::from(key.cookie_high) << 32 | u64::from(key.cookie_low),
                protocol: key.protocol,
                peer,
            });
            found.push(*key);
        }
    })?;
    maps.sockets.remove_all(&found)
}

fn ip<A: Address>(address: A) -> IpAddr {
    let [a, b, c, d] = address.words();
    if A::IS_V4 { IpAddr::from(V4(a).octets()) } else { IpAddr::from(V6([a, b, c, d]).octets()) }
}
