//! Certificates of one run: an authority of its own and a folder of certificates per node.
//!
//! They are issued by `meshd cert`, the command a user has, so that a lab also shows that it is enough to set up a mesh.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::lab::each_result;
use crate::topology::{CertificateSpec, NodeSpec, Topology};

/// Issues every certificate of a topology: `authority` gets the authority's files, and `folder_of(node)` gets
/// `ca.crt` and, for each certificate of the node, `NAME.crt` and `NAME.key`.
pub fn issue(
    topology: &Topology,
    meshd: &Path,
    authority: &Path,
    folder_of: impl Fn(&str) -> PathBuf + Sync,
) -> Result<()> {
    let with_certificates: Vec<&NodeSpec> =
        topology.nodes.iter().filter(|node| !node.certificates.is_empty()).collect();
    if with_certificates.is_empty() {
        return Ok(());
    }
    run(meshd, &["cert", "init", "--dir", &text(authority), "--cn", &format!("{} lab", topology.name)])?;
    each_result(&with_certificates, |node| issue_for(node, meshd, authority, &folder_of(&node.name))).map(drop)
}

fn issue_for(node: &NodeSpec, meshd: &Path, authority: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::file("create folder", folder))?;
    copy(&authority.join("ca.crt"), &folder.join("ca.crt"))?;
    for certificate in &node.certificates {
        let name = format!("{}-{}", node.name, certificate.name);
        issue_one(meshd, authority, certificate, &name)?;
        for extension in ["crt", "key"] {
            let made = authority.join(format!("{name}.{extension}"));
            let wanted = folder.join(format!("{}.{extension}", certificate.name));
            std::fs::rename(&made, &wanted).map_err(Error::file("move", made))?;
        }
    }
    Ok(())
}

fn issue_one(meshd: &Path, authority: &Path, certificate: &CertificateSpec, name: &str) -> Result<()> {
    let folder = text(authority);
    let mut arguments = vec!["cert", "issue", "--dir", &folder, "--cn", &certificate.common_name, "--out", name];
    for san in &certificate.sans {
        arguments.extend(["--san", san]);
    }
    if certificate.server {
        arguments.push("--server");
    }
    if certificate.client {
        arguments.push("--client");
    }
    let days = certificate.days.map(|days| days.to_string());
    if let Some(days) = &days {
        arguments.extend(["--days", days]);
    }
    run(meshd, &arguments)
}

fn run(meshd: &Path, arguments: &[&str]) -> Result<()> {
    let command = || format!("{} {}", meshd.display(), arguments.join(" "));
    let output = Command::new(meshd).args(arguments).output().map_err(|source| Error::Start {
        command: command(),
        node: "the host".to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: command(),
        node: "the host".to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(Error::file("copy", from))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
