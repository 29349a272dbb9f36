//! Source ranges of a load balancer's address, by connections from inside and outside of them.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    meshes::eventually,
    service_traffic::{PATIENCE, WEST_SERVICE, open, packets, up},
    services::{ALL_BACKENDS, WEST},
};

/// The address of the load balancer, which the nodes of the other cluster reach by way of west-worker.
const BALANCER: &str = "198.51.100.80:80";

#[test]
fn a_load_balancer_lets_its_source_ranges_in_and_nobody_else() {
    let (lab, webpods) = up();
    let section = "      ports: [{name: http, port: 80}]\n";
    let balancer = "      type: load_balancer\n      load_balancer_ips: [198.51.100.80]\n";
    let ranges = "      source_ranges: [172.18.0.2/32]\n";
    lab.edit(&WEST, section, &format!("{balancer}{ranges}{section}"));
    let (inside, outside) = (lab.mesh.node("east-worker"), lab.mesh.node("east-control-plane"));
    for node in [&inside, &outside] {
        node.exec(&["ip", "route", "add", "198.51.100.80", "via", "172.18.0.5"])
            .and_then(lab::Output::ok)
            .expect("a route");
    }
    let to: SocketAddr = BALANCER.parse().expect("an address");
    let can =
        |node: &lab::Node, patience| node.within(|| TcpStream::connect_timeout(&to, patience).is_ok()).expect("inside");
    assert!(eventually(|| can(&inside, PATIENCE)), "{}", lab.mesh.log("west-worker"));
    let (mut stream, ..) = open(&inside, BALANCER);
    assert!(!can(&outside, Duration::from_millis(500)), "it is outside of the range");
    assert!(eventually(|| packets(&lab, "west-worker", "source_range") > 0), "nothing was counted");
    // Workloads are not outside, whatever address they ask.
    open(&lab.mesh.node("west-worker-client"), WEST_SERVICE);
    open(&lab.mesh.node("west-worker-client"), BALANCER);

    // The ranges change places; what is open stays, also across a restart.
    lab.edit(&WEST, "172.18.0.2/32", "172.18.0.3/32");
    assert!(eventually(|| can(&outside, Duration::from_millis(500))), "{}", lab.mesh.log("west-worker"));
    assert!(!can(&inside, Duration::from_millis(500)), "it is outside of the range now");
    lab.mesh.daemon("west-worker").kill9().expect("killed");
    assert!(can(&outside, PATIENCE) && !can(&inside, Duration::from_millis(500)), "nobody needs to run for that");
    lab.mesh.daemon("west-worker").start().expect("started");
    lab.wait(&["west-worker"], &ALL_BACKENDS);
    super::service_traffic::echo(&mut stream, b"still here").expect("an open connection is not asked again");
    lab.edit(&WEST, "      source_ranges: [172.18.0.3/32]\n", "");
    assert!(eventually(|| can(&inside, PATIENCE)) && can(&outside, PATIENCE), "without ranges everybody may");
    webpods.stop();
    lab.mesh.finish();
}
