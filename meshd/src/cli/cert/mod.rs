//! `meshd cert`: an authority and certificates for stores and their readers, without openssl.

mod init;
mod issue;
mod show;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use rcgen::{CertificateParams, DistinguishedName, DnType};

use super::failure::Failure;
use crate::config::file;

/// File of the authority's certificate.
const CA_CERT: &str = "ca.crt";
/// File of the authority's key.
const CA_KEY: &str = "ca.key";
/// Mode of key files.
const KEY_MODE: u32 = 0o600;
/// Mode of certificate files.
const CERT_MODE: u32 = 0o644;
/// How far back a new certificate is already valid, for machines whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Longest common name (X.520 `ub-common-name`).
const CN_MAX: usize = 64;

/// Make and look at certificates
#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    Init(init::Init),
    Issue(issue::Issue),
    Show(show::Show),
}

impl Cert {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Init(verb) => verb.run(),
            Self::Issue(verb) => verb.run(),
            Self::Show(verb) => verb.run(),
        }
    }
}

/// Parameters with the name and dates every certificate has.
fn parameters(cn: &str, days: u32) -> Result<CertificateParams, Failure> {
    if cn.is_empty() || cn.len() > CN_MAX || cn.chars().any(char::is_control) {
        return Err(Failure::usage(
            format!("{cn:?} cannot be a common name"),
            format!("write 1 to {CN_MAX} printable characters"),
        ));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut parameters = CertificateParams::default();
    parameters.not_before = epoch + now.saturating_sub(BACKDATE);
    parameters.not_after = epoch + (now + Duration::from_secs(u64::from(days) * 86_400));
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, cn);
    Ok(parameters)
}

/// Writes certificate and key, the key first and never readable by others in between.
fn write_pair(cert: (&Path, &str), key: (&Path, &str), force: bool) -> Result<(), Failure> {
    if !force {
        for path in [key.0, cert.0] {
            if fs::symlink_metadata(path).is_ok() {
                return Err(Failure::message(format!("{} exists", path.display()))
                    .hint("choose another place, or replace it with --force"));
            }
        }
    }
    write_file(key.0, key.1, KEY_MODE)?;
    write_file(cert.0, cert.1, CERT_MODE)
}

fn write_file(path: &Path, content: &str, mode: u32) -> Result<(), Failure> {
    file::replace(path, content, mode).map_err(|error| {
        Failure::message(format!("failed to write {}: {error}", path.display())).hint("the folder must be writable")
    })
}
