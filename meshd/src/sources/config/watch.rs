//! Reading the directory, and knowing when to read it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use meshd_core::id::ClusterName;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::convert::{self, Before, Described, DirectoryFile};
use super::{PeerEntry, PeerProblem, PeerSet, PeerSources};
use crate::config::model::Peer;
use crate::config::tls;
use crate::sources::folders::Folders;

/// How long changes may follow each other before the directory is read.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is read without any event: a file system without notifications, an exhausted watch limit.
const RESCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Longest file that is looked at.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most files that are looked at.
const FILES_MAX: usize = 4096;

/// Keeps `out` at the peers that `sources` and the directory describe; ends when either channel is closed.
///
/// The first set is sent after the first reading, also when it is empty. `remembered` are the clusters of which rows are
/// left from before the restart.
pub async fn run(
    mut sources: watch::Receiver<PeerSources>,
    remembered: BTreeSet<ClusterName>,
    out: watch::Sender<PeerSet>,
) {
    let mut watches = Folders::new();
    let mut known = Before { remembered, ..Before::default() };
    loop {
        let now = sources.borrow_and_update().clone();
        // Watched first, read after: what changes in between wakes us again.
        watches.set(folders(&now, &known.peers));
        let Ok((set, read)) = tokio::task::spawn_blocking({
            let known = known.clone();
            move || (read(&now, &known), now)
        })
        .await
        else {
            warn!("reading the peers directory was cancelled");
            return;
        };
        // What was not kept is configured, and known from now on, or it is gone, and its rows with it.
        known.remembered.retain(|name| set.kept.contains_key(name));
        known.peers = set.peers.iter().map(|(name, entry)| (name.clone(), entry.peer.clone())).collect();
        let configured: BTreeSet<&ClusterName> = read.peers.iter().map(|peer| &peer.cluster).collect();
        known.in_directory = set.peers.keys().filter(|name| !configured.contains(name)).cloned().collect();
        watches.set(folders(&read, &known.peers));
        publish(&out, set);
        tokio::select! {
            changed = sources.changed() => if changed.is_err() { return },
            () = out.closed() => return,
            () = watches.event() => sleep(SETTLE).await,
            () = sleep(RESCAN_INTERVAL) => {}
        }
        watches.drain();
    }
}

/// Reads everything once, as [`run`] does.
#[must_use]
pub fn read(sources: &PeerSources, before: &Before) -> PeerSet {
    let mut unread = None;
    let files = match &sources.peers_dir {
        Some(folder) => read_folder(folder).unwrap_or_else(|error| {
            unread = Some((folder, error));
            // Not knowing the files is not knowing that they are gone.
            unreadable(&before.in_directory, folder)
        }),
        None => Vec::new(),
    };
    let Described { peers, mut kept, mut problems } = convert::peers(sources, &files, before);
    if let Some((folder, error)) = unread {
        let remembered = before.remembered.iter().filter(|name| **name != sources.own && !peers.contains_key(*name));
        kept.extend(remembered.map(|name| (name.clone(), folder.clone())));
        let and = if kept.is_empty() { "" } else { "; what is remembered of its clusters stays" };
        let message = format!("failed to read the peers directory: {error}{and}");
        problems.push(PeerProblem { file: folder.clone(), cluster: None, message });
    }
    let entry = |(name, peer): (ClusterName, Peer)| {
        let certificates = peer.tls.as_ref().map(tls::digest);
        (name, PeerEntry { peer, certificates })
    };
    PeerSet { peers: peers.into_iter().map(entry).collect(), kept, problems }
}

fn publish(out: &watch::Sender<PeerSet>, set: PeerSet) {
    for problem in &set.problems {
        debug!(file = %problem.file.display(), problem = problem.message, "peers directory");
    }
    let peers = set.peers.len();
    let problems = set.problems.len();
    let changed = out.send_if_modified(|current| {
        let changed = *current != set;
        *current = set;
        changed
    });
    if changed {
        info!(peers, problems, "peers changed");
    }
}

/// The files that the peers we know from a directory should have in `folder`, as unreadable ones, which keeps them.
///
/// They may come from another directory: `peers_dir` can be changed to one that cannot be read.
fn unreadable(peers: &BTreeSet<ClusterName>, folder: &Path) -> Vec<DirectoryFile> {
    let file = |name: &ClusterName| DirectoryFile {
        path: folder.join(name.as_str()),
        content: Err("the directory cannot be read".to_owned()),
    };
    peers.iter().map(file).collect()
}

fn read_folder(folder: &Path) -> io::Result<Vec<DirectoryFile>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Hidden files are the machinery of Secret volumes and of our own atomic replacement.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.truncate(FILES_MAX);
    let mut files = Vec::new();
    for path in paths {
        // Follows links: a Secret volume consists of them.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let content = read_text(&path);
                files.push(DirectoryFile { path, content });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => files.push(DirectoryFile { path, content: Err(error.to_string()) }),
        }
    }
    Ok(files)
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a change may happen: the directory and every folder of certificates, also the one a link leads to.
fn folders(sources: &PeerSources, peers: &BTreeMap<ClusterName, Peer>) -> BTreeSet<PathBuf> {
    let mut folders: BTreeSet<PathBuf> = sources.peers_dir.iter().cloned().collect();
    // Until the directory exists, its creation is what we wait for.
    folders.extend(sources.peers_dir.iter().filter_map(|folder| folder.parent().map(Path::to_owned)));
    for peer in peers.values().chain(&sources.peers) {
        let Some(tls) = &peer.tls else { continue };
        for file in [&tls.ca, &tls.cert, &tls.key] {
            folders.extend(file.parent().map(Path::to_owned));
            if let Ok(target) = file.canonicalize() {
                folders.extend(target.parent().map(Path::to_owned));
            }
        }
    }
    folders.remove(Path::new(""));
    folders
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;
    use crate::config::model::Accept;

    const DEADLINE: Duration = Duration::from_secs(5);
    const EAST: &str = "endpoints: [\"http://localhost:1\"]\n";

    struct Case {
        folder: tempfile::TempDir,
        sources: watch::Sender<PeerSources>,
        peers: watch::Receiver<PeerSet>,
    }

    impl Case {
        fn start(peers_dir: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let sources = PeerSources {
                peers: Vec::new(),
                peers_dir: Some(folder.path().join(peers_dir)),
                accept: Accept::default(),
                own: "west".parse().unwrap(),
            };
            let (sources, sources_rx) = watch::channel(sources);
            let (out, peers) = watch::channel(PeerSet::default());
            tokio::spawn(run(sources_rx, remembered(), out));
            Self { folder, sources, peers }
        }

        fn write(&self, name: &str, content: &str) {
            crate::config::file::replace(&self.folder.path().join(name), content, 0o600).unwrap();
        }

        async fn until(&mut self, what: &str, condition: impl FnMut(&PeerSet) -> bool) -> PeerSet {
            let set = timeout(DEADLINE, self.peers.wait_for(condition)).await;
            set.unwrap_or_else(|_| panic!("not within the deadline: {what}")).unwrap().clone()
        }
    }

    /// One cluster that no test configures.
    fn remembered() -> BTreeSet<ClusterName> {
        ["old".parse().unwrap()].into()
    }

    fn names(set: &PeerSet) -> Vec<&str> {
        set.peers.keys().map(ClusterName::as_str).collect()
    }

    #[tokio::test]
    async fn files_come_change_break_and_go() {
        let mut case = Case::start("");
        case.write("east", EAST);
        case.until("added", |set| names(set) == ["east"]).await;
        case.write("north", EAST);
        case.until("second", |set| names(set) == ["east", "north"]).await;
        case.write("east", "endpoints: [\"http://localhost:2\"]\n");
        case.until("changed", |set| set.peers["east"].peer.endpoints[0].port() == 2).await;
        case.write("east", "endpoints: [");
        let set = case.until("broken", |set| !set.problems.is_empty()).await;
        assert_eq!(set.peers["east"].peer.endpoints[0].port(), 2);
        fs::remove_file(case.folder.path().join("east")).unwrap();
        case.until("removed", |set| names(set) == ["north"] && set.problems.is_empty()).await;
    }

    #[tokio::test]
    async fn a_secret_volume_is_swapped_by_one_link() {
        let mut case = Case::start("");
        let root = case.folder.path().to_owned();
        for (version, name) in [("..1", "east"), ("..2", "north")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join(name), EAST).unwrap();
            symlink(format!("..data/{name}"), root.join(name)).unwrap();
        }
        symlink("..1", root.join("..data")).unwrap();
        case.until("first version", |set| names(set) == ["east"]).await;
        symlink("..2", root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        case.until("second version", |set| names(set) == ["north"]).await;
    }

    #[tokio::test]
    async fn a_renewed_certificate_makes_another_set() {
        let mut case = Case::start("");
        fs::create_dir(case.folder.path().join("pki")).unwrap();
        for name in ["pki/ca", "pki/crt", "pki/key"] {
            case.write(name, "one");
        }
        case.write(
            "east",
            "endpoints: [\"https://localhost:1\"]\ntrusted-ca-file: pki/ca\ncert-file: pki/crt\nkey-file: pki/key\n",
        );
        let set = case.until("added", |set| names(set) == ["east"]).await;
        let before = set.peers["east"].certificates;
        case.write("pki/crt", "two");
        case.until("renewed", |set| set.peers["east"].certificates != before).await;
    }

    #[tokio::test]
    async fn the_directory_may_come_later_and_the_configuration_may_change() {
        let mut case = Case::start("peers");
        let set = case.until("missing", |set| !set.problems.is_empty()).await;
        assert!(set.problems[0].message.contains("failed to read the peers directory"));
        assert_eq!(set.kept.keys().collect::<Vec<_>>(), remembered().iter().collect::<Vec<_>>());
        fs::create_dir(case.folder.path().join("peers")).unwrap();
        let set = case.until("there", |set| set.problems.is_empty()).await;
        assert!(set.kept.is_empty(), "an empty directory says that the cluster is gone");
        case.write("peers/east", EAST);
        case.until("added", |set| names(set) == ["east"]).await;
        case.sources.send_modify(|sources| sources.peers_dir = None);
        case.until("not configured any more", |set| set.peers.is_empty()).await;
    }

    #[tokio::test]
    async fn an_emptied_file_keeps_its_peer_and_so_does_another_directory_that_cannot_be_read() {
        let mut case = Case::start("peers");
        let configured = Peer {
            cluster: "south".parse().unwrap(),
            over_bgp: None,
            endpoints: vec!["http://localhost:3".parse().unwrap()],
            tls: None,
            accept: Accept::default(),
            mode: None,
            host_aliases: BTreeMap::new(),
            source: case.folder.path().join("south"),
        };
        case.sources.send_modify(|sources| sources.peers = vec![configured]);
        fs::create_dir(case.folder.path().join("peers")).unwrap();
        case.write("peers/east", EAST);
        case.until("added", |set| names(set) == ["east", "south"] && set.problems.is_empty()).await;
        fs::write(case.folder.path().join("peers/east"), "").unwrap();
        let set = case.until("emptied", |set| !set.problems.is_empty()).await;
        assert_eq!(names(&set), ["east", "south"]);

        // The same reload removes a peer of the configuration: that one the directory has nothing to say about.
        let elsewhere = case.folder.path().join("elsewhere");
        case.sources.send_modify(|sources| {
            sources.peers_dir = Some(elsewhere.clone());
            sources.peers.clear();
        });
        let set = case.until("moved", |set| names(set) == ["east"]).await;
        let files: Vec<&PathBuf> = set.problems.iter().map(|problem| &problem.file).collect();
        assert_eq!(files, [&elsewhere.join("east"), &elsewhere]);
        // It is kept by every reading, also when what is there at last is wrong.
        let made = case.folder.path().join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join("east"), "endpoint: [\"http://localhost:2\"]\n").unwrap();
        fs::rename(&made, &elsewhere).unwrap();
        let is_wrong = |set: &PeerSet| set.problems.iter().any(|problem| problem.message.contains("lacks"));
        let set = case.until("there and wrong", is_wrong).await;
        assert_eq!(names(&set), ["east"]);
        fs::remove_file(elsewhere.join("east")).unwrap();
        case.until("gone", |set| set.peers.is_empty() && set.problems.is_empty()).await;
    }

    #[tokio::test]
    async fn a_remembered_cluster_is_kept_until_its_file_is_good_or_gone() {
        let mut case = Case::start("");
        case.write("north", EAST);
        // The first reading found nothing, so the cluster is gone for good.
        case.until("read", |set| names(set) == ["north"] && set.kept.is_empty()).await;
        case.write("old", "endpoints: [");
        case.until("broken and unknown", |set| !set.problems.is_empty() && set.kept.is_empty()).await;

        let folder = tempfile::tempdir().unwrap();
        let sources = PeerSources { peers_dir: Some(folder.path().into()), ..case.sources.borrow().clone() };
        let before = Before { remembered: remembered(), ..Before::default() };
        // A link to itself: root may read everything else.
        symlink("old", folder.path().join("old")).unwrap();
        let set = read(&sources, &before);
        assert!(set.kept.contains_key("old") && set.problems.len() == 1, "{set:?}");
        fs::remove_file(folder.path().join("old")).unwrap();
        assert_eq!(read(&sources, &before), PeerSet::default());
    }
}
