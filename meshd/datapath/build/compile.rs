//! A cargo inside a cargo: another target, another profile, often another toolchain (see `toolchain.rs`). It sees nothing of the
//! outer build's environment. Build scripts of two crates include this file.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::toolchain::{CARGO_VARIABLE, Machine, RUSTC_VARIABLE, Toolchain, choose, leaks};

/// The linker that turns LLVM bitcode into one BPF object.
const LINKER: &str = "bpf-linker";
/// How to get the linker; its LLVM must not be older than the compiler's.
const LINKER_HINT: &str = "run ./setup as root, or with LLVM 22 from Debian (`apt-get install llvm-22-dev libpolly-22-dev`): \
     `LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
     --no-default-features --features llvm-22 --locked`";

/// What to compile.
pub(crate) struct KernelSide<'a> {
    /// The folder of the package.
    pub(crate) source: &'a Path,
    /// Which of its binaries.
    pub(crate) binary: &'a str,
    /// With which features.
    pub(crate) features: &'a [&'a str],
    /// Where the inner build works. A folder of its own never waits for the lock of the outer one.
    pub(crate) target_dir: PathBuf,
}

impl KernelSide<'_> {
    /// Compiles it and copies the object to `to`.
    pub(crate) fn compile(&self, to: &Path) -> Result<(), String> {
        for variable in [CARGO_VARIABLE, RUSTC_VARIABLE] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
            Ok("big") => "bpfeb-unknown-none",
            _ => "bpfel-unknown-none",
        };
        let toolchain = choose(&ThisMachine).map_err(|error| error.to_string())?;
        let linker = find_linker().ok_or_else(|| format!("{LINKER} is not installed; hint: {LINKER_HINT}"))?;
        run(&toolchain, &linker, self, target)?;
        let object = self.target_dir.join(target).join("release").join(self.binary);
        fs::copy(&object, to).map_err(|error| format!("failed to copy {}: {error}", object.display()))?;
        Ok(())
    }
}

fn run(toolchain: &Toolchain, linker: &Path, kernel_side: &KernelSide<'_>, target: &str) -> Result<(), String> {
    let KernelSide { source, binary, features, target_dir } = kernel_side;
    let linker = linker.to_str().ok_or_else(|| format!("the path of {LINKER} is not UTF-8: {}", linker.display()))?;
    // BTF is what the loader finds maps by; it is derived from full debug information and stripped of the rest.
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={linker}"),
        "-Clink-arg=--btf".to_owned(),
        // By default it makes of every value that is cleared or moved a call of a loop over octets, which costs programs time, stack, and
        // verifiers twice the instructions.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
    .join("\x1f");

    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(source)
        .args(["build", "--release", "--locked", "-Zbuild-std=core"])
        .args(["--bin", binary, "--target", target])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    let output = command.output().map_err(|error| format!("failed to run {}: {error}", toolchain.cargo.display()))?;
    if output.status.success() {
        return Ok(());
    }
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    Err(format!(
        "{} ({}) failed to compile {} for {target}: {}; its messages are above. If the linker complains about an LLVM \
         version, it is older than the compiler's; {LINKER_HINT}",
        toolchain.cargo.display(),
        toolchain.origin,
        source.display(),
        output.status
    ))
}

/// The linker from `PATH`, or from where `cargo install` puts it, which is not always in the `PATH`.
fn find_linker() -> Option<PathBuf> {
    let from_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    from_path
        .into_iter()
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|folder| folder.join(LINKER))
        .find(|candidate| candidate.is_file())
}

/// The machine that the build runs on.
struct ThisMachine;

impl Machine for ThisMachine {
    fn variable(&self, name: &str) -> Option<PathBuf> {
        env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn exists(&self, path: &Path) -> bool {
        path.is_file()
    }

    fn has_sources(&self, rustc: &Path) -> bool {
        let mut command = Command::new(rustc);
        command.args(["--print", "sysroot"]);
        first_line(command)
            .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file())
    }

    fn active(&self) -> (PathBuf, PathBuf) {
        let path_of =
            |variable, otherwise: &str| env::var_os(variable).map_or_else(|| PathBuf::from(otherwise), PathBuf::from);
        (path_of("CARGO", "cargo"), path_of("RUSTC", "rustc"))
    }

    fn rustup_nightly(&self) -> Option<(PathBuf, PathBuf)> {
        let which = |tool| {
            let mut command = Command::new("rustup");
            command.args(["which", "--toolchain", "nightly", tool]);
            first_line(command).map(PathBuf::from)
        };
        Some((which("cargo")?, which("rustc")?))
    }
}

/// What a command prints, when it succeeds; a command that is not installed is a "no" and not an error.
fn first_line(mut command: Command) -> Option<String> {
    let output = command.output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
