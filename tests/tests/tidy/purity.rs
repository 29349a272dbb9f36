//! Invariant I1: the crates that decide depend on nothing that acts.

use super::{
    metadata::{Metadata, read},
    tree::{assert_none, root},
};

/// The pure crates and their folders.
const PURE: [(&str, &str); 3] = [("bgp", "bgp"), ("meshd-core", "meshd/core"), ("meshd-abi", "meshd-ebpf/abi")];

/// Crates that run futures, open sockets, call the kernel, read clocks, or draw random numbers.
const ACTING: [&str; 30] = [
    "async-io",
    "async-std",
    "aya",
    "chrono",
    "etcd-client",
    "fastrand",
    "futures-executor",
    "getrandom",
    "h2",
    "hyper",
    "inotify",
    "instant",
    "mio",
    "netlink-sys",
    "nix",
    "polling",
    "quanta",
    "rand",
    "reqwest",
    "ring",
    "rtnetlink",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "time",
    "tokio",
    "tokio-util",
    "tonic",
    "ureq",
];

fn acting_dependencies(metadata: &Metadata, name: &str) -> Vec<String> {
    metadata
        .compiled_with(name)
        .into_iter()
        .filter(|dependency| ACTING.contains(dependency))
        .map(|dependency| format!("{name} is compiled with {dependency}, and must stay pure"))
        .collect()
}

#[test]
fn pure_crates_are_compiled_with_nothing_that_acts() {
    let metadata = Metadata::read("Cargo.toml");
    for (name, _) in PURE {
        assert_none(&acting_dependencies(&metadata, name));
    }
}

#[test]
fn pure_crates_forbid_unsafe_code_and_the_clock() {
    for (name, folder) in PURE {
        let lib = read(&format!("{folder}/src/lib.rs"));
        assert!(lib.contains("\n#![forbid(unsafe_code)]\n"), "{name} does not forbid unsafe code");
        let lints = read(&format!("{folder}/clippy.toml"));
        for method in ["std::time::SystemTime::now", "std::time::Instant::now", "std::thread::sleep"] {
            assert!(lints.contains(&format!("path = \"{method}\"")), "{name} may call {method}");
        }
    }
    assert!(root().join("clippy.toml").is_file());
}

/// The daemon does act, so the same rule must find plenty there.
#[test]
fn acting_dependencies_are_found() {
    let metadata = Metadata::read("Cargo.toml");
    let findings = acting_dependencies(&metadata, "meshd").join("\n");
    for dependency in ["tokio", "nix", "aya", "rand"] {
        assert!(findings.contains(&format!("compiled with {dependency},")), "{dependency} was missed:\n{findings}");
    }
}
