//! Resets while connections go over from earlier maps: those of connections that nobody knows may be of one that only is not here yet.

use meshd_abi::{Reason, connection_flags};
use meshd_datapath::{
    Program::{UplinkEgress, UplinkIngress, WorkloadIngress},
    ticks,
};

use crate::{
    case::{Case, Verdict::Redirect, case},
    fast::put_ways,
    frame::{ACK, FIN, Frame, GATEWAY, OWN, RST, TCP, tcp},
    scene::{Kind, NETS, Net, backend, hop},
};

/// In the middle of it, unless another time is said.
fn given(name: &str, net: Net) -> Case {
    // However slow this machine is.
    at(name, net, 100_000)
}

fn at(name: &str, net: Net, left: u32) -> Case {
    case(format!("{} {name}", net.word)).given(move |scene| {
        scene.maps.hold_resets(ticks().wrapping_add(left)).expect("written");
    })
}

fn reset(frame: &Frame) -> Frame {
    frame.clone().flags(RST)
}

pub(crate) fn held() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, far, world) = (net.workload(), net.far_workload(), net.world());
        // A workload that was answered by a backend it does not know, this node that was, and somebody outside.
        let ways = [
            ("a workload's", WorkloadIngress, tcp(workload, net.backend(backend::REMOTE))),
            ("this node's", UplinkEgress, tcp(net.node(), net.backend(backend::REMOTE))),
            ("one from outside", UplinkIngress, tcp(net.client(), workload)),
        ];
        for (name, program, frame) in ways {
            let both = reset(&frame).flags(RST | ACK);
            let row = given(name, net).drops(program, &reset(&frame), Reason::ResetHeld);
            let row = row.drops(program, &both, Reason::ResetHeld);
            // Nothing but a reset.
            let row = row.passes(program, &frame).passes(program, &frame.clone().flags(FIN | ACK));
            cases.push(row);
            cases.push(at(&format!("{name}, when it is over"), net, 0).passes(program, &reset(&frame)));
            cases
                .push(at(&format!("{name}, long ago"), net, 0_u32.wrapping_sub(1_000)).passes(program, &reset(&frame)));
        }
        // A process of this node, which knows its connections.
        let own = tcp((net.node_ip(), 22).into(), net.client());
        cases.push(given("a process's", net).passes(UplinkEgress, &reset(&own)));
        // The fast path has it wait as well.
        let fast = tcp(workload, far);
        cases.push(
            given("on the fast path", net)
                .given(|scene| put_ways(scene, hop::GATEWAY))
                .drops(WorkloadIngress, &reset(&fast), Reason::ResetHeld)
                .becomes(WorkloadIngress, &fast, Redirect, &fast.clone().sent(GATEWAY, OWN).ttl(63), Reason::Forwarded),
        );
        // Of what is known they end it.
        let frontend = net.frontend(Kind::Cluster, backend::REMOTE);
        let asks = tcp(workload, frontend);
        let asked = tcp(workload, net.backend(backend::REMOTE)).sent(GATEWAY, OWN).ttl(63);
        cases.push(
            given("of a known connection", net)
                .given(move |scene| {
                    let (key, tuple) = ((workload, frontend), (workload, net.backend(backend::REMOTE)));
                    scene.put_connection(TCP, key, tuple, backend::REMOTE, 0);
                })
                .becomes(WorkloadIngress, &reset(&asks), Redirect, &reset(&asked), Reason::ToBackend),
        );
        cases.push(
            given("of a known connection that keeps its tuple", net)
                .given(move |scene| {
                    let flags = connection_flags::REPLY | connection_flags::STACK;
                    scene.put_connection(TCP, (workload, world), (workload, world), 0, flags);
                })
                .passes(WorkloadIngress, &reset(&tcp(workload, world))),
        );
    }
    cases
}
