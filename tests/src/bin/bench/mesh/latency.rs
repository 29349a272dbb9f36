//! How long a change in a remote store takes to become a kernel route.
//!
//! The west/east lab runs; a client writes node records into the store of east at a steady rate, each with a prefix of its
//! own, and a routing socket in a node of west notes when the kernel announces the route. Both clocks are the same
//! monotonic one. The first half of the changes adds nodes, the second half moves each of them to another address, so that
//! both new routes and replaced nexthop objects are measured. Afterwards the records are deleted.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use etcd_client::{Client, DeleteOptions};
use lab::{Lab, Node};
use meshd::{
    config::model::TlsFiles,
    store::{RemoteStore, StoreAddress},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, poll};

/// Where the records of the nodes of east are.
const RECORDS: &str = "cilium/state/nodes/v1/east";
/// How often the listener looks whether it is to stop, in milliseconds.
const LOOK_UP_MS: u8 = 50;
/// Changes a second.
const RATE: u32 = 100;
/// Changes.
const CHANGES: u32 = 2_000;
/// How long the last change may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// Groups of IPv4 routes and nexthop objects, as bits (`RTMGRP_IPV4_ROUTE`); nexthops have a number beyond 31.
const GROUP_ROUTE: u32 = 1 << 6;
const GROUP_NEXTHOP: u32 = 32;
/// Message types.
const NEW_ROUTE: u16 = 24;
const NEW_NEXTHOP: u16 = 104;

/// Milliseconds from Put to kernel, sorted. Each round has nodes of its own names.
pub(super) fn measure(lab: &Lab, round: usize) -> anyhow::Result<Vec<f64>> {
    let (writer, reader) = (lab.node("east-control-plane")?, lab.node("west-worker")?);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = std::thread::scope(|scope| -> anyhow::Result<(HashMap<u32, Instant>, HashMap<u32, Instant>)> {
        let listening = Arc::new(AtomicBool::new(false));
        let (flag, ready) = (stop.clone(), listening.clone());
        let inside = &reader;
        let listener = scope.spawn(move || inside.within(|| listen(&flag, &ready))?);
        let waiting = Instant::now();
        while !listening.load(Ordering::Acquire) && waiting.elapsed() < DEADLINE {
            std::thread::yield_now();
        }
        let written = writer.within(|| write(round));
        let waiting = Instant::now();
        while !listener.is_finished() && waiting.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Release);
        let seen = listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        Ok((written??, seen))
    })?;
    let (written, announced) = seen;
    let latency = |(change, at): (&u32, &Instant)| Some(announced.get(change)?.duration_since(*at).as_secs_f64() * 1e3);
    let mut latencies: Vec<f64> = written.iter().filter_map(latency).collect();
    ensure!(latencies.len() == CHANGES as usize, "{} of {CHANGES} changes reached the kernel", latencies.len());
    latencies.sort_by(f64::total_cmp);
    clear(&writer, &reader, round)?;
    Ok(latencies)
}

/// Prefix and address of a change. The second half names the nodes of the first half with other addresses.
fn change(n: u32) -> (u32, String, Ipv4Addr) {
    let half = CHANGES / 2;
    let node = n % half;
    let prefix = format!("10.1.{}.{}", 16 + node / 16, (node % 16) * 16);
    let third = if n < half { 100 } else { 110 };
    let address = Ipv4Addr::new(172, 18, third + u8::try_from(node / 250).unwrap_or(0), 1 + (node % 250) as u8);
    (node, prefix, address)
}

/// Deletes what [`write`] wrote and waits until its routes are gone.
fn clear(writer: &Node, reader: &Node, round: usize) -> anyhow::Result<()> {
    let all = DeleteOptions::new().with_prefix();
    let delete =
        || with_store(async |client| Ok(client.delete(format!("{RECORDS}/bench-{round}-"), Some(all.clone())).await?));
    writer.within(delete)??;
    let began = Instant::now();
    let left = || -> anyhow::Result<usize> {
        let routes = reader.exec(&["ip", "-4", "route", "show", "proto", "77"])?.ok()?;
        Ok(routes.lines().filter(|line| line.contains("/28 ")).count())
    };
    while left()? > 0 {
        ensure!(began.elapsed() < DEADLINE, "routes of deleted nodes stay");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Runs `body` with a client of the store of the node that this thread is in.
fn with_store<T>(body: impl AsyncFnOnce(&mut Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pki = Path::new("/etc/meshd/pki");
        let tls = TlsFiles { ca: pki.join("ca.crt"), cert: pki.join("admin.crt"), key: pki.join("admin.key") };
        let endpoints = vec!["https://127.0.0.1:2379".parse().map_err(anyhow::Error::msg)?];
        let store = RemoteStore { endpoints, tls: Some(tls), host_aliases: BTreeMap::new() };
        let mut client = StoreAddress::Remote(store.into()).connect().await?;
        body(&mut client).await
    })
}

/// Writes the changes; returns when each was sent.
fn write(round: usize) -> anyhow::Result<HashMap<u32, Instant>> {
    with_store(async |client| {
        let mut written = HashMap::new();
        let start = tokio::time::Instant::now();
        for n in 0..CHANGES {
            tokio::time::sleep_until(start + Duration::from_secs(1) * n / RATE).await;
            let (index, prefix, address) = change(n);
            let name = format!("bench-{round}-{index}");
            let value = serde_json::json!({
                "Name": name, "Cluster": "east", "ClusterID": 2,
                "IPAddresses": [{"Type": "InternalIP", "IP": address}],
                // 255.255.255.240
                "IPv4AllocCIDR": {"IP": prefix, "Mask": "////8A=="},
            });
            written.insert(n, Instant::now());
            client.put(format!("{RECORDS}/{name}"), value.to_string(), None).await?;
        }
        Ok(written)
    })
}

/// When each change was announced by the kernel.
fn listen(stop: &AtomicBool, ready: &AtomicBool) -> anyhow::Result<HashMap<u32, Instant>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_rx_buf_sz(8 << 20)?;
    socket.bind(&SocketAddr::new(0, GROUP_ROUTE))?;
    socket.add_membership(GROUP_NEXTHOP)?;
    socket.set_non_blocking(true)?;
    let half = CHANGES / 2;
    let prefixes: HashMap<Ipv4Addr, u32> =
        (0..half).map(|n| Ok((change(n).1.parse()?, n))).collect::<anyhow::Result<_>>()?;
    let gateways: HashMap<Ipv4Addr, u32> = (half..CHANGES).map(|n| (change(n).2, n)).collect();
    let mut seen = HashMap::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    ready.store(true, Ordering::Release);
    while seen.len() < CHANGES as usize && !stop.load(Ordering::Acquire) {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Wakes with the message, so that waiting adds nothing to what is measured.
                poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], LOOK_UP_MS)?;
                continue;
            }
            Err(error) => return Err(error).context("failed to hear the kernel's announcements"),
        }
        let at = Instant::now();
        for (kind, attributes) in messages(&buffer) {
            let (wanted, known) = match kind {
                // RTA_DST = 1, NHA_GATEWAY = 6
                NEW_ROUTE => (1, &prefixes),
                NEW_NEXTHOP => (6, &gateways),
                _ => continue,
            };
            if let Some(n) = address(attributes, wanted).and_then(|address| known.get(&address)) {
                seen.entry(*n).or_insert(at);
            }
        }
    }
    Ok(seen)
}

/// Type and attributes of each message. Route messages have 12 bytes before the attributes, nexthop messages 8.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(message) = bytes.get(16..len) else { break };
        let fixed = if kind == NEW_NEXTHOP { 8 } else { 12 };
        found.push((kind, message.get(fixed..).unwrap_or_default()));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn address(mut attributes: &[u8], wanted: u16) -> Option<Ipv4Addr> {
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return <[u8; 4]>::try_from(attributes.get(4..len)?).ok().map(Ipv4Addr::from);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
    None
}
