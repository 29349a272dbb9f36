//! The files of the repository, read once for all rules.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// What is not ours or not text: build output, git's own (a file in a linked work tree), and what fuzzers found.
const SKIPPED: [&str; 5] = [".git", "target", "corpus", "artifacts", "vectors"];

/// A text file of the repository.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Path from the root of the repository, with `/`.
    pub(super) path: String,
    /// Its text.
    pub(super) text: String,
}

impl SourceFile {
    /// A file that a rule is tried on.
    pub(super) fn sample(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their numbers, from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// The root of the repository.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// All text files of the repository in the order of their paths.
pub(super) fn files() -> &'static [SourceFile] {
    static FILES: OnceLock<Vec<SourceFile>> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut paths = Vec::new();
        collect(root(), &mut paths);
        paths.sort();
        let files: Vec<SourceFile> = paths
            .into_iter()
            .filter_map(|path| {
                let text = String::from_utf8(fs::read(&path).expect("a readable file")).ok()?;
                let path = path.strip_prefix(root()).expect("below the root");
                Some(SourceFile { path: path.to_str().expect("a path in UTF-8").to_owned(), text })
            })
            .collect();
        for expected in ["Cargo.toml", "meshd/src/main.rs", "bgp/README.md", ".ci/run"] {
            assert!(files.iter().any(|file| file.path == expected), "{expected} was not found: the walk is broken");
        }
        files
    })
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a folder entry");
        let kind = entry.file_type().expect("a file type");
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| name == **skipped) {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), paths);
        } else if kind.is_file() {
            paths.push(entry.path());
        }
    }
}

/// Fails with one finding a line.
pub(super) fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
