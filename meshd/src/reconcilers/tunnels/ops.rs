//! The link, looked at and changed.

use std::net::IpAddr;

use meshd_core::{id::IfIndex, plan::TunnelStep};
use tokio::task::spawn_blocking;

use crate::kernel::linux::tunnel::{self, TunnelLinks, VxlanLink};

/// What there is.
///
/// # Errors
/// Why it cannot be told.
pub async fn look() -> Result<TunnelLinks, String> {
    let looked = spawn_blocking(tunnel::look).await.map_err(|error| error.to_string())?;
    looked.map_err(|error| error.to_string())
}

/// Gives the link an IPv4 address of the node, if it has one.
///
/// # Errors
/// Why it has none.
pub async fn give_address(link: IfIndex, own: &[IpAddr]) -> Result<(), String> {
    let address = own.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let Some(address) = address else { return Ok(()) };
    let given = spawn_blocking(move || tunnel::give_address(link, address)).await.map_err(|error| error.to_string())?;
    given.map_err(|error| error.to_string())
}

/// Takes one step. `port` and `foreign` explain a refusal.
///
/// # Errors
/// Why it was not taken.
pub async fn carry_out(step: TunnelStep, port: u16, foreign: &[VxlanLink]) -> Result<(), String> {
    let taken = spawn_blocking(move || tunnel::carry_out(&step)).await.map_err(|error| error.to_string())?;
    let Err(error) = taken else { return Ok(()) };
    let rival = foreign.iter().find(|link| link.up && link.port == port).filter(|_| error.is_port_taken());
    Err(match rival {
        Some(rival) => format!(
            "{error}: the link {} of another program has UDP port {port} and is left alone; give `tunnel.port` another port on every node, \
             or remove that link",
            rival.name
        ),
        None if error.is_port_taken() => {
            format!("{error}: another program has UDP port {port}; give `tunnel.port` another port on every node")
        }
        None => format!("{error}; the kernel needs VXLAN (CONFIG_VXLAN), and meshd CAP_NET_ADMIN"),
    })
}
