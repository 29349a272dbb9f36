use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{CARGO_VARIABLE, Machine, RUSTC_VARIABLE, ToolchainError, choose, leaks};

/// A machine described by what is on it.
#[derive(Clone, Default)]
struct Described {
    variables: BTreeMap<&'static str, PathBuf>,
    files: BTreeSet<PathBuf>,
    with_sources: BTreeSet<PathBuf>,
    nightly: Option<(PathBuf, PathBuf)>,
}

impl Described {
    /// The user's own toolchain without sources, which every case starts from.
    fn bare() -> Self {
        Self::default().files(&["/own/cargo", "/own/rustc"])
    }

    fn files(mut self, paths: &[&str]) -> Self {
        self.files.extend(paths.iter().map(PathBuf::from));
        self
    }

    fn sources(mut self, rustc: &str) -> Self {
        self.with_sources.insert(rustc.into());
        self
    }

    fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    fn distribution(self) -> Self {
        self.files(&["/usr/bin/cargo", "/usr/bin/rustc"])
    }

    fn nightly(mut self) -> Self {
        self.nightly = Some(("/nightly/cargo".into(), "/nightly/rustc".into()));
        self.files(&["/nightly/cargo", "/nightly/rustc"])
    }
}

impl Machine for Described {
    fn variable(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(name).cloned()
    }

    fn exists(&self, path: &Path) -> bool {
        self.files.contains(path)
    }

    fn has_sources(&self, rustc: &Path) -> bool {
        self.with_sources.contains(rustc)
    }

    fn active(&self) -> (PathBuf, PathBuf) {
        ("/own/cargo".into(), "/own/rustc".into())
    }

    fn rustup_nightly(&self) -> Option<(PathBuf, PathBuf)> {
        self.nightly.clone()
    }
}

fn chosen(machine: &Described) -> (String, String, &'static str) {
    let toolchain = choose(machine).expect("a toolchain qualifies");
    (toolchain.cargo.display().to_string(), toolchain.rustc.display().to_string(), toolchain.origin)
}

#[test]
fn earlier_rules_win() {
    let everything = Described::bare()
        .variable(CARGO_VARIABLE, "/named/cargo")
        .variable(RUSTC_VARIABLE, "/other/rustc")
        .files(&["/named/cargo", "/other/rustc"])
        .sources("/other/rustc")
        .sources("/own/rustc")
        .distribution()
        .sources("/usr/bin/rustc")
        .nightly()
        .sources("/nightly/rustc");
    assert_eq!(chosen(&everything), ("/named/cargo".into(), "/other/rustc".into(), "the environment"));

    let mut unnamed = everything;
    unnamed.variables.clear();
    assert_eq!(chosen(&unnamed), ("/own/cargo".into(), "/own/rustc".into(), "the active toolchain"));

    unnamed.with_sources.remove(Path::new("/own/rustc"));
    assert_eq!(chosen(&unnamed), ("/usr/bin/cargo".into(), "/usr/bin/rustc".into(), "the distribution's toolchain"));

    unnamed.with_sources.remove(Path::new("/usr/bin/rustc"));
    assert_eq!(chosen(&unnamed), ("/nightly/cargo".into(), "/nightly/rustc".into(), "rustup's nightly"));

    unnamed.with_sources.remove(Path::new("/nightly/rustc"));
    assert_eq!(choose(&unnamed), Err(ToolchainError::Nothing));
}

#[test]
fn a_distribution_rustc_without_its_cargo_is_passed_over() {
    let machine = Described::bare().files(&["/usr/bin/rustc"]).sources("/usr/bin/rustc");
    assert_eq!(choose(&machine), Err(ToolchainError::Nothing));
}

#[test]
fn one_variable_brings_the_file_beside_it() {
    let machine = Described::bare()
        .variable(RUSTC_VARIABLE, "/named/rustc")
        .files(&["/named/cargo", "/named/rustc"])
        .sources("/named/rustc");
    assert_eq!(chosen(&machine), ("/named/cargo".into(), "/named/rustc".into(), "the environment"));

    let half = Described::bare().variable(CARGO_VARIABLE, "/named/cargo").files(&["/named/cargo"]);
    assert_eq!(
        choose(&half),
        Err(ToolchainError::NoCounterpart {
            set: CARGO_VARIABLE,
            missing: RUSTC_VARIABLE,
            path: "/named/rustc".into()
        })
    );
}

#[test]
fn a_named_toolchain_that_cannot_work_is_an_error_and_not_passed_over() {
    let fallback = Described::bare().distribution().sources("/usr/bin/rustc");
    let absent = fallback
        .clone()
        .variable(CARGO_VARIABLE, "/named/cargo")
        .variable(RUSTC_VARIABLE, "/named/rustc")
        .files(&["/named/cargo"]);
    assert_eq!(
        choose(&absent),
        Err(ToolchainError::NotThere { variable: RUSTC_VARIABLE, path: "/named/rustc".into() })
    );

    let without_sources = absent.files(&["/named/rustc"]);
    assert_eq!(choose(&without_sources), Err(ToolchainError::NoSources { rustc: "/named/rustc".into() }));
}

#[test]
fn a_machine_without_toolchain_is_told_what_to_install() {
    let message = ToolchainError::Nothing.to_string();
    for command in ["./setup", "rustup component add rust-src", "rust-web-src"] {
        assert!(message.contains(command), "{message}");
    }
}

#[test]
fn only_the_outer_build_is_dropped_from_the_environment() {
    for name in [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_PROFILE_RELEASE_LTO",
        "CARGO_MANIFEST_DIR",
        "CARGO_CFG_TARGET_OS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "TARGET",
    ] {
        assert!(leaks(name), "{name} must be dropped");
    }
    for name in [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_OFFLINE",
        "CARGO_HTTP_PROXY",
        "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
        "HTTPS_PROXY",
        "TMPDIR",
    ] {
        assert!(!leaks(name), "{name} must be kept");
    }
}
