//! What our speaker tells those who watch, read by other people's programs: a BMP station whose stream tshark reads, MRT files
//! that bgpdump reads.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use tests::routers::{Blueprint, Network, until};

use super::configurations::{NODE, PODS, configuration};

const DEADLINE: Duration = Duration::from_secs(30);

const BIRD: &str = "
router id 192.0.2.1;
protocol static { ipv4; route 10.1.0.0/24 blackhole { bgp_med = 7; }; route 10.66.0.0/24 blackhole; }
protocol static { ipv6; route fd10:1::/64 blackhole; }
protocol bgp { local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65010; connect delay time 1; connect retry time 1;
  ipv4 { import all; export all; }; ipv6 { import all; export all; }; }
";

/// BIRD on one side, a station at 192.0.2.3 on the other, files in `folder`.
fn ours(folder: &Path) -> String {
    let bgp = format!(
        r#"  policies: {{all: [{{}}], most: [{{match: {{prefix_lists: [bad]}}, then: reject}}, {{}}]}}
  prefix_lists: {{bad: [10.66.0.0/24]}}
  advertise: [{{pod_cidrs: true}}]
  bmp:
    stations:
      - {{address: "192.0.2.3:11019", adj_rib_in_post_policy: true, loc_rib: true, adj_rib_out: true, statistics_s: 1}}
  mrt: {{folder: {}, table_interval_s: 0, updates: true}}
  peers:
    - {{address: 192.0.2.1, remote_as: 65001, import: [most], export: [all], families: {{ipv4: {{}}, ipv6: {{}}}}}}"#,
        folder.display()
    );
    configuration(&format!("{NODE}{PODS}"), 65_010, &bgp)
}

fn world(folder: &Path) -> Network {
    tests::need_root();
    Network::up(&[
        Blueprint::bird("bird", BIRD).address("192.0.2.1/24").address("fd00::1/64"),
        Blueprint::plain("station").address("192.0.2.3/24"),
        Blueprint::meshd("ours", &ours(folder)).address("192.0.2.10/24").address("fd00::10/64"),
    ])
    .unwrap()
}

/// A station in Python: takes connections one after the other and writes what it hears into a file each.
const STATION: &str = r#"
import socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("192.0.2.3", 11019))
listener.listen()
number = 0
while True:
    connection, _ = listener.accept()
    with open(f"{sys.argv[1]}/stream-{number}", "wb", buffering=0) as out:
        while octets := connection.recv(65536):
            out.write(octets)
    connection.close()
    number += 1
"#;

/// A capture file with the stream of a station in it, one packet for each message.
fn capture(stream: &[u8]) -> (Vec<u8>, usize) {
    let mut out: Vec<u8> = Vec::new();
    for word in [0xa1b2_c3d4u32, 0, 0, 0, 0x0004_0000, 101] {
        out.extend(word.to_ne_bytes());
    }
    out[4..8].copy_from_slice(&[2u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat());
    let (mut rest, mut sequence, mut count) = (stream, 1u32, 0);
    while let Some(header) = rest.first_chunk::<6>() {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let Some(message) = rest.get(..length) else { break };
        let whole = u16::try_from(40 + length).unwrap();
        for word in [0, 0, u32::from(whole), u32::from(whole)] {
            out.extend(word.to_ne_bytes());
        }
        out.extend([0x45, 0]);
        out.extend(whole.to_be_bytes());
        out.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 10, 192, 0, 2, 3]);
        out.extend(40_000u16.to_be_bytes());
        out.extend(11_019u16.to_be_bytes());
        out.extend(sequence.to_be_bytes());
        out.extend([0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        out.extend(message);
        sequence += u32::try_from(length).unwrap();
        rest = &rest[length..];
        count += 1;
    }
    (out, count)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("TZ", "UTC").output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What tshark makes of each message of a stream.
fn tshark(folder: &Path, stream: &[u8]) -> Vec<String> {
    let (capture, count) = capture(stream);
    if count == 0 {
        return Vec::new();
    }
    let file = folder.join("bmp.pcap");
    fs::write(&file, capture).unwrap();
    let text = run("tshark", &["-r", file.to_str().unwrap(), "-d", "tcp.port==11019,bmp", "-V", "-O", "bmp,bgp"]);
    fs::remove_file(&file).unwrap();
    let frames: Vec<String> = text.split("\nFrame ").map(str::to_owned).collect();
    assert_eq!(frames.len(), count, "{text}");
    for frame in frames.iter().filter(|frame| !(frame.contains("Peer Up") && frame.contains("Loc-RIB"))) {
        assert!(!frame.contains("Malformed") && !frame.contains("Expert Info (Error"), "{frame}");
    }
    frames
}

/// Is there a message with all these words?
fn says(frames: &[String], words: &[&str]) -> anyhow::Result<()> {
    let found = frames.iter().any(|frame| words.iter().all(|word| frame.contains(word)));
    anyhow::ensure!(found, "no message with {words:?} among {}:\n{}", frames.len(), frames.join("\n"));
    Ok(())
}

#[test]
fn tshark_reads_what_a_station_hears() {
    let folder = tempfile::tempdir().unwrap();
    let network = world(folder.path());
    let (bird, ours) = (network.router("bird").unwrap(), network.router("ours").unwrap());
    ours.wait_established("192.0.2.1").unwrap();
    ours.wait_path("10.1.0.0/24").unwrap();
    // It comes late, and is told everything.
    let station = network.router("station").unwrap();
    let streams = folder.path().to_str().unwrap();
    let listener = station.node().spawn(&["python3", "-c", STATION, streams]).unwrap();
    let stream = |number: usize| {
        let octets = fs::read(folder.path().join(format!("stream-{number}"))).unwrap_or_default();
        tshark(folder.path(), &octets)
    };
    let post = "Post-policy: Set";
    until("what there is", DEADLINE, || {
        let frames = stream(0);
        anyhow::ensure!(frames.len() > 8, "{} messages", frames.len());
        says(&frames, &["Initiation Message", "meshd", "ours"])?;
        says(&frames, &["Peer Up Notification", "192.0.2.1", "65001", "OPEN Message"])?;
        says(&frames, &["Route Monitoring", "10.66.0.0/24"])?;
        says(&frames, &["Route Monitoring", "10.1.0.0/24", "Multiple exit discriminator: 7"])?;
        says(&frames, &["Route Monitoring", "fd10:1::/64"])?;
        says(&frames, &["Statistics Report", "192.0.2.1"])?;
        says(&frames, &["Loc-RIB", "Route Monitoring", "10.0.1.0/24"])?;
        says(&frames, &["Loc-RIB", "Route Monitoring", "10.1.0.0/24"])
    })
    .unwrap();
    let frames = stream(0);
    let with = |prefix: &'static str| {
        frames.iter().filter(move |frame| frame.contains("Route Monitoring") && frame.contains(prefix))
    };
    // What import policy rejected is only there before it.
    assert!(with("10.66.0.0/24").all(|frame| !frame.contains(post) && !frame.contains("Loc-RIB")), "{frames:?}");
    // To the peer its own path is not told, and ours with our AS in front.
    assert!(with("10.0.1.0/24").any(|frame| frame.contains("65010")), "{frames:?}");

    // What happens is told as it happens.
    bird.run(&["birdc", "disable", "static1"]).unwrap();
    until("the withdrawal", DEADLINE, || {
        let frames = stream(0);
        let withdrawn = frames.iter().filter(|frame| frame.contains("Withdrawn") && frame.contains("10.1.0.0/24"));
        anyhow::ensure!(withdrawn.count() >= 3, "before policy, after policy, and of the Loc-RIB");
        Ok(())
    })
    .unwrap();
    bird.run(&["birdc", "disable", "bgp1"]).unwrap();
    until("the end of the session", DEADLINE, || {
        says(&stream(0), &["Peer Down Notification", "192.0.2.1", "NOTIFICATION Message", "Cease"])
    })
    .unwrap();
    // A station that goes and comes back begins from the beginning.
    bird.run(&["birdc", "enable", "bgp1"]).unwrap();
    ours.wait_established("192.0.2.1").unwrap();
    listener.stop(Signal::SIGKILL, Duration::from_secs(5)).unwrap();
    let summary = || ours.run(&["meshd", "bgp", "summary"]);
    until("the loss is shown", DEADLINE, || {
        let text = summary()?;
        anyhow::ensure!(text.contains("BMP station 192.0.2.3:11019: not connected: "), "{text}");
        Ok(())
    })
    .unwrap();
    fs::remove_file(folder.path().join("stream-0")).unwrap();
    let listener = station.node().spawn(&["python3", "-c", STATION, streams]).unwrap();
    until("everything again", DEADLINE, || {
        let frames = stream(0);
        anyhow::ensure!(frames.len() > 4, "{} messages", frames.len());
        says(&frames, &["Initiation Message"])?;
        says(&frames, &["Peer Up Notification", "192.0.2.1"])?;
        says(&frames, &["Route Monitoring", "fd10:1::/64"])
    })
    .unwrap();
    ours.stop().unwrap();
    until("a farewell", DEADLINE, || says(&stream(0), &["Termination Message"])).unwrap();
    listener.stop(Signal::SIGKILL, Duration::from_secs(5)).unwrap();
    network.down().unwrap();
}

fn files(folder: &Path, start: &str, end: &str) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut found: Vec<String> = names.filter(|path| name(path).starts_with(start) && path.ends_with(end)).collect();
    found.sort();
    found
}

#[test]
fn bgpdump_reads_our_files() {
    let folder = tempfile::tempdir().unwrap();
    let network = world(folder.path());
    let ours = network.router("ours").unwrap();
    ours.wait_established("192.0.2.1").unwrap();
    ours.wait_path("10.1.0.0/24").unwrap();
    ours.wait_path("fd10:1::/64").unwrap();
    let file = ours.run(&["meshd", "bgp", "dump"]).unwrap().trim().to_owned();
    assert_eq!(files(folder.path(), "rib.", ".mrt"), std::slice::from_ref(&file));
    let text = run("bgpdump", &["-v", "-m", "-l", &file]);
    let cells = |line: &str| -> Vec<String> { line.split('|').skip(2).take(7).map(str::to_owned).collect() };
    let rows: BTreeSet<Vec<String>> = text.lines().map(cells).collect();
    let row = |peer: &str, asn: &str, prefix: &str, path: &str, via: &str| -> Vec<String> {
        ["B", peer, asn, prefix, path, "IGP", via].map(str::to_owned).to_vec()
    };
    let wanted = [
        row("0.0.0.0", "65010", "10.0.1.0/24", "", "0.0.0.0"),
        row("192.0.2.1", "65001", "10.1.0.0/24", "65001", "192.0.2.1"),
        row("192.0.2.1", "65001", "fd10:1::/64", "65001", "fd00::1"),
    ];
    assert_eq!(rows, BTreeSet::from(wanted), "{text}");

    let log = || -> anyhow::Result<String> {
        let open = files(folder.path(), "updates.", ".open").pop().ok_or_else(|| anyhow::anyhow!("no log"))?;
        Ok(run("bgpdump", &["-v", "-m", "-l", &open]))
    };
    until("the log of messages", DEADLINE, || {
        let text = log()?;
        for words in [
            "|A|192.0.2.1|65001|10.1.0.0/24|65001|IGP|192.0.2.1|0|7|",
            "|A|192.0.2.1|65001|10.66.0.0/24|",
            "|STATE|192.0.2.1|65001|5|6",
        ] {
            anyhow::ensure!(text.contains(words), "no {words} in\n{text}");
        }
        Ok(())
    })
    .unwrap();
    network.router("bird").unwrap().run(&["birdc", "disable", "static1"]).unwrap();
    until("the withdrawal", DEADLINE, || {
        let text = log()?;
        anyhow::ensure!(text.contains("|W|192.0.2.1|65001|10.1.0.0/24"), "{text}");
        Ok(())
    })
    .unwrap();
    network.router("bird").unwrap().run(&["birdc", "disable", "bgp1"]).unwrap();
    until("the end of the session", DEADLINE, || {
        let text = log()?;
        anyhow::ensure!(text.contains("|STATE|192.0.2.1|65001|6|1"), "{text}");
        Ok(())
    })
    .unwrap();
    // It does not end before its files have their final names.
    ours.stop().unwrap();
    assert_eq!(files(folder.path(), "updates.", ".mrt").len(), 1, "{:?}", files(folder.path(), "", ""));
    network.down().unwrap();
}
