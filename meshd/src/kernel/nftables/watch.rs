//! Knowing when somebody touched our table.
//!
//! The kernel tells every change of every table to one multicast group. What matters is whether our name is in it; whatever
//! it says, the answer is to look. Other people's tables may change often, which costs a search for six octets.

use std::{io, sync::Arc};

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::{sync::Notify, time::sleep};

use super::TABLE;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// Pause after an error of the socket, which is an overflow: then everything may have changed.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// Subscribes; `touched` is notified whenever something may have changed in our table, by ourselves too.
///
/// # Errors
/// When the socket cannot be opened; then only a periodic look is left.
pub fn start(touched: Arc<Notify>) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(GROUP)?;
    let name: Vec<u8> = TABLE.bytes().chain([0]).collect();
    Ok(async move {
        loop {
            match socket.recv_from_full().await {
                Ok((message, _)) => {
                    if message.windows(name.len()).any(|window| window == name) {
                        touched.notify_one();
                    }
                }
                Err(_) => {
                    touched.notify_one();
                    sleep(PAUSE).await;
                }
            }
        }
    })
}
