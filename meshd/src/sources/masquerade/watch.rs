//! Reading the file, and knowing when to read it again.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use meshd_core::observed::Change;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tracing::info;

use super::{
    COMPONENT, MasqueradeSources,
    convert::{self, AgentFile},
};
use crate::{lifecycle::Problems, sources::folders::Folders};

/// How long changes may follow each other before the file is read.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is read without any event.
const RESCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Tells the pipeline what `sources` and the file want, until either side is gone.
pub async fn run(mut sources: watch::Receiver<MasqueradeSources>, changes: mpsc::Sender<Change>, problems: Problems) {
    let mut folders = Folders::new();
    let mut last_good: Option<(PathBuf, AgentFile)> = None;
    let mut told = None;
    loop {
        let now = sources.borrow_and_update().clone();
        let file = now.config.as_ref().and_then(|config| config.agent_file.clone());
        // Watched first, read after: what changes in between wakes us again.
        folders.set(file.as_deref().map(folders_of).unwrap_or_default());
        let agent = match file {
            Some(file) => Some(read_agent(file, &mut last_good, &problems).await),
            None => {
                problems.clear(COMPONENT);
                None
            }
        };
        let setting = convert::setting(&now, agent.as_ref());
        if told.as_ref() != Some(&setting) {
            info!("what is wanted of masquerade changed");
            if changes.send(Change::Masquerade(setting.clone())).await.is_err() {
                return;
            }
            told = Some(setting);
        }
        tokio::select! {
            changed = sources.changed() => if changed.is_err() { return },
            () = folders.event() => sleep(SETTLE).await,
            () = sleep(RESCAN_INTERVAL), if agent.is_some() => {}
        }
        folders.drain();
    }
}

/// What the file says, or said when it was good last.
async fn read_agent(file: PathBuf, last_good: &mut Option<(PathBuf, AgentFile)>, problems: &Problems) -> AgentFile {
    let path = file.clone();
    let text = match spawn_blocking(move || read_text(&path)).await {
        Ok(read) => read,
        Err(error) => Err(io::Error::other(error)),
    };
    let parsed = match text {
        Ok(text) => convert::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(AgentFile::default()),
        Err(error) => Err(error.to_string()),
    };
    match parsed {
        Ok(agent) => {
            problems.clear(COMPONENT);
            *last_good = Some((file, agent.clone()));
            agent
        }
        Err(error) => {
            let known = last_good.as_ref().filter(|(of, _)| *of == file).map(|(_, agent)| agent.clone());
            let meanwhile =
                if known.is_some() { "the last good version stays" } else { "the agent's defaults are used" };
            problems.set(COMPONENT, format!("{} is wrong: {error}; {meanwhile}", file.display()));
            known.unwrap_or_default()
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// The folder of the file, the one a link leads to, and the parent, in which the folder may be made.
fn folders_of(file: &Path) -> BTreeSet<PathBuf> {
    let folder = file.parent().map(Path::to_owned);
    let parent = folder.as_deref().and_then(Path::parent).map(Path::to_owned);
    let target = file.canonicalize().ok().and_then(|target| target.parent().map(Path::to_owned));
    folder.into_iter().chain(parent).chain(target).filter(|path| !path.as_os_str().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use meshd_core::observed::{KeptBy, MasqueradeSetting};
    use tokio::time::timeout;

    use super::*;
    use crate::config::model::MasqueradeConfig;

    const DEADLINE: Duration = Duration::from_secs(15);

    /// The prefixes of the file in the next message.
    async fn next(changes: &mut mpsc::Receiver<Change>) -> Option<Vec<String>> {
        match timeout(DEADLINE, changes.recv()).await.expect("a change in time").expect("a source") {
            Change::Masquerade(MasqueradeSetting::Off) => None,
            Change::Masquerade(MasqueradeSetting::On(row)) => {
                let of_file = row.kept.iter().filter(|(_, by)| **by == KeptBy::AgentFile);
                Some(of_file.map(|(prefix, _)| prefix.to_string()).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_file_is_followed_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent/config");
        let problems = Problems::default();
        let (sources, sources_rx) = watch::channel(MasqueradeSources::default());
        let (tx, mut changes) = mpsc::channel(4);
        tokio::spawn(run(sources_rx, tx, problems.clone()));
        assert_eq!(next(&mut changes).await, None);
        let config = MasqueradeConfig { agent_file: Some(file.clone()), ..MasqueradeConfig::default() };
        sources.send_modify(|sources| sources.config = Some(config));
        assert_eq!(next(&mut changes).await.unwrap().len(), convert::DEFAULTS.len(), "there is no file yet");

        fs::create_dir(folder.path().join("agent")).unwrap();
        let write = |text: &str| crate::config::file::replace(&file, text, 0o600).unwrap();
        write("nonMasqueradeCIDRs: [10.0.0.0/8]\n");
        assert_eq!(next(&mut changes).await.unwrap(), ["10.0.0.0/8"]);
        write("nonMasqueradeCIDRs: [\n");
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while problems.list().is_empty() {
            assert!(tokio::time::Instant::now() < deadline);
            sleep(Duration::from_millis(5)).await;
        }
        assert!(problems.list()[0].message.ends_with("the last good version stays"), "{:?}", problems.list());
        assert!(changes.try_recv().is_err(), "nothing changed");
        write("nonMasqueradeCIDRs: [10.0.0.0/8, 192.0.2.0/24]\n");
        assert_eq!(next(&mut changes).await.unwrap(), ["10.0.0.0/8", "192.0.2.0/24"]);
        assert!(problems.list().is_empty());
        sources.send_modify(|sources| sources.config = None);
        assert_eq!(next(&mut changes).await, None);
    }
}
