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
    /// Peers as they were, those of the configuration too.
    pub peers: BTreeMap<ClusterName, Peer>,
    /// Which of them a file of a directory described.
    pub in_directory: BTreeSet<ClusterName>,
    /// Clusters of which only rows are left, from before a restart.
    pub remembered: BTreeSet<ClusterName>,
}

impl Before {
    fn knows(&self, cluster: &ClusterName) -> bool {
        self.peers.contains_key(cluster) || self.remembered.contains(cluster)
    }
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
        let is_client = file.content.as_ref().is_ok_and(|content| cilium::is_client(content));
        let Some(cluster) = cluster.clone() else {
            if is_client {
                problem(format!("the file name {name:?} is no cluster name"));
            }
            continue;
        };
        if cluster == sources.own {
            continue;
        }
        if sources.peers.iter().any(|peer| peer.cluster == cluster) {
            if is_client {
                problem(format!("cluster {cluster} is also in the configuration; this file is not used"));
            }
            continue;
        }
        let wrong: Vec<String> = match &file.content {
            Ok(content) if is_client => match cilium::parse(&file.path, content) {
                Ok(client) => {
                    for warning in client.warnings {
                        problem(warning.to_string());
                    }
                    let peer = Peer {
                        mode: None,
                        cluster: cluster.clone(),
                        endpoints: client.endpoints,
                        over_bgp: None,
                        tls: client.tls,
                        accept: sources.accept.clone(),
                        host_aliases: client.host_aliases,
                        source: file.path.clone(),
                    };
                    peers.insert(cluster, peer);
                    continue;
                }
                Err(findings) => findings.iter().map(ToString::to_string).collect(),
            },
            // Certificates and keys look like this, unless there was a cluster of this name: then it is its file,
            // cut short or with a typing mistake.
            Ok(_) | Err(_) if !before.knows(&cluster) => continue,
            Ok(_) => vec!["the file lacks `endpoints:` (to remove the cluster, remove the file)".to_owned()],
            Err(error) => vec![format!("failed to read the file: {error}")],
        };
        let and = if let Some(last_good) = before.peers.get(&cluster) {
            peers.insert(cluster, Peer { accept: sources.accept.clone(), ..last_good.clone() });
            "; the last good version stays"
        } else if before.remembered.contains(&cluster) {
            kept.insert(cluster, file.path.clone());
            "; what is remembered of the cluster stays"
        } else {
            ""
        };
        for message in wrong {
            problem(format!("{message}{and}"));
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
        let before = Before { peers, remembered: ["east".parse().unwrap()].into(), ..Before::default() };
        let after = super::peers(&sources, &[file("east", "endpoints: [")], &before);
        assert_eq!((&after.peers, after.kept.len()), (&before.peers, 0));
        assert!(after.problems[0].message.ends_with("the last good version stays"));
        let after = super::peers(&sources, &[unreadable("east")], &before);
        assert_eq!((&after.peers, after.kept.len(), after.problems.len()), (&before.peers, 0, 1));
        for cut_short in ["", "endpoint: [\"http://localhost:1\"]\n", "-----BEGIN CERTIFICATE-----"] {
            let after = super::peers(&sources, &[file("east", cut_short), file("ca", cut_short)], &before);
            assert_eq!((&after.peers, after.kept.len(), after.problems.len()), (&before.peers, 0, 1), "{cut_short}");
            let message = &after.problems[0].message;
            assert!(message.contains("lacks `endpoints:`") && message.ends_with("the last good version stays"));
        }
        assert_eq!(super::peers(&sources, &[], &before), Described::default());
    }

    #[test]
    fn a_peer_that_moves_into_the_directory_stays_while_its_file_is_wrong() {
        let mut east = super::peers(&sources(Vec::new()), &[file("east", GOOD)], &Before::default()).peers;
        east.get_mut("east").unwrap().source = "/etc/meshd/conf.d/peer-east.yaml".into();
        east.get_mut("east").unwrap().accept = Accept::default();
        let before = Before { peers: east, ..Before::default() };
        let sources = sources(Vec::new());
        let after = super::peers(&sources, &[file("east", "")], &before);
        assert_eq!(after.peers["east"].endpoints, before.peers["east"].endpoints);
        assert_eq!(after.peers["east"].accept, sources.accept, "what the directory's peers may say");
        assert_eq!(after.problems.len(), 1);
        assert_eq!(super::peers(&sources, &[], &before), Described::default());
    }

    #[test]
    fn a_wrong_file_of_the_own_or_a_configured_cluster_is_no_matter() {
        let east = super::peers(&sources(Vec::new()), &[file("east", GOOD)], &Before::default()).peers;
        let remembered = ["east".parse().unwrap(), "west".parse().unwrap()].into();
        let before = Before { peers: east.clone(), remembered, ..Before::default() };
        let sources = sources(east.values().cloned().collect());
        let files = [file("east", ""), unreadable("west"), file("west", "")];
        let after = super::peers(&sources, &files, &before);
        assert_eq!(after, Described { peers: east, ..Described::default() });
    }

    #[test]
    fn a_remembered_cluster_is_kept_while_its_file_is_there() {
        let sources = sources(Vec::new());
        let remembered = ["east", "north", "outer"].map(|name| name.parse().unwrap()).into();
        let before = Before { remembered, ..Before::default() };
        let files = [
            file("east", "endpoints: ["),
            unreadable("north"),
            file("outer", ""),
            unreadable("south"),
            file("empty", ""),
            unreadable("ca"),
        ];
        let after = super::peers(&sources, &files, &before);
        let kept: Vec<&str> = after.kept.keys().map(ClusterName::as_str).collect();
        assert_eq!((after.peers.len(), kept), (0, vec!["east", "north", "outer"]));
        let messages: Vec<&String> = after.problems.iter().map(|problem| &problem.message).collect();
        assert_eq!(messages.len(), 3, "{messages:#?}");
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
