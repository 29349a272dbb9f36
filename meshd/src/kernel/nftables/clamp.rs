//! Segments that fit: the largest segment that an end of a TCP connection asks for is lowered to what its route takes, for ends that
//! never hear that a packet was too long.
//!
//! The table is `inet meshd_mss`, and everything in it is ours. It sees what the stack forwards, in both directions.

use super::{NftError, first_line, run};

/// The table.
const CLAMP_TABLE: &str = "meshd_mss";
/// What must be in its listing.
const WORDS: [&str; 2] = ["hook forward", "maxseg size set rt mtu"];

/// True when the table is there.
///
/// # Errors
/// Without `nft`.
pub async fn look() -> Result<bool, NftError> {
    let output = run(&["list", "table", "inet", CLAMP_TABLE], Vec::new()).await?;
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && WORDS.iter().all(|word| listed.contains(word)))
}

/// Puts the table in the place of what is there.
///
/// # Errors
/// What `nft` refused.
pub async fn put() -> Result<(), NftError> {
    let document = format!(
        "add table inet {CLAMP_TABLE}\ndelete table inet {CLAMP_TABLE}\ntable inet {CLAMP_TABLE} {{\nchain clamp {{\ntype filter hook \
         forward priority mangle; policy accept;\ntcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n}}\n}}\n"
    );
    write("clamp segments", document).await
}

/// Removes the table, if it is there.
///
/// # Errors
/// What `nft` refused.
pub async fn remove() -> Result<(), NftError> {
    write("remove the table", format!("add table inet {CLAMP_TABLE}\ndelete table inet {CLAMP_TABLE}\n")).await
}

async fn write(operation: &'static str, document: String) -> Result<(), NftError> {
    let output = run(&["-f", "-"], document.into_bytes()).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(NftError::Refused { operation, reason: first_line(&String::from_utf8_lossy(&output.stderr)) })
}
