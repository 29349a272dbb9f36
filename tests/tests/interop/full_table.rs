//! A whole table goes from one BIRD through us to another one, and is compared path by path and octet by octet.
//!
//! A generator feeds the first BIRD. That tells us, and beside us a third BIRD, so that one has exactly what we were told. The second
//! and the third write their tables as MRT (RFC 6396), which keeps attributes as they were on the wire. What the second one
//! has must be what the third one has, changed as RFC 4271 wants it of us: our AS in front of AS_PATH (section 5.1.2), our
//! address as NEXT_HOP (5.1.3), and no MULTI_EXIT_DISC (5.1.4). LOCAL_PREF never leaves an AS (5.1.5): both BIRDs give their own.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread::scope,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tests::{
    bgp::{
        speaker::{Identity, Session},
        stream::Table,
    },
    routers::{Blueprint, Network, Router, until},
};

use super::configurations::{NODE, configuration};

const OUR_AS: u32 = 65_000;
const OUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The generator.
const FEED: Identity = Identity {
    asn: 65_009,
    address: Ipv4Addr::new(192, 0, 2, 9),
    daemon: Ipv4Addr::new(192, 0, 2, 1),
    hold_time_s: 240,
    receive_buffer: None,
};
/// Lines of the section `bgp` of ours.
const OUR_BGP: &str = r#"  import: {accept: ["0.0.0.0/0 le 32"], install: false, max_routes: 2000000}
  policies: {all: [{}]}
  peers:
    - {address: 192.0.2.1, remote_as: 65001, export: [all], families: {ipv4: {}}}
    - {address: 192.0.2.2, remote_as: 65002, export: [all], families: {ipv4: {}}}"#;
/// Paths of the longest prefixes have a metric, which is not to come out behind us.
const WITH_MED: &str = "filter { if net.len = 24 then bgp_med = 7; accept; }";
/// The type of MULTI_EXIT_DISC.
const MED: u8 = 4;
/// How often a table is asked for its size.
const PAUSE: Duration = Duration::from_millis(200);

/// A BIRD with sessions, each with the number and AS of the peer and with what it is sent.
fn bird(number: u8, peers: &[(u8, u32, &str)]) -> Blueprint {
    let mut text = format!("router id 192.0.2.{number};\n");
    for (peer, asn, export) in peers {
        let passive = if *peer == FEED.address.octets()[3] { "passive yes;" } else { "" };
        text += &format!(
            "protocol bgp peer{peer} {{ local 192.0.2.{number} as 6500{number}; neighbor 192.0.2.{peer} as {asn}; {passive}
               connect delay time 1; connect retry time 1; hold time 240; ipv4 {{ import all; export {export}; }}; }}\n"
        );
    }
    Blueprint::bird(&format!("bird{number}"), &text).address(&format!("192.0.2.{number}/24"))
}

/// Waits until a BIRD has so many routes.
fn wait_routes(router: &Router, count: usize, within: Duration) -> anyhow::Result<()> {
    let wanted = format!("{count} of {count} routes for {count} networks in table master4");
    until(&wanted, within, || {
        std::thread::sleep(PAUSE);
        let text = router.run(&["birdc", "show", "route", "count"])?;
        ensure!(text.contains(&wanted), "{text}");
        Ok(())
    })
}

/// Prefix, as address and length, with attributes as they are on the wire.
type Dump = Vec<(u32, u8, Vec<u8>)>;

/// A BIRD's table in the order of prefixes.
fn dump(router: &Router) -> anyhow::Result<Dump> {
    router.run(&["birdc", "mrt", "dump", "table", "\"master4\"", "to", "\"/run/table.mrt\""])?;
    let octets = router.node().within(|| std::fs::read("/run/table.mrt"))?.context("no dump")?;
    router.run(&["rm", "/run/table.mrt"])?;
    let mut dump = Dump::new();
    let mut rest = octets.as_slice();
    while !rest.is_empty() {
        // Time, type, subtype, length (section 2); TABLE_DUMP_V2 and RIB_IPV4_UNICAST are of interest (section 4.3.2).
        let header: [u8; 12] = *take(&mut rest)?;
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let mut record = take_some(&mut rest, usize::try_from(length)?)?;
        if header[4..8] != [0, 13, 0, 2] {
            continue;
        }
        let [_, _, _, _, bits]: [u8; 5] = *take(&mut record)?;
        let prefix = take_some(&mut record, usize::from(bits.div_ceil(8)))?;
        let mut address = [0; 4];
        address[..prefix.len()].copy_from_slice(prefix);
        ensure!(*take::<2>(&mut record)? == [0, 1], "several paths for a prefix");
        let entry: [u8; 8] = *take(&mut record)?;
        let attributes = take_some(&mut record, usize::from(u16::from_be_bytes([entry[6], entry[7]])))?;
        ensure!(record.is_empty(), "a record is too long");
        dump.push((u32::from_be_bytes(address), bits, attributes.to_vec()));
    }
    dump.sort_unstable();
    Ok(dump)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> anyhow::Result<&'a [u8; N]> {
    let (first, behind) = rest.split_first_chunk().context("a dump ends too early")?;
    *rest = behind;
    Ok(first)
}

fn take_some<'a>(rest: &mut &'a [u8], length: usize) -> anyhow::Result<&'a [u8]> {
    let (first, behind) = rest.split_at_checked(length).context("a dump ends too early")?;
    *rest = behind;
    Ok(first)
}

/// Flags and value by type. The flag for a length of two octets says nothing.
fn attributes(mut rest: &[u8]) -> anyhow::Result<BTreeMap<u8, (u8, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let [flags, kind]: [u8; 2] = *take(&mut rest)?;
        let length = match flags & 0x10 {
            0 => usize::from(take::<1>(&mut rest)?[0]),
            _ => usize::from(u16::from_be_bytes(*take(&mut rest)?)),
        };
        let value = take_some(&mut rest, length)?.to_vec();
        ensure!(found.insert(kind, (flags & !0x10, value)).is_none(), "attribute {kind} twice");
    }
    Ok(found)
}

/// What an external speaker has to make of attributes, without LOCAL_PREF.
fn passed_on(octets: &[u8]) -> anyhow::Result<BTreeMap<u8, (u8, Vec<u8>)>> {
    const AS_PATH: u8 = 2;
    const NEXT_HOP: u8 = 3;
    const SEQUENCE: u8 = 2;
    let mut attributes = attributes(octets)?;
    let (_, path) = attributes.get_mut(&AS_PATH).context("no AS_PATH")?;
    ensure!(path.first() == Some(&SEQUENCE) && path.len() > 2 && path[1] < 255, "not a path of this test: {path:?}");
    path[1] += 1;
    path.splice(2..2, OUR_AS.to_be_bytes());
    attributes.get_mut(&NEXT_HOP).context("no NEXT_HOP")?.1 = OUR_ADDRESS.octets().to_vec();
    attributes.remove(&MED);
    without_local_pref(&mut attributes);
    Ok(attributes)
}

fn without_local_pref(attributes: &mut BTreeMap<u8, (u8, Vec<u8>)>) {
    const LOCAL_PREF: u8 = 5;
    attributes.remove(&LOCAL_PREF);
}

fn assert_passed_on(before: &Dump, after: &Dump) -> anyhow::Result<()> {
    ensure!(before.len() == after.len(), "{} prefixes became {}", before.len(), after.len());
    for ((address, bits, before), (also, also_bits, after)) in before.iter().zip(after) {
        let prefix = format!("{}/{bits}", Ipv4Addr::from(*address));
        ensure!((address, bits) == (also, also_bits), "{prefix} is missing");
        let wanted = passed_on(before).with_context(|| prefix.clone())?;
        let mut after = attributes(after).with_context(|| prefix.clone())?;
        without_local_pref(&mut after);
        ensure!(wanted == after, "{prefix}: {after:?} instead of {wanted:?}");
    }
    Ok(())
}

fn pass_through(count: usize, within: Duration) {
    tests::need_root();
    let network = Network::up(&[
        bird(1, &[(10, OUR_AS, WITH_MED), (3, 65_003, WITH_MED), (9, FEED.asn, "none")]),
        bird(2, &[(10, OUR_AS, "none")]),
        bird(3, &[(1, 65_001, "none")]),
        Blueprint::meshd("ours", &configuration(NODE, OUR_AS, OUR_BGP)).address("192.0.2.10/24"),
        Blueprint::plain("feed").address("192.0.2.9/24"),
    ])
    .unwrap();
    let router = |name: &str| network.router(name).unwrap();
    let (twin, second, ours, feed) = (router("bird3"), router("bird2"), router("ours"), router("feed"));
    ours.wait_established("192.0.2.1").unwrap();
    ours.wait_established("192.0.2.2").unwrap();
    twin.wait_established("192.0.2.1").unwrap();
    let table = Table::new(count, 3);
    let messages = table.encode(FEED.asn, FEED.address);
    let session = feed.node().within(|| Session::establish(&FEED)).unwrap().unwrap();
    let done = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| session.drain(&done));
        let started = Instant::now();
        session.send(&messages).unwrap();
        let through = wait_routes(&twin, count, within).and_then(|()| wait_routes(&second, count, within));
        let took = started.elapsed();
        done.store(true, Ordering::Relaxed);
        through.unwrap();
        println!("{count} prefixes with {} sets of attributes were through after {took:?}", table.sets.len());
    });
    let (before, after) = (dump(&twin).unwrap(), dump(&second).unwrap());
    assert_eq!(before.len(), count);
    let has_med = |attributes: &[u8]| self::attributes(attributes).unwrap().contains_key(&MED);
    assert!(before.iter().any(|(.., attributes)| has_med(attributes)), "nothing is there that must not be passed on");
    assert_passed_on(&before, &after).unwrap();
    for router in [&twin, &second] {
        assert_eq!(router.complaints().unwrap(), Vec::<String>::new());
    }
    network.down().unwrap();
}

#[test]
fn a_table_goes_through_us_unchanged() {
    pass_through(50_000, Duration::from_secs(60));
}

/// The whole Internet, and a little more.
#[test]
#[ignore = "takes a minute and 1 GiB: `make full-table`"]
fn a_million_prefixes_go_through_us_unchanged() {
    pass_through(1_000_000, Duration::from_secs(300));
}

#[test]
fn a_table_that_was_changed_is_noticed() {
    let path = |own: &[u8]| [&[0x40, 1, 1, 0, 0x40, 2][..], own].concat();
    let before =
        vec![(0x0a00_0000, 8, path(&[6, 2, 1, 0, 0, 0xfd, 0xe9, 0x40, 3, 4, 1, 2, 3, 4, 0x80, 4, 4, 0, 0, 0, 7]))];
    let ours = [10, 2, 2, 0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe9, 0x40, 3, 4, 192, 0, 2, 10];
    let mut after = vec![(0x0a00_0000, 8, path(&ours))];
    assert_passed_on(&before, &after).unwrap();
    for index in 2..after[0].2.len() {
        let mut changed = after.clone();
        changed[0].2[index] ^= 1;
        assert!(assert_passed_on(&before, &changed).is_err(), "octet {index}");
    }
    after[0].2.extend([0x80, 4, 4, 0, 0, 0, 7]);
    assert!(assert_passed_on(&before, &after).is_err(), "MED");
    assert!(assert_passed_on(&before, &Vec::new()).is_err());
}
