//! Compiles the benchmark's driver for the kernel and leaves the object in `OUT_DIR/meshd-ebpf-bench`.

use std::{env, path::PathBuf, process::ExitCode};

use compile::KernelSide;

#[path = "../build/compile.rs"]
mod compile;
#[path = "../build/toolchain.rs"]
mod toolchain;

/// Name of the binary that the inner build makes, and of its copy in `OUT_DIR`.
const OBJECT: &str = "meshd-ebpf-bench";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The only lines of a build script that cargo shows without -v are warnings and errors.
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let root = manifest_dir.ancestors().nth(3).ok_or("the crate lies too high in its repository")?;
    let source = root.join("meshd-ebpf");
    for path in [
        "../build",
        "build.rs",
        "../../../meshd-ebpf/Cargo.lock",
        "../../../meshd-ebpf/Cargo.toml",
        "../../../meshd-ebpf/abi/src",
        "../../../meshd-ebpf/bench",
        "../../../meshd-ebpf/steps/src",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    let target_dir = out_dir.join("ebpf-target");
    KernelSide { source: &source, binary: OBJECT, features: &["bench"], target_dir }.compile(&out_dir.join(OBJECT))
}
