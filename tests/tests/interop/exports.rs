//! What we tell monitoring stations and write into files, read by programs that are not ours: tshark and bgpdump.

use std::{fs, path::Path, process::Command};

use bgp::{
    Asn, Family, NextHop, PathId, Prefix, RouterId,
    bmp::{self, Mirrored, Peer, PeerDown, PeerUp, Statistic, Table, Termination, Timestamp},
    family::{PerFamily, V4, V6},
    mrt::{self, Ends, IndexedPeer, MessageForm, RibEntry, SessionState},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, LargeCommunity, Origin, code},
        capability::Capability,
        encode::{self, Target},
        header::LengthLimit,
        notification::{ErrorCode, Notification},
        open::Open,
    },
};

const TIME: Timestamp = Timestamp { seconds: 1_700_000_000, micros: 250_000 };
/// The port that stations listen on by custom; tshark is told so.
const BMP_PORT: u16 = 11_019;

fn v4(text: &str) -> V4 {
    V4::from_net(&text.parse().unwrap()).unwrap()
}

fn v6(text: &str) -> V6 {
    V6::from_net(&text.parse().unwrap()).unwrap()
}

fn attributes() -> Vec<u8> {
    let path = write_segments([(SegmentKind::Sequence, [Asn(65_001), Asn(4_200_000_001)].as_slice())]);
    Builder::new()
        .origin(Origin::Igp)
        .set(code::AS_PATH, path)
        .number(code::MED, 70)
        .communities([65_001 << 16 | 7])
        .large_communities([LargeCommunity { global: 65_001, local_1: 1, local_2: 2 }])
        .build()
}

fn update<P: Prefix>(prefixes: &[P], next_hop: NextHop, add_path: bool) -> Vec<u8> {
    let target = Target { asn4: true, add_path: PerFamily { ipv4: add_path, ipv6: add_path }, ..Target::default() };
    let mut out = Vec::new();
    let mut prefixes = prefixes.iter().map(|prefix| (PathId(9), *prefix)).peekable();
    encode::announce(&mut out, &target, Attributes(&attributes()), next_hop, &mut prefixes).unwrap();
    assert!(prefixes.peek().is_none());
    out
}

fn open(asn: u32) -> Vec<u8> {
    let capabilities = vec![Capability::family(Family::Ipv4Unicast), Capability::FourOctetAs(Asn(asn))];
    let open = Open { asn: Asn(asn), hold_time_s: 90, router_id: RouterId(0xc000_0201), capabilities };
    open.encode().unwrap()
}

fn notification() -> Vec<u8> {
    let mut out = Vec::new();
    Notification { code: ErrorCode::Cease, subcode: 2, data: Vec::new() }.encode(LengthLimit::Standard, &mut out);
    out
}

/// A capture of one TCP stream to a station, a segment per message.
fn capture(messages: &[Vec<u8>]) -> Vec<u8> {
    const RAW_IP: u32 = 101;
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0002_0004, 0, 0, 0x0004_0000, RAW_IP] {
        out.extend(word.to_ne_bytes());
    }
    // The version is two numbers of two octets, in the order of the machine like the rest.
    out[4..8].copy_from_slice(&[2u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat());
    let mut sequence = 1u32;
    for message in messages {
        let length = u16::try_from(40 + message.len()).unwrap();
        for word in [TIME.seconds, TIME.micros, u32::from(length), u32::from(length)] {
            out.extend(word.to_ne_bytes());
        }
        out.extend([0x45, 0]);
        out.extend(length.to_be_bytes());
        out.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        out.extend(40_000u16.to_be_bytes());
        out.extend(BMP_PORT.to_be_bytes());
        out.extend(sequence.to_be_bytes());
        out.extend([0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        out.extend(message);
        sequence += u32::try_from(message.len()).unwrap();
    }
    out
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("TZ", "UTC")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What tshark makes of each message, in its words with indentation taken off.
fn tshark(folder: &Path, messages: &[Vec<u8>]) -> Vec<Vec<String>> {
    let file = folder.join("bmp.pcap");
    fs::write(&file, capture(messages)).unwrap();
    let decode = format!("tcp.port=={BMP_PORT},bmp");
    let text = run("tshark", &["-r", file.to_str().unwrap(), "-d", &decode, "-V", "-O", "bmp,bgp"]);
    let frames: Vec<&str> = text.split("\nFrame ").collect();
    assert_eq!(frames.len(), messages.len(), "{text}");
    frames.iter().map(|frame| frame.lines().map(|line| line.trim().to_owned()).collect()).collect()
}

fn assert_says(message: &[String], wanted: &[&str]) {
    let text = message.join("\n");
    assert!(!text.contains("Malformed") && !text.contains("Expert Info (Error"), "{text}");
    for words in wanted {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

fn peer(table: Table, address: &str) -> Peer {
    Peer {
        table,
        distinguisher: 0,
        address: address.parse().unwrap(),
        asn: Asn(4_200_000_001),
        router_id: RouterId(0xc000_0209),
        two_octet_as: false,
        time: TIME,
    }
}

fn made(make: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    make(&mut out);
    out
}

#[test]
fn tshark_reads_our_bmp() {
    let folder = tempfile::tempdir().unwrap();
    let pre = peer(Table::AdjRibIn { post_policy: false }, "192.0.2.9");
    let out = peer(Table::AdjRibOut { post_policy: true }, "2001:db8::9");
    let local = peer(Table::LocRib { filtered: false }, "::");
    let (sent_open, received_open, notification) = (open(65_002), open(4_200_000_001), notification());
    let v4_update =
        update(&[v4("10.1.0.0/24"), v4("10.2.0.0/16")], "192.0.2.9".parse::<std::net::IpAddr>().unwrap().into(), false);
    let v6_update = update(&[v6("2001:db8:1::/48")], "2001:db8::9".parse::<std::net::IpAddr>().unwrap().into(), false);
    let up = PeerUp {
        local: "192.0.2.1".parse().unwrap(),
        local_port: 179,
        remote_port: 40_001,
        sent_open: &sent_open,
        received_open: &received_open,
        table_name: None,
    };
    // With the name of the table behind the OPENs, which RFC 7854 allows, this version of tshark takes it for BGP.
    let local_up = PeerUp { received_open: &sent_open, ..up };
    let numbers = [
        Statistic::Rejected(3),
        Statistic::AsPathLoops(4),
        Statistic::AdjRibIn(5_000_000_000),
        Statistic::LocRib(6),
        Statistic::AdjRibInOf(Family::Ipv6Unicast, 7),
        Statistic::UpdatesTreatedAsWithdraw(8),
        Statistic::AdjRibOutPostPolicy(9),
        Statistic::AdjRibOutPostPolicyOf(Family::Ipv4Unicast, 10),
    ];
    let messages = [
        made(|out| bmp::initiation(out, "node-1", "meshd test", &["hello"])),
        made(|out| bmp::peer_up(out, &pre, &up)),
        made(|out| bmp::route_monitoring(out, &pre, &v4_update)),
        made(|to| bmp::route_monitoring(to, &out, &v6_update)),
        made(|out| bmp::peer_up(out, &local, &local_up)),
        made(|out| bmp::route_monitoring(out, &local, &v4_update)),
        made(|out| bmp::statistics(out, &pre, &numbers)),
        made(|out| bmp::route_mirroring(out, &pre, &[Mirrored::Errored, Mirrored::Message(&v4_update)])),
        made(|out| bmp::peer_down(out, &pre, PeerDown::RemoteNotification(&notification))),
        made(|out| bmp::peer_down(out, &local, PeerDown::LocRib("main"))),
        made(|out| bmp::termination(out, Termination::AdministrativelyClosed, Some("bye"))),
    ];
    let read = tshark(folder.path(), &messages);
    let wanted: [&[&str]; 11] = [
        &["Initiation Message (4)", "node-1", "meshd test", "hello"],
        &[
            "Peer Up Notification (3)",
            "192.0.2.9",
            "4200000001",
            "Local Port: 179",
            "Remote Port: 40001",
            "OPEN Message",
        ],
        &["Route Monitoring (0)", "10.1.0.0/24", "10.2.0.0/16", "65001 4200000001", "65001:1:2"],
        &["Route Monitoring (0)", "2001:db8:1::/48", "2001:db8::9", "65001 4200000001"],
        &["Peer Up Notification (3)", "Loc-RIB", "OPEN Message"],
        &["Route Monitoring (0)", "10.1.0.0/24", "Loc-RIB"],
        &["Statistics Report (1)", "5000000000"],
        &["Route Mirroring (6)", "10.2.0.0/16"],
        &["Peer Down Notification (2)", "NOTIFICATION Message", "Cease"],
        &["Peer Down Notification (2)"],
        &["Termination Message (5)", "Session administratively closed"],
    ];
    for (message, wanted) in read.iter().zip(wanted) {
        assert_says(message, wanted);
    }
}

#[test]
fn bgpdump_reads_our_tables() {
    let folder = tempfile::tempdir().unwrap();
    let peers = [
        IndexedPeer { router_id: RouterId(1), address: "192.0.2.9".parse().unwrap(), asn: Asn(65_001) },
        IndexedPeer { router_id: RouterId(2), address: "2001:db8::9".parse().unwrap(), asn: Asn(4_200_000_001) },
    ];
    let attributes = attributes();
    let entry = |peer, next_hop: &str| RibEntry {
        peer,
        learned_at: 1_600_000_000,
        path_id: PathId(77),
        attributes: Attributes(&attributes),
        next_hop: next_hop.parse::<std::net::IpAddr>().unwrap().into(),
    };
    for add_path in [false, true] {
        let (mut table, mut scratch) = (Vec::new(), Vec::new());
        mrt::peer_index_table(&mut table, TIME, RouterId(9), "main", &peers);
        let both = [entry(0, "192.0.2.9"), entry(1, "192.0.2.10")];
        mrt::rib(&mut table, &mut scratch, TIME, 0, v4("10.1.0.0/24"), add_path, &both);
        mrt::rib(&mut table, &mut scratch, TIME, 1, v6("2001:db8:1::/48"), add_path, &[entry(1, "2001:db8::9")]);
        let file = folder.path().join("rib.mrt");
        fs::write(&file, &table).unwrap();
        let text = run("bgpdump", &["-v", "-m", "-l", file.to_str().unwrap()]);
        let lines: Vec<&str> = text.lines().collect();
        let rest = "65001 4200000001|IGP";
        let more = "0|70|65001:7|65001:1:2|NAG||";
        let kind = format!("TABLE_DUMP2{}|1700000000|B", if add_path { "_AP" } else { "" });
        let id = |prefix: &str| if add_path { format!("{prefix}|77") } else { prefix.to_owned() };
        assert_eq!(
            lines,
            [
                format!("{kind}|192.0.2.9|65001|{}|{rest}|192.0.2.9|{more}", id("10.1.0.0/24")),
                format!("{kind}|2001:db8::9|4200000001|{}|{rest}|192.0.2.10|{more}", id("10.1.0.0/24")),
                format!("{kind}|2001:db8::9|4200000001|{}|{rest}|2001:db8::9|{more}", id("2001:db8:1::/48")),
            ],
            "path identifiers: {add_path}"
        );
        let long = run("bgpdump", &["-v", "-H", file.to_str().unwrap()]);
        assert_eq!(long.matches("ORIGINATED: 09/13/20 12:26:40").count(), 3, "{long}");
    }
}

#[test]
fn bgpdump_reads_our_logs() {
    let folder = tempfile::tempdir().unwrap();
    let ends = Ends {
        remote_as: Asn(4_200_000_001),
        local_as: Asn(65_002),
        link: 3,
        remote: "192.0.2.9".parse().unwrap(),
        local: "192.0.2.1".parse().unwrap(),
    };
    let ends_v6 = Ends { remote: "2001:db8::9".parse().unwrap(), local: "2001:db8::1".parse().unwrap(), ..ends };
    let next_hop = |text: &str| NextHop::from(text.parse::<std::net::IpAddr>().unwrap());
    let form = |add_path| MessageForm { sent: false, asn4: true, add_path };
    let mut log = Vec::new();
    mrt::state_change(&mut log, TIME, false, &ends, SessionState::OpenConfirm, SessionState::Established);
    mrt::message(&mut log, TIME, &ends, form(false), &update(&[v4("10.1.0.0/24")], next_hop("192.0.2.9"), false));
    mrt::message(
        &mut log,
        TIME,
        &ends_v6,
        form(false),
        &update(&[v6("2001:db8:1::/48")], next_hop("2001:db8::9"), false),
    );
    mrt::message(&mut log, TIME, &ends, form(true), &update(&[v4("10.2.0.0/24")], next_hop("192.0.2.9"), true));
    mrt::state_change(&mut log, TIME, true, &ends_v6, SessionState::Established, SessionState::Idle);
    let file = folder.path().join("updates.mrt");
    fs::write(&file, &log).unwrap();
    let text = run("bgpdump", &["-v", "-m", "-l", file.to_str().unwrap()]);
    let attributes = "65001 4200000001|IGP";
    let more = "0|70|65001:7|65001:1:2|NAG||";
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "BGP4MP|1700000000|STATE|192.0.2.9|4200000001|5|6".to_owned(),
            format!("BGP4MP_ET|1700000000.250000|A|192.0.2.9|4200000001|10.1.0.0/24|{attributes}|192.0.2.9|{more}"),
            format!(
                "BGP4MP_ET|1700000000.250000|A|2001:db8::9|4200000001|2001:db8:1::/48|{attributes}|2001:db8::9|{more}"
            ),
            format!(
                "BGP4MP_ET_AP|1700000000.250000|A|192.0.2.9|4200000001|10.2.0.0/24|9|{attributes}|192.0.2.9|{more}"
            ),
            "BGP4MP_ET|1700000000.250000|STATE|2001:db8::9|4200000001|6|1".to_owned(),
        ]
    );
}
