//! What workloads of two nodes have between them while the way changes: a stream of iperf3, pings, and connections that stay open, some of
//! them through a service.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use tests::{
    iperf::Iperf,
    load::{HTTP_PORT, Load},
    ping::Ping,
};

use super::{
    meshes::{Mesh, eventually},
    tunnels::DEADLINE,
};

/// Connections that stay open, to the server and through the service before it.
const OPEN: [usize; 2] = [20, 20];
/// The service in west.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 80));
/// Time between two packets of ping.
const PACE: Duration = Duration::from_millis(50);
/// Port of iperf3's server, beside those of a load.
const IPERF_PORT: u16 = 5202;
/// When the kernel sends a segment again for the first time (`TCP_RTO_MIN`).
const FIRST_TIMEOUT: Duration = Duration::from_millis(200);
/// What a busy machine adds to that, and two lines of iperf3.
const SLOW: Duration = Duration::from_millis(500);

/// Everything under way. Dropped, it ends.
pub(super) struct Users {
    stream: Iperf,
    pings: Vec<Ping>,
    open: Load,
}

/// The configuration of a node with east's worker's webpod as the only backend of the service.
pub(super) fn one_backend(node: &str, text: &str) -> String {
    if node == "east-worker" { text.to_owned() } else { text.replace("labels: {app: webpod}", "labels: {app: other}") }
}

impl Users {
    /// The stream and the connections go from west's worker's client to east's worker's webpod, which is the service's only backend
    /// ([`one_backend`]), pings both ways.
    pub(super) fn begin(mesh: &Mesh) -> Self {
        let (client, server) = (mesh.node("west-worker-client"), mesh.node("east-worker-webpod"));
        let address: IpAddr = [10, 1, 1, 10].into();
        let mut open = Load::new().expect("a load");
        open.serve(&server, address).expect("servers");
        let [server_at, service] = [address, SERVICE].map(|address| SocketAddr::new(address, HTTP_PORT));
        let is_open = || client.within(|| TcpStream::connect_timeout(&service, DEADLINE).is_ok()).expect("inside");
        assert!(eventually(is_open), "{}", mesh.log("west-worker"));
        for (to, count) in [server_at, service].into_iter().zip(OPEN) {
            open.open(&client, to, count).expect("connections");
        }
        let at = SocketAddr::new(address, IPERF_PORT);
        let stream = Iperf::start(&client, at, &server, at).expect("iperf3 sends");
        let pings = [(client, address), (mesh.node("east-worker-client"), [10, 0, 1, 10].into())];
        let pings = pings.iter().map(|(from, to)| Ping::start(from, *to, PACE).expect("ping is answered")).collect();
        Self { stream, pings, open }
    }

    /// Waits until octets flow and every connection was used again.
    pub(super) fn wait_progress(&mut self, when: &str) {
        let progress = self.stream.wait_progress(5).and_then(|()| self.open.wait_progress(1));
        progress.unwrap_or_else(|error| panic!("{when}: {error:#}"));
    }

    /// Ends everything in order. Demands that no connection broke, and that packets were lost in one row only: from the cut until
    /// the switch to the tunnel, which took so long.
    pub(super) fn finish(self, switched: Duration) {
        let streamed = self.stream.finish().unwrap_or_else(|error| panic!("{error:#}"));
        let figures = self.open.finish().unwrap_or_else(|error| panic!("{error:#}"));
        println!("{switched:?} for the switch: {streamed:?}, {figures:?}");
        assert!(streamed.longest_pause < pause_max(switched), "{streamed:?} with {switched:?} for the switch");
        assert_eq!(figures.open, OPEN[0] + OPEN[1]);
        assert!(figures.slowest < pause_max(switched), "{figures:?} with {switched:?} for the switch");
        for ping in self.pings {
            let answers = ping.finish().unwrap_or_else(|error| panic!("{error:#}"));
            println!("{answers:?}");
            assert_eq!(answers.rows_lost().len(), 1, "{answers:?}");
            assert!(answers.longest_gap < DEADLINE, "{answers:?}");
        }
    }
}

/// How long a connection may be silent when its packets were lost for so long: the kernel sends a segment again after twice the time each
/// time, so the first one that arrives comes before twice as long and one first timeout.
fn pause_max(lost: Duration) -> Duration {
    2 * lost + FIRST_TIMEOUT + SLOW
}
