//! Reading the sources in their order and running the stages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::Source;

use super::check;
use super::error::{ConfigErrors, Finding, Origin};
use super::inherit;
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

/// The key that names the include folder.
const INCLUDE: &str = "include";
/// The variable that does.
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
    /// Whether the include folder may be missing, because who asks is about to make it.
    pub makes_include: bool,
}

impl ConfigSource {
    /// The file at `path` with the variables and flags over it.
    #[must_use]
    pub fn new(path: PathBuf, environment: Environment, flags: Overrides) -> Self {
        Self { path, environment, flags, extra: None, makes_include: false }
    }

    /// Reads and checks it, the first time and on every reload.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        load(self)
    }
}

impl Config {
    /// Reads and checks the configuration at `path` with the variables and flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with it, in one go.
    pub fn load(path: &Path, environment: &Environment, flags: &Overrides) -> Result<Self, ConfigErrors> {
        ConfigSource::new(path.to_owned(), environment.clone(), flags.clone()).load()
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

fn load(source: &ConfigSource) -> Result<Config, ConfigErrors> {
    let ConfigSource { path, environment, flags, extra: _, makes_include: _ } = source;
    let mut tree = read(path)?;
    let mut findings = include(&mut tree, source);
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
    let whole_tree = inherit::expand(&tree);
    let raw: RawConfig = whole_tree
        .clone()
        .into_value()
        .try_deserialize()
        .map_err(|error| Finding::new("", error.to_string()).at(whole(path)))?;
    let mut validator = Validator::new(path);
    let config = validator.config(raw);
    let locate = |mut finding: Finding| {
        finding.origin = finding.origin.or_else(|| whole_tree.origin_of(&finding.key)).or_else(|| Some(whole(path)));
        finding
    };
    let is_own = |finding: &Finding| !inherit::is_inherited(&tree, &whole_tree, &finding.key);
    let errors: Vec<Finding> = validator.errors.into_iter().filter(is_own).map(locate).collect();
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
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "give the file with --config FILE".to_owned(),
            _ => format!("it must be a text file this user can read (ls -l {})", path.display()),
        };
        Finding::new("", format!("failed to read the configuration: {error}")).hint(hint).at(whole(path))
    })?;
    Node::parse(path, &text)
}

/// Merges the files of the include folder over `tree`.
///
/// What cannot be read is an error and never no files: peers are written there, and a folder that is not mounted must
/// not remove them.
fn include(tree: &mut Node, source: &ConfigSource) -> Vec<Finding> {
    // Included files lie under the variables and flags, but those may say where they are.
    let flag = source.flags.iter().rev().find(|(key, ..)| key == INCLUDE);
    let place = if let Some((_, value, flag)) = flag {
        Some((value.clone(), Some(Origin::Flag(flag.clone()))))
    } else if let Some(value) = source.environment.get(INCLUDE_VARIABLE) {
        Some((value.clone(), Some(Origin::Environment(INCLUDE_VARIABLE.to_owned()))))
    } else {
        text_at(tree, INCLUDE).map(|value| (value, tree.origin_of(INCLUDE)))
    };
    let Some((folder, origin)) = place else { return Vec::new() };
    let folder = source.path.parent().unwrap_or_else(|| Path::new("")).join(folder);
    let of_folder = |message: String, hint: &str| {
        let finding = Finding::new(INCLUDE, message).hint(hint);
        Finding { origin: origin.clone(), ..finding }
    };
    let unreadable = |error: &io::Error| format!("failed to read the folder {}: {error}", folder.display());
    let entries: Vec<io::Result<fs::DirEntry>> = match fs::read_dir(&folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && source.makes_include => Vec::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let hint = "correct the path, mount the folder, or make an empty one (mkdir -p)";
            return vec![of_folder(format!("the folder {} does not exist", folder.display()), hint)];
        }
        Err(error) => return vec![of_folder(unreadable(&error), "it must be a folder this user can read")],
    };
    let extra = source.extra.as_ref();
    let mut findings = Vec::new();
    let mut files: Vec<PathBuf> = extra.iter().map(|(path, _)| path.clone()).collect();
    for entry in entries {
        match entry.map(|entry| entry.path()) {
            Ok(path) if Format::of(&path).is_some() && !is_hidden(&path) => files.push(path),
            Ok(_) => {}
            Err(error) => findings.push(of_folder(unreadable(&error), "check the file system it is on")),
        }
    }
    files.sort();
    files.dedup();
    for path in files {
        let node = match extra {
            Some((extra, text)) if *extra == path => Node::parse(&path, text),
            Some(_) | None => read_included(&path),
        };
        match node {
            Ok(node) => {
                if node.get(INCLUDE).is_some() {
                    let finding = Finding::new(INCLUDE, "an included file cannot include more");
                    findings.push(finding.hint("move this key to the main file").at(whole(&path)));
                }
                tree.merge("", node);
            }
            Err(finding) => findings.push(finding),
        }
    }
    findings
}

fn read_included(path: &Path) -> Result<Node, Finding> {
    // Follows links. Reading anything but a file may wait for ever.
    let message = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return read(path),
        Ok(_) => "failed to read the included file: it is not a file".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            "failed to read the included file: it is a link to nothing".to_owned()
        }
        Err(error) => format!("failed to read the included file: {error}"),
    };
    let hint = "correct it, remove it, or hide it from meshd with a leading dot in its name";
    Err(Finding::new("", message).hint(hint).at(whole(path)))
}

/// A file as the origin of a finding about no line of it.
fn whole(path: &Path) -> Origin {
    Origin::File { path: Arc::new(path.to_owned()), line: None }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
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
