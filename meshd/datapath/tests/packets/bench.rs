//! A place to run programs in: namespaces of their own, loaded programs, one node's tables.

use std::{fs::File, path::PathBuf, thread};

use meshd_datapath::{Programs, shape::Sizes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Small tables, so that a test can fill them.
pub fn small() -> Sizes {
    Sizes {
        services: 256,
        backends: 256,
        members: 1_024,
        maglev: 16,
        connections: 1_024,
        affinity: 64,
        fragments: 64,
        identities: 256,
        prefixes: 64,
        next_hops: 64,
        events: 1 << 16,
    }
}

/// Runs a test in a thread with network and mount namespaces of its own and an empty folder for pins on a bpf file system:
/// everything vanishes with the thread, whatever happens to the test.
pub fn in_namespaces(test: impl FnOnce(PathBuf) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: it loads programs into the kernel");
    let body = move || {
        let _outer = File::open("/proc/thread-self/ns/net").expect("open the namespace");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
        let folder = tempfile::tempdir().expect("a folder");
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("make mounts private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing).expect("mount a bpf file system");
        test(folder.path().join("meshd"));
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmount the bpf file system");
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Loads the programs with small tables.
pub fn load(folder: &std::path::Path) -> Programs {
    Programs::load(folder, &small()).unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!("\n  {error}"));
            cause = error.source();
        }
        panic!("{text}")
    })
}
