//! Kernel settings of a node's network namespace.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};
use crate::topology::Role;

/// Settings of every namespace. Addresses are usable at once: nobody else can own them here, so there is nothing for
/// duplicate address detection to find, and tests need not wait for it.
const EVERYWHERE: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];

/// A node forwards for its pods. Loose reverse path filtering: the way back to a pod of another cluster may be by a
/// different link than the packet came from.
const NODE: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "2"),
    ("ipv4/conf/default/rp_filter", "2"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
];

/// Switches have no addresses, so they need not speak IPv6 either.
const SWITCH: &[(&str, &str)] = &[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")];

/// Sets what the role needs in the network namespace of the calling thread.
pub(super) fn apply(role: Option<Role>) -> Result<()> {
    let by_role = match role {
        Some(Role::Node) => NODE,
        Some(Role::Pod) => &[],
        None => SWITCH,
    };
    for (name, value) in EVERYWHERE.iter().chain(by_role) {
        let path = Path::new("/proc/sys/net").join(name);
        match std::fs::write(&path, value) {
            Ok(()) => {}
            // A kernel without IPv6 has no such settings.
            Err(error) if error.kind() == ErrorKind::NotFound && name.starts_with("ipv6") => {}
            Err(source) => return Err(Error::file("write", path)(source)),
        }
    }
    Ok(())
}
