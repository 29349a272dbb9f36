//! What the programs remember of connections in front of their table (`meshd-ebpf/src/maps/recent.rs` and `packed.rs`): that it is used,
//! that it says what the table says, for how long, and what ends it at once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use meshd_abi::{Address, BackendState, ConnectionKey, Reason, Scope, V4, V6, connection_flags, settings_flags};
use meshd_datapath::{
    FamilyMaps,
    Program::{self, UplinkIngress, WorkloadIngress, XdpUplink},
    ticks,
};
use meshd_steps::{
    choose::Ports,
    packed::{Key, WAYS},
};

use crate::{
    case::{
        Machine, Outcome,
        Verdict::{self, Back, Pass, Redirect},
        with_machine,
    },
    frame::{ACK, FIN, Frame, GATEWAY, OWN, SCTP, TCP, UDP, opening, packet, syn, tcp},
    scene::{Family, Kind, NET4, NETS, Net, OTHER, backend, service},
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

    fn remove(&self) {
        remove(self.machine);
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

/// Removes all entries from the table, and tells nobody.
fn remove(machine: &Machine) {
    fn remove<A: Address>(maps: &FamilyMaps<A>) {
        maps.connections.remove_if(|_, _| true).expect("removed");
    }
    remove(&machine.programs.maps.v4);
    remove(&machine.programs.maps.v6);
    assert_eq!(machine.scene().connections(), 0);
}

/// What the table says of a connection's packet, and what is remembered of it: both must have been seen within one tick.
fn said_and_remembered(machine: &Machine, program: Program, opening: &Frame, packet: &Frame) -> [Told; 2] {
    for _ in 0..TRIES {
        let begin = ticks();
        // What a try before remembered, whose tick was over too early, would be taken for an entry.
        machine.programs.maps.forget_recent().expect("another epoch");
        let told = |packet: &Frame| {
            let Outcome { verdict, out, counted, .. } = machine.run(program, &packet.bytes());
            (verdict, out, counted)
        };
        told(opening);
        // From now on it is one of which more than the beginning was seen.
        told(packet);
        machine.programs.maps.forget_recent().expect("another epoch");
        let said = told(packet);
        remove(machine);
        let remembered = told(packet);
        let is_untouched = machine.scene().connections() == 0;
        remove(machine);
        if ticks() == begin {
            assert!(is_untouched, "nothing was remembered: {remembered:02x?}, after {said:02x?}");
            return [said, remembered];
        }
    }
    panic!("{TRIES} times a tick was over too early");
}

type Told = (Option<Verdict>, Vec<u8>, Vec<(Reason, u64, u64)>);

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

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn what_is_remembered_is_what_the_table_says() {
    with_machine(|machine| {
        let forms = [None, Some(0), Some(settings_flags::DSR_IPIP), Some(settings_flags::DSR_GENEVE)];
        let mut seen = BTreeMap::new();
        for (net, form) in NETS.into_iter().flat_map(|net| forms.map(|form| (net, form))) {
            let ways = [
                (XdpUplink, Kind::LoadBalancer, net.client()),
                (UplinkIngress, Kind::LoadBalancer, net.client()),
                (UplinkIngress, Kind::NodePort, net.client()),
                (WorkloadIngress, Kind::Cluster, net.workload()),
                (WorkloadIngress, Kind::Cluster, (net.backend_ip(backend::POD), 33_000).into()),
            ];
            for ((program, kind, from), protocol) in ways.into_iter().flat_map(|way| [TCP, UDP, SCTP].map(|p| (way, p)))
            {
                for index in backend::ALL {
                    machine.scene().reset();
                    if let Some(form) = form {
                        machine.scene().put_direct(form);
                    }
                    let to = net.frontend(kind, index);
                    let [opening, packet] = [opening(protocol, from, to), packet(protocol, from, to)];
                    // What is dropped, or is no service here, leaves nothing behind.
                    let begins = machine
                        .run(program, &opening.bytes())
                        .counted
                        .iter()
                        .any(|(reason, ..)| *reason == Reason::NewConnection);
                    if !begins {
                        continue;
                    }
                    let flags = machine.scene().connection_flags(protocol, (from, to)).expect("an entry");
                    let [said, remembered] = said_and_remembered(machine, program, &opening, &packet);
                    let name = format!("{} {} {kind:?} {protocol} {index} {form:?}", net.word, program.name());
                    assert_eq!(remembered, said, "{name}, {flags:#x}");
                    let what = flags & !(connection_flags::LOCAL | connection_flags::ANSWERED);
                    *seen.entry((net.word, what)).or_insert(0) += 1;
                }
            }
        }
        // Of everything that a connection can be there was some.
        let kinds = [0, connection_flags::SNAT, connection_flags::DSR, connection_flags::STACK];
        for (net, kind) in NETS.into_iter().flat_map(|net| kinds.map(|kind| (net, kind))) {
            assert!(seen.get(&(net.word, kind)).is_some_and(|cases| *cases > 5), "{}, {kind:#x}: {seen:?}", net.word);
        }
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn a_port_is_remembered_however_many_were_tried() {
    with_machine(|machine| {
        for (net, taken) in NETS.into_iter().flat_map(|net| (0..7).map(move |taken| (net, taken))) {
            machine.scene().reset();
            machine.scene().put_settings(|settings| (settings.ports, settings.port_count) = (40_000, 10_000));
            let (from, to, backend) = (net.client(), net.frontend(Kind::LoadBalancer, 2), net.backend(backend::REMOTE));
            let [mut own4, mut own6] = [
                Ports::of(&V4::of(NETS[0].client_ip()), from.port().to_be(), to.port().to_be()),
                Ports::of(&V6::of(NETS[1].client_ip()), from.port().to_be(), to.port().to_be()),
            ];
            let mut next = || if net.is_v4() { own4.next(40_000, 10_000) } else { own6.next(40_000, 10_000) };
            let before: Vec<u16> = (0..taken).map(|_| u16::from_be(next())).collect();
            let wanted = u16::from_be(next());
            let take = || {
                for port in &before {
                    machine.scene().put_connection(
                        TCP,
                        (backend, (net.node_ip(), *port).into()),
                        (backend, from),
                        0,
                        connection_flags::REPLY,
                    );
                }
            };
            take();
            assert_eq!(machine.scene().connections(), taken);
            let told = |packet: &Frame| machine.run(XdpUplink, &packet.bytes());
            let mut done = false;
            for _ in 0..TRIES {
                let begin = ticks();
                told(&syn(from, to));
                told(&tcp(from, to));
                remove(machine);
                let out = told(&tcp(from, to)).out;
                let is_untouched = machine.scene().connections() == 0;
                if ticks() == begin {
                    let expected = tcp((net.node_ip(), wanted).into(), backend).sent(GATEWAY, OWN);
                    assert!(is_untouched, "{} {taken}: nothing was remembered", net.word);
                    assert_eq!(out, expected.bytes(), "{} {taken}", net.word);
                    done = true;
                    break;
                }
                remove(machine);
                take();
            }
            assert!(done, "{TRIES} times a tick was over too early");
        }
    });
}

/// Workloads whose connections to a frontend share their set.
fn of_one_set(to: SocketAddr, count: usize) -> Vec<SocketAddr> {
    let set = |from: SocketAddr| {
        let key = ConnectionKey {
            source: V4::of(from.ip()),
            destination: V4::of(to.ip()),
            source_port: from.port().to_be(),
            destination_port: to.port().to_be(),
            protocol: TCP,
            reserved: [0; 3],
        };
        Key::new(&key, Scope::Internal).expect("TCP").at(0).set
    };
    let first = set(NET4.workload());
    let all = (20..40).flat_map(|last| (1..=u16::MAX).map(move |port| SocketAddr::from(([10, 1, 0, last], port))));
    let clients: Vec<SocketAddr> = all.filter(|from| set(*from) == first).take(count).collect();
    assert_eq!(clients.len(), count);
    clients
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn connections_that_find_no_place_are_remembered_elsewhere() {
    // Three times as many as there is room for in a set.
    let to = NET4.frontend(Kind::Cluster, backend::OTHER);
    let clients = of_one_set(to, 3 * WAYS);
    with_machine(move |machine| {
        for _ in 0..TRIES {
            next_tick();
            let begin = ticks();
            machine.scene().reset();
            let told = |packet: &Frame| machine.run(WorkloadIngress, &packet.bytes());
            for from in &clients {
                told(&syn(*from, to));
                told(&tcp(*from, to));
            }
            remove(machine);
            let outs: Vec<_> = clients.iter().map(|from| (told(&tcp(*from, to)), from)).collect();
            let is_untouched = machine.scene().connections() == 0;
            if ticks() != begin {
                continue;
            }
            assert!(is_untouched, "one of them was looked up");
            for (outcome, from) in outs {
                let expected = tcp(*from, NET4.backend(backend::OTHER)).sent(OTHER, OWN).bytes();
                assert_eq!((outcome.verdict, outcome.out), (Some(Redirect), expected), "{from}");
            }
            return;
        }
        panic!("{TRIES} times a tick was over too early");
    });
}

#[test]
fn what_is_no_frontend_any_more_is_nobodys() {
    with_machine(|machine| {
        for net in NETS {
            let to = SocketAddr::from((net.frontend(Kind::LoadBalancer, 1).ip(), 61));
            let scene = machine.scene();
            scene.reset();
            scene.maps.trim_frontends().expect("trimmed");
            let counted = || machine.run(XdpUplink, &syn(net.client(), to).bytes()).counted[0].0;
            assert_eq!(counted(), Reason::Passed);
            scene.put_service(to, TCP, Scope::External, service(61, FIRST));
            assert_eq!(counted(), Reason::NewConnection);
            // Removed, and only then taken out of the filter, which holds everything else still.
            scene.reset();
            assert_eq!(counted(), Reason::Passed);
            scene.maps.trim_frontends().expect("trimmed");
            assert_eq!(counted(), Reason::Passed);
            let other = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            let known = machine.run(XdpUplink, &syn(net.client(), other).bytes()).counted[0].0;
            assert_eq!(known, Reason::NewConnection);
        }
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn one_that_is_replaced_is_forgotten_wherever_it_lies() {
    let to = NET4.frontend(Kind::Cluster, backend::OTHER);
    let clients = of_one_set(to, 4);
    with_machine(move |machine| {
        for _ in 0..TRIES {
            next_tick();
            let begin = ticks();
            machine.scene().reset();
            let told = |packet: &Frame| machine.run(WorkloadIngress, &packet.bytes()).out;
            for from in &clients {
                told(&syn(*from, to));
                told(&tcp(*from, to));
            }
            // The first leaves a gap in front of the others, and the last begins anew with another backend.
            told(&tcp(clients[0], to).flags(FIN | ACK));
            told(&syn(clients[0], to));
            told(&tcp(clients[3], to).flags(FIN | ACK));
            let other = service(backend::OTHER, backend::REMOTE);
            machine.scene().put_service(to, TCP, Scope::Internal, other);
            machine.scene().put_backend_owner(backend::REMOTE, backend::OTHER);
            told(&syn(clients[3], to));
            let outs = [1, 2, 3].map(|at| told(&tcp(clients[at], to)));
            if ticks() != begin {
                continue;
            }
            let expected = [(1, backend::OTHER, OTHER), (2, backend::OTHER, OTHER), (3, backend::REMOTE, GATEWAY)]
                .map(|(at, index, mac)| tcp(clients[at], NET4.backend(index)).sent(mac, OWN).bytes());
            assert_eq!(outs, expected);
            return;
        }
        panic!("{TRIES} times a tick was over too early");
    });
}

#[test]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "s390x")),
    ignore = "nothing is remembered here: this processor may change the order of loads or of stores"
)]
fn a_backend_that_leaves_is_not_remembered() {
    with_machine(|machine| {
        for talk in Talk::all(machine) {
            talk.within_a_tick(|| {
                talk.begin()?;
                machine.programs.maps.forget_recent().expect("another epoch");
                machine.scene().put_backend_state(FIRST, BackendState::Terminating);
                talk.asks(tcp, FIRST, Reason::ToBackend)?;
                // Its index may be another's soon, and then it takes connections again.
                machine.scene().put_backend_state(FIRST, BackendState::Active);
                talk.remove();
                talk.asks(tcp, FIRST, Reason::NewConnection)
            });
        }
    });
}

#[test]
fn an_answer_is_no_question_even_to_the_address_of_a_service() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (from, to) = (net.client(), net.frontend(Kind::LoadBalancer, backend::REMOTE));
            let flags = connection_flags::REPLY | connection_flags::SNAT | connection_flags::ANSWERED;
            machine.scene().put_connection(TCP, (from, to), (to, from), backend::REMOTE, flags);
            for _ in 0..3 {
                let outcome = machine.run(XdpUplink, &tcp(from, to).bytes());
                assert_eq!((outcome.verdict, outcome.out), (Some(Pass), tcp(from, to).bytes()), "{}", net.word);
            }
        }
    });
}
