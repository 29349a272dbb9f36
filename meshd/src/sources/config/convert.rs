//! From the contents of the directory to peers; pure.

use std::collections::BTreeMap;
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

/// The peers of the configuration and of the directory's files.
///
/// A peer of `before` stays when its file is there but wrong. A cluster in both is taken from the configuration.
#[must_use]
pub fn peers(
    sources: &PeerSources,
    files: &[DirectoryFile],
    before: &BTreeMap<ClusterName, Peer>,
) -> (BTreeMap<ClusterName, Peer>, Vec<PeerProblem>) {
    let mut peers = BTreeMap::new();
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
                if let Some(peer) =
                    cluster.as_ref().and_then(|cluster| before.get(cluster)).filter(|peer| peer.source == file.path)
                {
                    problem(format!("failed to read the file: {error}; the last good version stays"));
                    peers.insert(peer.cluster.clone(), peer.clone());
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
                let kept = before.get(&cluster).filter(|peer| peer.source == file.path);
                let and = if kept.is_some() { "; the last good version stays" } else { "" };
                for finding in findings {
                    problem(format!("{finding}{and}"));
                }
                peers.extend(kept.map(|peer| (cluster, Peer { accept: sources.accept.clone(), ..peer.clone() })));
            }
        }
    }
    peers.extend(sources.peers.iter().map(|peer| (peer.cluster.clone(), peer.clone())));
    problems.sort();
    (peers, problems)
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
        let (peers, problems) = super::peers(&sources(Vec::new()), &files, &BTreeMap::new());
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
        let (before, _) = super::peers(&sources, &[file("east", GOOD)], &BTreeMap::new());
        let (after, problems) = super::peers(&sources, &[file("east", "endpoints: [")], &before);
        assert_eq!(after, before);
        assert!(problems[0].message.ends_with("the last good version stays"));
        let gone = DirectoryFile { path: "/d/east".into(), content: Err("Permission denied".to_owned()) };
        let (after, problems) = super::peers(&sources, &[gone], &before);
        assert_eq!((after, problems.len()), (before.clone(), 1));
        assert_eq!(super::peers(&sources, &[], &before).0, BTreeMap::new());
    }

    #[test]
    fn the_configuration_wins() {
        let (directory, _) = super::peers(&sources(Vec::new()), &[file("east", GOOD)], &BTreeMap::new());
        let mut own = directory["east"].clone();
        own.source = "/etc/meshd/meshd.yaml".into();
        let (peers, problems) = super::peers(&sources(vec![own.clone()]), &[file("east", GOOD)], &BTreeMap::new());
        assert_eq!(peers["east"], own);
        assert!(problems[0].message.contains("also in the configuration"));
    }
}
