//! Which paths were broken, across a restart: a node that comes back must not send everybody's packets where they get lost until
//! its probes have found out again.

use std::{fs, io, path::Path};

use meshd_core::observed::PathKey;
use tracing::warn;

/// The file in the state directory: a line for each path.
const FILE: &str = "paths";
/// Longest file that is read; the rest would be no file of ours.
const LEN_MAX: u64 = 4 << 20;

/// What the previous run knew. Without a file, or with one that cannot be read, nothing: probes find out.
#[must_use]
pub fn load(folder: &Path) -> Vec<PathKey> {
    let path = folder.join(FILE);
    let is_small = fs::metadata(&path).is_ok_and(|file| file.len() <= LEN_MAX);
    let text = if is_small { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
    text.lines().filter_map(read).collect()
}

/// Writes what is known now.
pub fn save<'a>(folder: &Path, broken: impl Iterator<Item = &'a PathKey>) {
    let text: String = broken
        .map(|key| format!("{} {} {}\n", key.cluster, key.node, if key.ipv4 { "ipv4" } else { "ipv6" }))
        .collect();
    let write = || -> io::Result<()> {
        let new = folder.join(format!("{FILE}.new"));
        fs::write(&new, text)?;
        fs::rename(&new, folder.join(FILE))
    };
    if let Err(error) = write() {
        warn!(%error, "which paths are broken is not remembered");
    }
}

fn read(line: &str) -> Option<PathKey> {
    let mut words = line.split(' ');
    let (cluster, node) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let ipv4 = match words.next()? {
        "ipv4" => true,
        "ipv6" => false,
        _ => return None,
    };
    Some(PathKey { cluster, node, ipv4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), []);
        let key = |ipv4| PathKey { cluster: "east".parse().unwrap(), node: "a.b-1".parse().unwrap(), ipv4 };
        let keys = [key(true), key(false)];
        save(folder.path(), keys.iter());
        assert_eq!(load(folder.path()), keys);
        save(folder.path(), [].iter());
        assert_eq!(load(folder.path()), []);
        fs::write(folder.path().join(FILE), "east a ipv5\n\nEAST b ipv4\n").unwrap();
        assert_eq!(load(folder.path()), []);
    }
}
