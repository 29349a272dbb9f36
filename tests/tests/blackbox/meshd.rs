//! Running the binary.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Variables of the surroundings that would change what the binary does.
const FOREIGN: [&str; 3] = ["MESHD_CONFIG", "MESHD_SOCKET", "MESHD_BIN"];

/// What a run printed and how it ended.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// The binary under test.
pub(super) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MESHD_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/blackbox-HASH
    let path = test.ancestors().nth(2).expect("the profile's folder").join("meshd");
    assert!(path.exists(), "{} is missing: run `cargo build -p meshd` first, or set MESHD_BIN", path.display());
    path
}

/// A command without foreign variables.
pub(super) fn command() -> Command {
    let mut command = Command::new(binary());
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(super) fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Run {
    let output = command().args(arguments).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Run {
    /// The same, when it ended with this code.
    #[track_caller]
    pub(super) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard error has all these words.
    #[track_caller]
    pub(super) fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in:\n{}", self.stderr);
        }
    }
}

/// A folder with a configuration in it.
pub(super) struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is made");
        fs::write(&path, text).expect("the file is written");
        path
    }

    /// `meshd cert init` into a folder.
    pub(super) fn authority(&self, folder: &str) {
        run([OsStr::new("cert"), "init".as_ref(), "--dir".as_ref(), self.path(folder).as_ref()]).expect(0);
    }

    /// `meshd cert issue` into a folder.
    pub(super) fn issue(&self, folder: &str, cn: &str, out: &str, more: &[&str]) {
        let dir = self.path(folder);
        let dir = dir.to_str().expect("UTF-8");
        let mut arguments = vec!["cert", "issue", "--dir", dir, "--cn", cn, "--out", out];
        arguments.extend(more);
        run(arguments).expect(0);
    }
}

/// Permission bits of a file.
pub(super) fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file is there").permissions().mode() & 0o777
}
