//! From the contents of the directory to peers; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use meshd_core::id::ClusterName;

use super::{PeerProblem, PeerSources};
use crate::config::cilium;
use crate::config::model::Peer;

/// A file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its content, or why it cannot be read.
    pub content: Result<String, String>,
}

/// What was known before a reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Peers as they were.
    pub peers: BTreeMap<ClusterName, Peer>,
    /// Clusters of which only rows are left, from before a restart.
    pub remembered: BTreeSet<ClusterName>,
}

/// What the sources describe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The peers.
    pub peers: BTreeMap<ClusterName, Peer>,
    /// Remembered clusters whose file is there but wrong, with the file.
    pub kept: BTreeMap<ClusterName, PathBuf>,
    /// What is wrong.
    pub problems: Vec<PeerProblem>,
}

/// The peers of the configuration and of the directory's files.
///
/// A peer of `before` stays when its file is there but wrong. A cluster in both is taken from the configuration.
#[must_use]
pub fn peers(sources: &PeerSources, files: &[DirectoryFile], before: &Before) -> Described {
    let mut peers = BTreeMap::new();
    let mut kept = BTreeMap::new();
    let mut problems = Vec::new();
    for file in files {
        let Some(name) = file.path.file_name().and_then(std::ffi::OsStr::to_str) else { continue };
        let cluster = name.parse::<ClusterName>().ok();
        let mut problem = |message: String| {
            problems.push(PeerProblem { file: file.path.clone(), cluster: cluster.clone(), message });
        };
        let content = match &file.content {
            Ok(content) if cilium::is_client(content) => content,
            Ok(_) => continue,
            Err(error) => {
                // Only a name that was a peer before makes an unreadable file worth a word: others may be keys.
                let Some(cluster) = cluster.clone() else { continue };
                if let Some(peer) = before.peers.get(&cluster).filter(|peer| peer.source == file.path) {
                    problem(format!("failed to read the file: {error}; the last good version stays"));
                    peers.insert(cluster, peer.clone());
                } else if before.remembered.contains(&cluster) {
                    problem(format!("failed to read the file: {error}; what is remembered of {cluster} stays"));
                    kept.insert(cluster, file.path.clone());
                }
                continue;
            }
        };
        let Some(cluster) = cluster.clone() else {
            problem(format!("the file name {name:?} is no cluster name"));
            continue;
        };
        if cluster == sources.own {
            continue;
        }
        if sources.peers.iter().any(|peer| peer.cluster == cluster) {
            problem(format!("cluster {cluster} is also in the configuration; this file is not used"));
            continue;
        }
        match cilium::parse(&file.path, content) {
            Ok(client) => {
                for warning in client.warnings {
                    problem(warning.to_string());
                }
                let peer = Peer {
                    cluster: cluster.clone(),
                    endpoints: client.endpoints,
                    tls: client.tls,
                    accept: sources.accept.clone(),
                    host_aliases: client.host_aliases,
                    source: file.path.clone(),
                };
                peers.insert(cluster, peer);
            }
            Err(findings) => {
                let last_good = before.peers.get(&cluster).filter(|peer| peer.source == file.path);
                let is_remembered = last_good.is_none() && before.remembered.contains(&cluster);
                let and = match (last_good, is_remembered) {
                    (Some(_), _) => "; the last good version stays",
                    (None, true) => "; what is remembered of the cluster stays",
                    (None, false) => "",
                };
                for finding in findings {
                    problem(format!("{finding}{and}"));
                }
                if let Some(peer) = last_good {
                    peers.insert(cluster, Peer { accept: sources.accept.clone(), ..peer.clone() });
                } else if is_remembered {
                    kept.insert(cluster, file.path.clone());
                }
            }
        }
    }
    peers.extend(sources.peers.iter().map(|peer| (peer.cluster.clone(), peer.clone())));
    kept.retain(|cluster, _| !peers.contains_key(cluster));
    problems.sort();
    Described { peers, kept, problems }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Accept;

    fn sources(peers: Vec<Peer>) -> PeerSources {
        let accept = Accept { pod_cidrs: vec!["10.0.0.0/8".parse().unwrap()], node_cidrs: Vec::new() };
        PeerSources { peers, peers_dir: Some("/d".into()), accept, own: "west".parse().unwrap() }
    }

    fn file(name: &str, content: &str) -> DirectoryFile {
        DirectoryFile { path: PathBuf::from("/d").join(name), content: Ok(content.to_owned()) }
    }

    fn unreadable(name: &str) -> DirectoryFile {
        DirectoryFile { path: PathBuf::from("/d").join(name), content: Err("Permission denied".to_owned()) }
    }

    const GOOD: &str = "endpoints: [\"http://localhost:1\"]\n";

    #[test]
    fn every_file_with_endpoints_is_a_peer() {
        let files = [
            file("east", GOOD),
            file("west", GOOD),
            file("common-etcd-client.crt", "-----BEGIN CERTIFICATE-----"),
            file("Bad_Name", GOOD),
            file("north", "endpoints: [nowhere]"),
        ];
        let Described { peers, kept, problems } = super::peers(&sources(Vec::new()), &files, &Before::default());
        assert!(kept.is_empty());
        assert_eq!(peers.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["east"]);
        assert_eq!(peers["east"].accept.pod_cidrs.len(), 1);
        let problems: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
        assert_eq!(problems.len(), 2, "{problems:#?}");
        assert!(problems[0].contains("no cluster name"), "{problems:#?}");
        assert!(problems[1].starts_with("/d/north:1: endpoints[0]"), "{problems:#?}");
    }

    #[test]
    fn a_broken_file_keeps_its_peer_and_a_removed_one_does_not() {
        let sources = sources(Vec::new());
        let Described { peers, .. } = super::peers(&sources, &[file("east", GOOD)], &Before::default());
        // Remembered as well: the last good version is more than that.
        let before = Before { peers, remembered: ["east".parse().unwrap()].into() };
        let after = super::peers(&sources, &[file("east", "endpoints: [")], &before);
        assert_eq!((&after.peers, after.kept.len()), (&before.peers, 0));
        assert!(after.problems[0].message.ends_with("the last good version stays"));
        let after = super::peers(&sources, &[unreadable("east")], &before);
        assert_eq!((&after.peers, after.kept.len(), after.problems.len()), (&before.peers, 0, 1));
        assert_eq!(super::peers(&sources, &[], &before), Described::default());
    }

    #[test]
    fn a_remembered_cluster_is_kept_while_its_file_is_there() {
        let sources = sources(Vec::new());
        let before =
            Before { remembered: ["east".parse().unwrap(), "north".parse().unwrap()].into(), ..Before::default() };
        let files = [file("east", "endpoints: ["), unreadable("north"), unreadable("south"), unreadable("ca")];
        let after = super::peers(&sources, &files, &before);
        let kept: Vec<&str> = after.kept.keys().map(ClusterName::as_str).collect();
        assert_eq!((after.peers.len(), kept), (0, vec!["east", "north"]));
        let messages: Vec<&String> = after.problems.iter().map(|problem| &problem.message).collect();
        assert_eq!(messages.len(), 2, "{messages:#?}");
        assert!(messages.iter().all(|message| message.contains("what is remembered of")), "{messages:#?}");
        // Somebody who can read says that it is gone, or there.
        assert_eq!(super::peers(&sources, &[], &before).kept, BTreeMap::new());
        let after = super::peers(&sources, &[file("east", GOOD)], &before);
        assert_eq!((after.peers.len(), after.kept.len()), (1, 0));
    }

    #[test]
    fn the_configuration_wins() {
        let directory = super::peers(&sources(Vec::new()), &[file("east", GOOD)], &Before::default());
        let mut own = directory.peers["east"].clone();
        own.source = "/etc/meshd/meshd.yaml".into();
        let read = super::peers(&sources(vec![own.clone()]), &[file("east", GOOD)], &Before::default());
        assert_eq!(read.peers["east"], own);
        assert!(read.problems[0].message.contains("also in the configuration"));
    }
}
