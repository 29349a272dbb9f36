//! Frames that come out of the tunnel are ours, whatever address they carry.
//!
//! Inside a VXLAN header is an Ethernet frame, and the kernel takes it only when it is addressed to the link. No node knows the
//! address of the other's link: Cilium writes the one of the workload's link, our own links write theirs, because they resolve
//! nothing. One rule in front of everything says that such a frame is for this host. The table is `netdev meshd`, and everything in it
//! is ours. A kernel before 6.16 empties the chain when the link goes, so it is looked at whenever the link is another one.

use super::{NftError, TABLE, first_line, run};
use meshd_core::id::TUNNEL_LINK;

/// What must be in the listing of the table.
const WORDS: [&str; 3] = ["hook ingress", "pkttype set", "policy accept"];

/// True when the table is there and hooked to the tunnel's link.
///
/// # Errors
/// Without `nft`.
pub async fn look() -> Result<bool, NftError> {
    let output = run(&["list", "table", "netdev", TABLE], Vec::new()).await?;
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && WORDS.iter().chain([&TUNNEL_LINK]).all(|word| listed.contains(word)))
}

/// Puts the table in the place of what is there.
///
/// # Errors
/// What `nft` refused.
pub async fn put() -> Result<(), NftError> {
    let document = format!(
        "add table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\nchain arrivals {{\ntype filter hook ingress device \
         \"{TUNNEL_LINK}\" priority 0; policy accept;\nmeta pkttype set host\n}}\n}}\n"
    );
    write("take frames out of the tunnel", document).await
}

/// Removes the table, if it is there.
///
/// # Errors
/// What `nft` refused.
pub async fn remove() -> Result<(), NftError> {
    write("remove the table", format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n")).await
}

async fn write(operation: &'static str, document: String) -> Result<(), NftError> {
    let output = run(&["-f", "-"], document.into_bytes()).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(NftError::Refused { operation, reason: first_line(&String::from_utf8_lossy(&output.stderr)) })
}
