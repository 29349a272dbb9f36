//! The bare loop: what the kernel takes when the caller does nothing but call it.

use std::{
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt::{RcvBufForce, SndBufForce},
};

use super::{Family, NEXTHOP};

/// Messages in one send.
const PER_SEND: usize = 512;

/// Installs the routes and returns how long that took.
pub(super) fn install(family: Family, prefixes: &[IpNet]) -> anyhow::Result<Duration> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
        .context("failed to open a netlink socket")?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("failed to bind a netlink socket")?;
    setsockopt(&fd, SndBufForce, &(1 << 20))?;
    setsockopt(&fd, RcvBufForce, &(1 << 20))?;
    let template = template(family);
    let address_at = 16 + 12 + 4;
    let mut batch = Vec::with_capacity(PER_SEND * template.len());
    let mut answer = [0; 4096];

    let started = Instant::now();
    for chunk in prefixes.chunks(PER_SEND) {
        batch.clear();
        for prefix in chunk {
            let at = batch.len() + address_at;
            batch.extend_from_slice(&template);
            match prefix {
                IpNet::V4(net) => batch[at..at + 4].copy_from_slice(&net.addr().octets()),
                IpNet::V6(net) => batch[at..at + 16].copy_from_slice(&net.addr().octets()),
            }
        }
        let last = batch.len() - template.len();
        batch[last + 6] |= 0x4;
        let sent = send(fd.as_raw_fd(), &batch, MsgFlags::empty()).context("failed to send routes")?;
        ensure!(sent == batch.len(), "a send was cut short");
        let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("failed to receive the answer")?;
        let error = answer.get(16..20).filter(|_| length >= 20).context("an answer is too short")?;
        ensure!(error == [0; 4], "the kernel refused a route: error {error:?}");
    }
    Ok(started.elapsed())
}

/// `RTM_NEWROUTE` with `NLM_F_CREATE|NLM_F_EXCL`, protocol 77, metric 77 and the nexthop object; the destination follows.
fn template(family: Family) -> Vec<u8> {
    let (number, length, address) = match family {
        Family::V4 => (2, 24, 4),
        Family::V6 => (10, 48, 16),
    };
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).expect("a few bytes");
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    let mut message = vec![0; 16];
    message.extend([number, length, 0, 0, 254, 77, 0, 1, 0, 0, 0, 0]);
    message.extend(attribute(1, &vec![0; address]));
    message.extend(attribute(6, &77u32.to_ne_bytes()));
    message.extend(attribute(30, &NEXTHOP.to_ne_bytes()));
    let total = u32::try_from(message.len()).expect("a few bytes");
    message[..4].copy_from_slice(&total.to_ne_bytes());
    message[4..6].copy_from_slice(&24u16.to_ne_bytes());
    message[6..8].copy_from_slice(&(0x1u16 | 0x400 | 0x200).to_ne_bytes());
    message
}
