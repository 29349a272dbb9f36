//! Reading the sources in their order and running the stages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Source;

use super::check;
use super::error::{ConfigErrors, Finding, Origin};
use super::model::Config;
use super::raw::RawConfig;
use super::tree::{Format, Node, Tree};
use super::validate::Validator;

/// Where the configuration is unless `--config` says otherwise.
pub const CONFIG_FILE: &str = "/etc/meshd/meshd.yaml";

/// What every variable of the configuration starts with.
const PREFIX: &str = "MESHD_";
/// What separates sections in the name of a variable.
const SEPARATOR: &str = "__";

/// The variable that names the include folder.
const INCLUDE_VARIABLE: &str = "MESHD_INCLUDE";

/// Environment variables, by name.
pub type Environment = BTreeMap<String, String>;

/// Values given as command-line flags, in order: key, value, and the flag as typed.
pub type Overrides = Vec<(String, String, String)>;

/// Where a configuration is read from, kept so that it can be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSource {
    /// The main file.
    pub path: PathBuf,
    /// The variables.
    pub environment: Environment,
    /// The flags.
    pub flags: Overrides,
    /// A file of the include folder that is not written yet, and its text: what would hold if it were.
    pub extra: Option<(PathBuf, String)>,
}

impl ConfigSource {
    /// Reads and checks it, the first time and on every reload.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        load(&self.path, &self.environment, &self.flags, self.extra.as_ref())
    }
}

impl Config {
    /// Reads and checks the configuration at `path` with the variables and flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with it, in one go.
    pub fn load(path: &Path, environment: &Environment, flags: &Overrides) -> Result<Self, ConfigErrors> {
        load(path, environment, flags, None)
    }

    /// The variables of this process that belong to the configuration.
    #[must_use]
    pub fn process_environment() -> Environment {
        let text = |text: &OsStr| text.to_str().map(str::to_owned);
        std::env::vars_os()
            .filter_map(|(name, value)| Some((text(&name)?, text(&value)?)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect()
    }
}

fn load(
    path: &Path,
    environment: &Environment,
    flags: &Overrides,
    extra: Option<&(PathBuf, String)>,
) -> Result<Config, ConfigErrors> {
    let mut findings = Vec::new();
    let mut tree = read(path)?;
    // Included files lie under the variables, but a variable may say where they are.
    let folder = environment.get(INCLUDE_VARIABLE).cloned().or_else(|| text_at(&tree, "include"));
    if let Some(folder) = folder {
        let folder = path.parent().unwrap_or_else(|| Path::new("")).join(folder);
        findings.extend(include(&mut tree, &folder, extra));
    }
    findings.extend(apply_environment(&mut tree, environment));
    for (key, value, flag) in flags {
        let parts: Vec<&str> = key.split('.').collect();
        if let Err(finding) = tree.put(&RawConfig::SECTION, &parts, value, &Origin::Flag(flag.clone())) {
            findings.push(finding);
        }
    }
    findings.extend(check::check(&RawConfig::SECTION, &tree));
    if let Some(errors) = ConfigErrors::collect(findings) {
        return Err(errors);
    }
    let raw: RawConfig = tree.clone().into_value().try_deserialize().map_err(|error| {
        Finding::new("", error.to_string()).at(Origin::File { path: Arc::new(path.to_owned()), line: None })
    })?;
    let mut validator = Validator::new(path);
    let config = validator.config(raw);
    let locate = |mut finding: Finding| {
        let file = || Origin::File { path: Arc::new(path.to_owned()), line: None };
        finding.origin = finding.origin.or_else(|| tree.origin_of(&finding.key)).or_else(|| Some(file()));
        finding
    };
    let errors: Vec<Finding> = validator.errors.into_iter().map(locate).collect();
    match (config, ConfigErrors::collect(errors)) {
        (_, Some(errors)) => Err(errors),
        (Some(mut config), None) => {
            config.warnings = validator.warnings.into_iter().map(locate).collect();
            for peer in &mut config.peers {
                if let Some(file) = peer_file(&tree, peer.cluster.as_str()) {
                    peer.source = file;
                }
            }
            Ok(config)
        }
        (None, None) => Err(Finding::new("", "the configuration is incomplete").into()),
    }
}

fn read(path: &Path) -> Result<Node, Finding> {
    let text = fs::read_to_string(path).map_err(|error| {
        let at = Origin::File { path: Arc::new(path.to_owned()), line: None };
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "give the file with --config FILE".to_owned(),
            _ => format!("it must be a text file this user can read (ls -l {})", path.display()),
        };
        Finding::new("", format!("failed to read the configuration: {error}")).hint(hint).at(at)
    })?;
    Node::parse(path, &text)
}

/// Merges the files of `folder` over `tree`; a folder that does not exist has no files.
fn include(tree: &mut Node, folder: &Path, extra: Option<&(PathBuf, String)>) -> Vec<Finding> {
    let at = |path: &Path| Origin::File { path: Arc::new(path.to_owned()), line: None };
    let mut findings = Vec::new();
    let mut files: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let finding = Finding::new("include", format!("failed to read the folder: {error}"));
            findings.push(finding.hint("it must be a folder this user can read").at(at(folder)));
            return findings;
        }
    };
    files.retain(|path| Format::of(path).is_some() && !is_hidden(path) && path.is_file());
    files.extend(extra.iter().map(|(path, _)| path.clone()));
    files.sort();
    files.dedup();
    for path in files {
        let node = match extra {
            Some((extra, text)) if *extra == path => Node::parse(&path, text),
            Some(_) | None => read(&path),
        };
        match node {
            Ok(node) => {
                if node.get("include").is_some() {
                    let finding = Finding::new("include", "an included file cannot include more");
                    findings.push(finding.hint("move this key to the main file").at(at(&path)));
                }
                tree.merge("", node);
            }
            Err(finding) => findings.push(finding),
        }
    }
    findings
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'))
}

/// Puts the variables over the tree.
///
/// A name with `__` is a key of a section and must exist. A name without is one of the keys at the top, or not ours:
/// `MESHD_SOCKET` is the command line's, and Kubernetes sets `MESHD_PORT` for a Service called `meshd`.
fn apply_environment(tree: &mut Node, environment: &Environment) -> Vec<Finding> {
    let mut findings = Vec::new();
    let variables: config::Map<String, String> = environment.clone().into_iter().collect();
    let source = config::Environment::with_prefix(PREFIX.trim_end_matches('_'))
        .prefix_separator("_")
        .separator(SEPARATOR)
        .source(Some(variables));
    let flat = match source.collect() {
        Ok(flat) => flat,
        Err(error) => return vec![Finding::new("", format!("failed to read the environment: {error}"))],
    };
    let sorted: BTreeMap<String, config::Value> = flat.into_iter().collect();
    for (key, value) in sorted {
        let parts: Vec<&str> = key.split('.').collect();
        let at_top = parts.len() == 1;
        if at_top && !RawConfig::SECTION.fields.iter().any(|field| field.name == key) {
            continue;
        }
        let origin = Origin::Environment(format!("{PREFIX}{}", key.to_uppercase().replace('.', SEPARATOR)));
        let text = value.into_string().unwrap_or_default();
        if let Err(finding) = tree.put(&RawConfig::SECTION, &parts, &text, &origin) {
            findings.push(finding);
        }
    }
    findings
}

fn text_at(tree: &Node, key: &str) -> Option<String> {
    match &tree.get(key)?.value {
        Tree::Leaf(value) => Some(value.to_string()),
        Tree::Table(_) | Tree::List(_) => None,
    }
}

/// The file that names a peer.
fn peer_file(tree: &Node, cluster: &str) -> Option<PathBuf> {
    let Tree::List(peers) = &tree.get("peers")?.value else { return None };
    let peer = peers.iter().find(|peer| text_at(peer, "cluster").as_deref() == Some(cluster))?;
    match peer.origin.as_ref()? {
        Origin::File { path, .. } => Some(path.as_ref().clone()),
        Origin::Environment(_) | Origin::Flag(_) => None,
    }
}
