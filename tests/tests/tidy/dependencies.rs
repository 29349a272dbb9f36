//! Dependencies are listed with their reason, licensed as `deny.toml` allows, and come from where it says.

use std::collections::BTreeSet;

use super::{
    metadata::{Metadata, Package, quoted_strings, read, section},
    tree::{SourceFile, assert_none, files},
};

/// Where the reasons are.
const REASONS: &str = "docs/decisions/0002-dependencies.md";
/// Manifests with a lock file of their own that ends up in the product.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "meshd-ebpf/Cargo.toml"];

/// Names in `[workspace.dependencies]` that are not our own crates.
fn declared(manifest: &str) -> BTreeSet<String> {
    section(manifest, "[workspace.dependencies]")
        .into_iter()
        .filter(|line| !line.starts_with('#') && !line.contains("path = "))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// First cells of the table in the decision.
fn explained(document: &str) -> BTreeSet<String> {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "))
        .filter(|(_, rest)| !rest.split(" | ").any(|cell| cell.trim_matches([' ', '|']).is_empty()))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "crate")
        .collect()
}

fn unexplained(manifest: &str, document: &str) -> Vec<String> {
    let (declared, explained) = (declared(manifest), explained(document));
    let missing = declared.difference(&explained).map(|name| format!("{name}: no complete row in {REASONS}"));
    let left_over = explained.difference(&declared).map(|name| format!("{name}: in {REASONS} but not in Cargo.toml"));
    missing.chain(left_over).collect()
}

/// Declared dependencies that no member names.
fn unused(manifest: &str, members: &[&SourceFile]) -> Vec<String> {
    declared(manifest)
        .into_iter()
        .filter(|name| {
            let names_it = |member: &&&SourceFile| {
                let (plain, table) = (format!("{name}.workspace = true"), format!("{name} = {{ workspace = true"));
                member.text.lines().any(|line| line.starts_with(&plain) || line.starts_with(&table))
            };
            !members.iter().any(|member| names_it(&member))
        })
        .map(|name| format!("{name}: declared in Cargo.toml and used by no member"))
        .collect()
}

/// Whether a licence expression can be satisfied with the allowed ones: `OR` and the old `/` give a choice, `AND` does not,
/// and `AND` binds tighter.
fn satisfiable(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut position = 0;
    let outcome = any_of(&tokens, &mut position, allowed);
    outcome && position == tokens.len()
}

fn any_of(tokens: &[&str], position: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut outcome = all_of(tokens, position, allowed);
    while tokens.get(*position) == Some(&"OR") {
        *position += 1;
        outcome |= all_of(tokens, position, allowed);
    }
    outcome
}

fn all_of(tokens: &[&str], position: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut outcome = licence(tokens, position, allowed);
    while tokens.get(*position) == Some(&"AND") {
        *position += 1;
        outcome &= licence(tokens, position, allowed);
    }
    outcome
}

fn licence(tokens: &[&str], position: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(token) = tokens.get(*position) else { return false };
    *position += 1;
    if *token == "(" {
        let outcome = any_of(tokens, position, allowed);
        *position += 1;
        return outcome;
    }
    // "or any later version" is satisfied by this version.
    let mut name = token.trim_end_matches('+').to_owned();
    if tokens.get(*position) == Some(&"WITH")
        && let Some(exception) = tokens.get(*position + 1)
    {
        *position += 2;
        name = format!("{name} WITH {exception}");
    }
    allowed.contains(&name)
}

fn refused_licences(packages: &[Package], allowed: &BTreeSet<String>) -> Vec<String> {
    packages
        .iter()
        .filter(|package| package.source.is_some())
        .filter(|package| !package.license.as_deref().is_some_and(|license| satisfiable(license, allowed)))
        .map(|package| {
            let license = package.license.as_deref().or(package.license_file.as_deref()).unwrap_or("no licence");
            format!("{} {}: {license} is not allowed by deny.toml", package.name, package.version)
        })
        .collect()
}

fn refused_sources(packages: &[Package], registries: &BTreeSet<String>) -> Vec<String> {
    packages
        .iter()
        .filter_map(|package| Some((package, package.source.as_deref()?)))
        .filter(|(_, source)| !registries.iter().any(|registry| *source == format!("registry+{registry}")))
        .map(|(package, source)| format!("{} {}: comes from {source}", package.name, package.version))
        .collect()
}

fn banned(packages: &[Package], bans: &BTreeSet<String>) -> Vec<String> {
    packages
        .iter()
        .filter(|package| bans.contains(&package.name))
        .map(|package| format!("{} {}: banned by deny.toml", package.name, package.version))
        .collect()
}

fn patched(files: &[SourceFile]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.path.ends_with("Cargo.toml"))
        .filter(|file| file.text.lines().any(|line| line.starts_with("[patch") || line.starts_with("[replace")))
        .map(|file| format!("{}: patches a dependency; send the change upstream instead", file.path))
        .collect()
}

#[test]
fn every_dependency_has_a_reason() {
    assert_none(&unexplained(&read("Cargo.toml"), &read(REASONS)));
}

#[test]
fn every_dependency_is_used() {
    let members: Vec<&SourceFile> =
        files().iter().filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.contains("fuzz/")).collect();
    assert_none(&unused(&read("Cargo.toml"), &members));
}

#[test]
fn licences_sources_and_bans_are_respected() {
    let rules = read("deny.toml");
    let allowed = quoted_strings(&section(&rules, "[licenses]"), "allow");
    let bans = quoted_strings(&section(&rules, "[bans]"), "deny");
    let registries: BTreeSet<String> = section(&rules, "[sources]")
        .into_iter()
        .filter(|line| line.starts_with("allow-registry"))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    assert!(allowed.contains("MIT") && bans.contains("openssl-sys") && registries.len() == 1, "deny.toml is misread");
    for manifest in MANIFESTS {
        let packages = Metadata::read(manifest).packages;
        assert_none(&refused_licences(&packages, &allowed));
        assert_none(&refused_sources(&packages, &registries));
        assert_none(&banned(&packages, &bans));
    }
}

#[test]
fn no_dependency_is_patched() {
    assert_none(&patched(files()));
}

mod bad {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn package(license: Option<&str>, source: &str) -> [Package; 1] {
        [Package {
            id: "x".into(),
            name: "x".into(),
            version: "1.0.0".into(),
            license: license.map(Into::into),
            license_file: None,
            source: Some(source.into()),
        }]
    }

    #[test]
    fn missing_and_left_over_reasons_are_found() {
        let manifest = "[workspace.dependencies]\nours = { path = \"ours\" }\nbytes = \"1\"\nhttp = \"1\"\n\n[profile.dev]\nx = 1\n";
        let document = "| crate | used for | why |\n|---|---|---|\n| bytes | buffers | ordinary |\n| gone | x | y |\n| http |  | |\n";
        assert_eq!(
            unexplained(manifest, document),
            [format!("http: no complete row in {REASONS}"), format!("gone: in {REASONS} but not in Cargo.toml")]
        );
    }

    #[test]
    fn unused_dependencies_are_found() {
        let manifest = "[workspace.dependencies]\nbytes = \"1\"\nhttp = \"1\"\n";
        let member =
            SourceFile::sample("a/Cargo.toml", "[dependencies]\nbytes.workspace = true\nhttp-body.workspace = true\n");
        assert_eq!(unused(manifest, &[&member]), ["http: declared in Cargo.toml and used by no member"]);
    }

    #[test]
    fn licence_expressions_are_understood() {
        let allowed = set(&["MIT", "Apache-2.0", "MPL-2.0", "Apache-2.0 WITH LLVM-exception"]);
        for expression in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / GPL-2.0",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
            "MPL-2.0+",
            "GPL-3.0 AND GPL-2.0 OR MIT",
        ] {
            assert!(satisfiable(expression, &allowed), "{expression}");
        }
        for expression in
            ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "MIT WITH LLVM-exception", "", "MIT MIT"]
        {
            assert!(!satisfiable(expression, &allowed), "{expression}");
        }
    }

    #[test]
    fn refused_packages_are_found() {
        let registry = "https://github.com/rust-lang/crates.io-index";
        let known = format!("registry+{registry}");
        assert_eq!(refused_licences(&package(Some("GPL-3.0"), &known), &set(&["MIT"])).len(), 1);
        assert_eq!(refused_licences(&package(None, &known), &set(&["MIT"])).len(), 1);
        assert_eq!(refused_licences(&package(Some("MIT"), &known), &set(&["MIT"])), Vec::<String>::new());
        assert_eq!(refused_sources(&package(None, "git+https://example.org/x"), &set(&[registry])).len(), 1);
        assert_eq!(refused_sources(&package(None, &known), &set(&[registry])), Vec::<String>::new());
        assert_eq!(banned(&package(None, &known), &set(&["x"])).len(), 1);
    }

    #[test]
    fn patches_are_found() {
        assert_eq!(patched(&[SourceFile::sample("Cargo.toml", "[patch.crates-io]\n")]).len(), 1);
    }
}
