//! Every file of `configs/` is read by something here; a file nobody reads fails the test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, Environment, Overrides};

/// Where the examples say their certificates are.
const EXAMPLE_PKI: &str = "/etc/meshd/pki/";
/// Where they say `meshd connect` writes.
const EXAMPLE_INCLUDE: &str = "/etc/meshd/conf.d";

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort();
}

#[test]
fn every_shipped_file_is_read() {
    let mut found = Vec::new();
    files(&configs(), &mut found);
    assert!(found.len() >= 8, "{found:?}");
    let pki = tempfile::tempdir().unwrap();
    for path in found {
        let relative = path.strip_prefix(configs()).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        match relative.split('/').next() {
            Some("examples") => read_example(&path, &text, pki.path()),
            Some("systemd") => check_unit(&text),
            Some("rt_protos.d") => check_protocol(&text),
            Some("sysctl.d") => check_sysctl(&text),
            Some(_) | None => panic!("nothing reads configs/{relative}: add a check for it"),
        }
    }
}

/// Loads an example with real certificate files and a real include folder in place of those it names.
fn read_example(path: &Path, text: &str, pki: &Path) {
    let name = path.file_name().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let (mut certificates, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for (i, _) in text.match_indices(EXAMPLE_PKI) {
        let rest = &text[i + EXAMPLE_PKI.len()..];
        let file = rest.split([',', '"', '}', ' ', '\n']).next().unwrap();
        if file.ends_with(".key") {
            keys.insert(file)
        } else {
            certificates.insert(file)
        };
    }
    for file in certificates.iter().filter(|file| !file.is_empty()) {
        fs::write(pki.join(file), certificate.pem()).unwrap();
    }
    for file in keys {
        super::file::replace(&pki.join(file), &key.serialize_pem(), 0o600).unwrap();
    }
    let copy = pki.join(name);
    let include = pki.join("conf.d");
    fs::create_dir_all(&include).unwrap();
    let text = text.replace(EXAMPLE_PKI, &format!("{}/", pki.display()));
    fs::write(&copy, text.replace(EXAMPLE_INCLUDE, include.to_str().unwrap())).unwrap();
    let config = Config::load(&copy, &Environment::new(), &Overrides::new()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, Vec::new(), "{}", path.display());
}

/// Settings that this kernel has, as `sysctl` reads them.
fn check_sysctl(text: &str) {
    let settings: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(settings, ["net.ipv4.nexthop_compat_mode = 0"]);
    assert!(Path::new("/proc/sys/net/ipv4/nexthop_compat_mode").exists(), "the kernel has no such setting");
}

fn check_unit(text: &str) {
    let has = |line: &str| text.lines().any(|found| found == line);
    for line in [
        "Type=notify",
        "WatchdogSec=30s",
        "ExecStart=/usr/bin/meshd run --config /etc/meshd/meshd.yaml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RestartPreventExitStatus=64",
        "Restart=always",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "StateDirectory=meshd",
        "RuntimeDirectory=meshd",
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_PERFMON CAP_SYS_ADMIN CAP_DAC_READ_SEARCH CAP_SYS_NICE",
        "WantedBy=multi-user.target",
    ] {
        assert!(has(line), "the unit lacks {line}");
    }
    // Routes must outlive the daemon: nothing in the unit may remove them.
    assert!(!text.contains("ExecStop"), "stopping must keep the routes");
    let mut section = "";
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else {
            assert!(!section.is_empty() && line.contains('='), "not a unit line: {line}");
        }
    }
}

fn check_protocol(text: &str) {
    let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
    let expected = format!("{}\tmeshd", meshd_core::id::ROUTE_PROTOCOL);
    assert_eq!(line, expected);
}
