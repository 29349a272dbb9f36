//! Rules for what people read: links lead somewhere, decisions have one number each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::tree::{SourceFile, assert_none, files, root};

/// Targets of the inline links of a text, with their line; code blocks and code spans are left out.
fn links(file: &SourceFile) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_block = false;
    for (number, line) in file.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        if in_block {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (_, after) in prose.match_indices("](").map(|(offset, _)| prose.split_at(offset + 2)) {
            if let Some((target, _)) = after.split_once(')') {
                let target = target.split_whitespace().next().unwrap_or_default();
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

/// The fragment that a heading gets: lower case, punctuation dropped, spaces as dashes.
fn fragment(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn fragments(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| line.starts_with('#')).map(fragment).collect()
}

/// The path a link leads to, from the root of the repository.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let joined: PathBuf = Path::new(from).parent()?.join(target);
    for component in joined.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

fn broken_links(files: &[SourceFile], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let documents: BTreeMap<&str, &SourceFile> =
        files.iter().filter(|file| file.path.ends_with(".md")).map(|file| (file.path.as_str(), file)).collect();
    let mut findings = Vec::new();
    for (path, document) in &documents {
        for (number, link) in links(document) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let resolved = if target.is_empty() { Some((*path).to_owned()) } else { resolve(path, target) };
            let Some(resolved) = resolved.filter(|resolved| exists(resolved)) else {
                findings.push(format!("{path}:{number}: {link} leads nowhere"));
                continue;
            };
            let has_anchor =
                documents.get(resolved.as_str()).is_none_or(|target| fragments(&target.text).contains(anchor));
            if !anchor.is_empty() && !has_anchor {
                findings.push(format!("{path}:{number}: {resolved} has no heading for #{anchor}"));
            }
        }
    }
    findings
}

/// Decisions that share a number, leave one out, or are not named `NNNN-title.md`.
fn misnumbered(names: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let expected = format!("{:04}-", index + 1);
        if !name.starts_with(&expected) {
            findings.push(format!("docs/decisions/{name}: expected to begin with {expected}"));
        }
    }
    findings
}

#[test]
fn links_lead_somewhere() {
    assert_none(&broken_links(files(), |path| root().join(path).exists()));
}

#[test]
fn decisions_are_numbered() {
    let names: Vec<&str> = files().iter().filter_map(|file| file.path.strip_prefix("docs/decisions/")).collect();
    assert!(names.len() >= 2, "no decisions were found");
    assert_none(&misnumbered(&names));
}

mod bad {
    use super::*;

    #[test]
    fn broken_links_are_found() {
        let files = [
            SourceFile::sample(
                "docs/a.md",
                "[up](../README.md#quick-start) [gone](gone.md) [no heading](../README.md#slow-start)\n\
                 [out](../../x) [web](https://example.org/x) `[code](nowhere)` [self](#a-b)\n\
                 ```\n[block](nowhere)\n```\n# A: b\n",
            ),
            SourceFile::sample("README.md", "## Quick start\n"),
        ];
        let findings = broken_links(&files, |path| files.iter().any(|file| file.path == path));
        assert_eq!(
            findings,
            [
                "docs/a.md:1: gone.md leads nowhere",
                "docs/a.md:1: README.md has no heading for #slow-start",
                "docs/a.md:2: ../../x leads nowhere",
            ]
        );
    }

    #[test]
    fn misnumbered_decisions_are_found() {
        assert_eq!(misnumbered(&["0001-a.md", "0003-b.md"]).len(), 1);
        assert_eq!(misnumbered(&["0001-a.md", "0001-b.md"]).len(), 1);
        assert_eq!(misnumbered(&["0001-a.md", "0002-b.md"]), Vec::<String>::new());
    }
}
