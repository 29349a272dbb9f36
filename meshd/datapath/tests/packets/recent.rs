//! What the programs remember of connections in front of their table (`meshd-ebpf/src/maps/recent.rs`): that it is used, for how long, and
//! what ends it at once.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use meshd_abi::{Address, BackendState, Reason, Scope};
use meshd_datapath::{
    FamilyMaps,
    Program::{self, UplinkIngress, XdpUplink},
};

use crate::{
    case::{
        Machine, Outcome,
        Verdict::{Back, Pass, Redirect},
        with_machine,
    },
    frame::{ACK, FIN, Frame, GATEWAY, OWN, TCP, syn, tcp},
    scene::{Kind, NETS, Net, backend, service, ticks},
};

/// Backends of the service that is asked, one after the other.
const FIRST: u32 = backend::FIRST_OF_FOUR;
const SECOND: u32 = backend::FIRST_OF_FOUR + 1;
/// How often a tick may end while something is tried that has to happen within one.
const TRIES: u32 = 20;

/// What was otherwise than it should have been. An error and no panic, because it is one only if it happened in time.
type Checked = Result<(), String>;

/// A client, and a service with one backend.
#[derive(Clone, Copy)]
struct Talk<'a> {
    machine: &'a Machine,
    net: Net,
    program: Program,
}

impl<'a> Talk<'a> {
    /// Each family with both programs that use what is remembered.
    fn all(machine: &'a Machine) -> impl Iterator<Item = Self> {
        NETS.into_iter().flat_map(move |net| [XdpUplink, UplinkIngress].map(|program| Self { machine, net, program }))
    }

    fn frontend(&self) -> SocketAddr {
        self.net.frontend(Kind::LoadBalancer, 61)
    }

    /// The service gets this backend for whoever begins from now on.
    fn serve_by(&self, index: u32) {
        self.machine.scene().put_service(self.frontend(), TCP, Scope::External, service(61, index));
    }

    /// Begins anew with a connection of which data was seen as well.
    fn begin(&self) -> Checked {
        self.machine.scene().reset();
        self.serve_by(FIRST);
        self.asks(syn, FIRST, Reason::NewConnection)?;
        self.asks(tcp, FIRST, Reason::ToBackend)?;
        self.answers(FIRST)
    }

    /// What the client sends must come to a backend.
    fn asks(&self, of: impl Fn(SocketAddr, SocketAddr) -> Frame, index: u32, reason: Reason) -> Checked {
        let outcome = self.machine.run(self.program, &of(self.net.client(), self.frontend()).bytes());
        self.came(&outcome, &of(self.net.node(), self.net.backend(index)).sent(GATEWAY, OWN), reason)
    }

    /// What a backend answers must come to the client.
    fn answers(&self, index: u32) -> Checked {
        let outcome = self.machine.run(self.program, &tcp(self.net.backend(index), self.net.node()).bytes());
        self.came(&outcome, &tcp(self.frontend(), self.net.client()).sent(GATEWAY, OWN), Reason::Reply)
    }

    fn came(&self, outcome: &Outcome, expected: &Frame, reason: Reason) -> Checked {
        let verdict = Some(if self.program == XdpUplink { Back } else { Redirect });
        let counted = [(reason, 1, expected.bytes().len() as u64)];
        if outcome.verdict == verdict && outcome.counted == counted && outcome.out == expected.bytes() {
            return Ok(());
        }
        Err(format!("{} {}: {outcome:02x?}, not {verdict:?} {counted:?}", self.net.word, self.program.name()))
    }

    /// Removes the entries of both directions from the table, and tells nobody.
    fn remove(&self) {
        fn remove<A: Address>(maps: &FamilyMaps<A>) {
            let keys: Vec<_> = maps.connections.all().expect("read").into_iter().map(|(key, _)| key).collect();
            maps.connections.remove_all(&keys).expect("removed");
        }
        remove(&self.machine.programs.maps.v4);
        remove(&self.machine.programs.maps.v6);
        assert_eq!(self.machine.scene().connections(), 0);
    }

    /// A late answer of the first backend is nobody's.
    fn ignores_the_first(&self) -> Checked {
        let outcome = self.machine.run(self.program, &tcp(self.net.backend(FIRST), self.net.node()).bytes());
        if outcome.verdict == Some(Pass) { Ok(()) } else { Err(format!("{outcome:02x?}")) }
    }

    /// Tries until everything has happened within one tick.
    fn within_a_tick(&self, run: impl Fn() -> Checked) {
        for _ in 0..TRIES {
            next_tick();
            let begin = ticks();
            let outcome = run();
            if ticks() == begin {
                return outcome.unwrap_or_else(|error| panic!("{error}"));
            }
        }
        panic!("{TRIES} times a tick was over too early");
    }
}

/// Waits for a tick to begin.
fn next_tick() {
    let (now, deadline) = (ticks(), Instant::now() + Duration::from_secs(10));
    while ticks() == now {
        assert!(Instant::now() < deadline, "the clock stands still");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn what_was_seen_in_this_tick_needs_no_entry() {
    with_machine(|machine| {
        for talk in Talk::all(machine) {
            talk.within_a_tick(|| {
                talk.begin()?;
                talk.remove();
                talk.asks(tcp, FIRST, Reason::ToBackend)?;
                // The TC program asks the table about answers, because others may have them.
                if talk.program == XdpUplink {
                    talk.answers(FIRST)?;
                }
                assert_eq!(machine.scene().connections(), 0, "nobody looked at the table");
                Ok(())
            });
            // In the next one it is looked up, and not found.
            next_tick();
            let late = talk.ignores_the_first().and_then(|()| talk.asks(tcp, FIRST, Reason::NewConnection));
            late.unwrap_or_else(|error| panic!("{error}"));
        }
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn user_space_ends_what_is_remembered_at_once() {
    with_machine(|machine| {
        for talk in Talk::all(machine) {
            talk.within_a_tick(|| {
                talk.begin()?;
                talk.remove();
                machine.programs.maps.forget_recent().expect("another epoch");
                talk.ignores_the_first()?;
                talk.asks(tcp, FIRST, Reason::NewConnection)?;
                // What is seen from then on is remembered again.
                talk.asks(tcp, FIRST, Reason::ToBackend)?;
                talk.remove();
                talk.asks(tcp, FIRST, Reason::ToBackend)
            });
        }
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn a_connection_that_is_replaced_is_forgotten_at_once() {
    with_machine(|machine| {
        for talk in Talk::all(machine) {
            talk.within_a_tick(|| {
                talk.begin()?;
                talk.asks(|from, to| tcp(from, to).flags(FIN | ACK), FIRST, Reason::ToBackend)?;
                // The same ports begin anew, and meet another backend.
                talk.serve_by(SECOND);
                talk.asks(tcp, FIRST, Reason::ToBackend)?;
                talk.asks(syn, SECOND, Reason::NewConnection)?;
                talk.asks(tcp, SECOND, Reason::ToBackend)?;
                talk.answers(SECOND)?;
                talk.ignores_the_first()
            });
        }
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn a_backend_that_goes_ends_what_is_remembered() {
    with_machine(|machine| {
        for talk in Talk::all(machine) {
            talk.within_a_tick(|| {
                talk.begin()?;
                machine.scene().put_backend_state(FIRST, BackendState::Killed);
                let asked = tcp(talk.net.client(), talk.frontend()).bytes();
                let counted = machine.run(talk.program, &asked).counted;
                let is_ended = counted == [(Reason::BackendKilled, 1, asked.len() as u64)];
                if is_ended { Ok(()) } else { Err(format!("{counted:?}")) }
            });
        }
    });
}
