//! Compiles `meshd-ebpf` for the kernel and leaves the object in `OUT_DIR/meshd-ebpf`, where the crate embeds it.

use std::{env, path::PathBuf, process::ExitCode};

use compile::KernelSide;

#[path = "build/compile.rs"]
mod compile;
#[path = "build/toolchain.rs"]
mod toolchain;

/// Name of the binary that the inner build makes, and of its copy in `OUT_DIR`.
const OBJECT: &str = "meshd-ebpf";

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
    let root = manifest_dir.ancestors().nth(2).ok_or("the crate lies too high in its repository")?;
    let source = root.join("meshd-ebpf");

    for path in [
        "build",
        "build.rs",
        "../../Cargo.toml",
        "../../meshd-ebpf/Cargo.lock",
        "../../meshd-ebpf/Cargo.toml",
        "../../meshd-ebpf/abi/Cargo.toml",
        "../../meshd-ebpf/abi/src",
        "../../meshd-ebpf/steps/Cargo.toml",
        "../../meshd-ebpf/steps/src",
        "../../meshd-ebpf/src",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    let target_dir = out_dir.join("ebpf-target");
    KernelSide { source: &source, binary: OBJECT, features: &[], target_dir }.compile(&out_dir.join(OBJECT))
}
