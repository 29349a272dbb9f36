//! What cargo says about the crates, and the two files it is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde::Deserialize;

use super::tree::root;

/// The part of `cargo metadata` that the rules look at.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) resolve: Resolve,
}

#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    pub(super) license_file: Option<String>,
    /// None for our own crates.
    pub(super) source: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Resolve {
    pub(super) nodes: Vec<Node>,
}

#[derive(Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) deps: Vec<Dependency>,
}

#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) pkg: String,
    pub(super) dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
pub(super) struct DependencyKind {
    /// None is an ordinary dependency; others are "dev" and "build".
    pub(super) kind: Option<String>,
}

impl Metadata {
    /// Asks cargo about the workspace or crate of a manifest, given from the root of the repository.
    pub(super) fn read(manifest: &str) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
            .arg(root().join(manifest))
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("cargo's metadata")
    }

    /// Names of everything that a crate of ours is compiled with, itself included; what only its tests or build scripts
    /// use does not count.
    pub(super) fn compiled_with(&self, name: &str) -> BTreeSet<&str> {
        let names: BTreeMap<&str, &str> =
            self.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
        let nodes: BTreeMap<&str, &Node> = self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let start = self
            .packages
            .iter()
            .find(|package| package.name == name && package.source.is_none())
            .unwrap_or_else(|| panic!("no crate of ours is called {name}"));
        let mut seen = BTreeSet::new();
        let mut next = vec![start.id.as_str()];
        while let Some(id) = next.pop() {
            if seen.insert(id) {
                next.extend(
                    nodes[id]
                        .deps
                        .iter()
                        .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()))
                        .map(|dependency| dependency.pkg.as_str()),
                );
            }
        }
        seen.into_iter().map(|id| names[id]).collect()
    }
}

/// The lines of a section of a TOML file, up to the next header.
pub(super) fn section<'a>(text: &'a str, header: &str) -> Vec<&'a str> {
    text.lines().skip_while(|line| line.trim() != header).skip(1).take_while(|line| !line.starts_with('[')).collect()
}

/// The quoted strings of an array in a section of `deny.toml`, comments left out.
pub(super) fn quoted_strings(lines: &[&str], key: &str) -> BTreeSet<String> {
    lines
        .iter()
        .skip_while(|line| !line.starts_with(&format!("{key} = [")))
        .take_while(|line| **line != "]")
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// A file of the repository.
pub(super) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
