//! Which Rust toolchain compiles the kernel side.
//!
//! The BPF target has no prebuilt core library, so cargo builds it from the compiler's own sources (`-Z build-std=core`).
//! A toolchain qualifies when it has those sources; a stable one qualifies too, because `RUSTC_BOOTSTRAP=1` unlocks the
//! flag. The choice is a pure function over a [`Machine`], so that it is tested without any of the toolchains; the build
//! script supplies the real one. First match wins:
//!
//! 1. what `MESHD_EBPF_CARGO` and `MESHD_EBPF_RUSTC` name;
//! 2. the toolchain that compiles the daemon;
//! 3. the distribution's, in `/usr/bin`;
//! 4. rustup's nightly.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Names the cargo that compiles the kernel side.
pub(crate) const CARGO_VARIABLE: &str = "MESHD_EBPF_CARGO";
/// Names the rustc that compiles the kernel side.
pub(crate) const RUSTC_VARIABLE: &str = "MESHD_EBPF_RUSTC";

/// A cargo and the rustc it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Path of cargo.
    pub(crate) cargo: PathBuf,
    /// Path of rustc.
    pub(crate) rustc: PathBuf,
    /// Which rule chose it; for messages.
    pub(crate) origin: &'static str,
}

/// What the choice asks the machine.
pub(crate) trait Machine {
    /// The value of an environment variable; an empty one counts as absent.
    fn variable(&self, name: &str) -> Option<PathBuf>;
    /// Whether the file exists.
    fn exists(&self, path: &Path) -> bool;
    /// Whether the sysroot of this rustc has the sources of the core library.
    fn has_sources(&self, rustc: &Path) -> bool;
    /// The cargo and rustc that compile the daemon.
    fn active(&self) -> (PathBuf, PathBuf);
    /// The cargo and rustc of rustup's nightly, when there is one.
    fn rustup_nightly(&self) -> Option<(PathBuf, PathBuf)>;
}

/// Why no toolchain was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToolchainError {
    /// One of the two variables names a file that does not exist.
    NotThere {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// One variable is set and there is no counterpart in the same folder.
    NoCounterpart {
        /// The variable that is set.
        set: &'static str,
        /// The variable that would name the missing half.
        missing: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The explicitly named rustc has no library sources.
    NoSources {
        /// The rustc.
        rustc: PathBuf,
    },
    /// Nothing on this machine can build the core library for BPF.
    Nothing,
}

impl fmt::Display for ToolchainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere { variable, path } => {
                write!(f, "{variable} names {}, which does not exist", path.display())
            }
            Self::NoCounterpart { set, missing, path } => {
                write!(f, "{set} is set, but {} does not exist; name it with {missing}", path.display())
            }
            Self::NoSources { rustc } => {
                write!(f, "{} (from {RUSTC_VARIABLE}) has no library sources; hint: {INSTALL_HINT}", rustc.display())
            }
            Self::Nothing => write!(
                f,
                "no Rust toolchain on this machine has the sources of the core library, which the kernel side is built \
                 from; hint: {INSTALL_HINT}"
            ),
        }
    }
}

impl std::error::Error for ToolchainError {}

/// Which commands install a toolchain that qualifies.
const INSTALL_HINT: &str = "run ./setup as root, or `rustup component add rust-src`, or on Debian \
                            `apt-get install --no-install-recommends rustc-web cargo-web rust-web-src`";

/// Picks the toolchain by the rules at the top of this file.
pub(crate) fn choose(machine: &impl Machine) -> Result<Toolchain, ToolchainError> {
    if let Some(named) = choose_named(machine)? {
        return Ok(named);
    }
    let (cargo, rustc) = machine.active();
    if machine.has_sources(&rustc) {
        return Ok(Toolchain { cargo, rustc, origin: "the active toolchain" });
    }
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    if machine.exists(&cargo) && machine.exists(&rustc) && machine.has_sources(&rustc) {
        return Ok(Toolchain { cargo, rustc, origin: "the distribution's toolchain" });
    }
    if let Some((cargo, rustc)) = machine.rustup_nightly()
        && machine.has_sources(&rustc)
    {
        return Ok(Toolchain { cargo, rustc, origin: "rustup's nightly" });
    }
    Err(ToolchainError::Nothing)
}

/// The toolchain of the two variables. With only one of them set, the other half is the file beside it.
fn choose_named(machine: &impl Machine) -> Result<Option<Toolchain>, ToolchainError> {
    let (cargo, rustc) = match (machine.variable(CARGO_VARIABLE), machine.variable(RUSTC_VARIABLE)) {
        (None, None) => return Ok(None),
        (Some(cargo), Some(rustc)) => (cargo, rustc),
        (Some(cargo), None) => {
            let rustc = counterpart(machine, &cargo, "rustc", CARGO_VARIABLE, RUSTC_VARIABLE)?;
            (cargo, rustc)
        }
        (None, Some(rustc)) => {
            let cargo = counterpart(machine, &rustc, "cargo", RUSTC_VARIABLE, CARGO_VARIABLE)?;
            (cargo, rustc)
        }
    };
    for (variable, path) in [(CARGO_VARIABLE, &cargo), (RUSTC_VARIABLE, &rustc)] {
        if !machine.exists(path) {
            return Err(ToolchainError::NotThere { variable, path: path.clone() });
        }
    }
    if !machine.has_sources(&rustc) {
        return Err(ToolchainError::NoSources { rustc });
    }
    Ok(Some(Toolchain { cargo, rustc, origin: "the environment" }))
}

fn counterpart(
    machine: &impl Machine,
    named: &Path,
    name: &str,
    set: &'static str,
    missing: &'static str,
) -> Result<PathBuf, ToolchainError> {
    let path = named.with_file_name(name);
    if machine.exists(&path) { Ok(path) } else { Err(ToolchainError::NoCounterpart { set, missing, path }) }
}

/// Whether an environment variable of the outer build must not reach the inner one.
///
/// The inner build has its own target, flags and compiler, so everything that cargo, rustup and the user set for the outer
/// one is dropped, except where cargo keeps its files, how it reaches the registries, and the job server.
pub(crate) fn leaks(name: &str) -> bool {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_TERM_COLOR", "RUSTUP_HOME", "RUST_BACKTRACE"];
    const KEPT_PREFIXES: [&str; 4] = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    // The last line: what cargo tells a build script, and the outer compiler's libraries.
    const DROPPED: [&str; 12] = [
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "MIRI_SYSROOT",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "SYSROOT",
        "TARGET",
    ];
    if KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    DROPPED.contains(&name) || name == "CARGO" || name.starts_with("CARGO_") || name.starts_with("RUST")
}

#[cfg(test)]
#[path = "toolchain_tests.rs"]
mod tests;
