//! Certificate and key files: can they be used, and do they fit each other?
//!
//! Dates are not judged here. A node whose certificate has expired must still start, keep its routes and say
//! what is wrong; `meshd check`, `meshd status` and `meshd troubleshoot` report dates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::error::{Finding, chain};
use super::model::TlsFiles;

/// Permission bit: everybody may read.
const WORLD_READABLE: u32 = 0o004;

/// Why a certificate or key file cannot be used.
#[derive(Debug, Error)]
pub enum TlsFileError {
    /// The file cannot be read.
    #[error("failed to read {what} {path}")]
    Read {
        /// `certificate authority`, `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not PEM, or holds nothing of the kind.
    #[error("{path} holds no PEM {what}: {reason}")]
    Pem {
        /// `certificate authority`, `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// Key and certificate are not a pair.
    #[error("key {key} does not belong to certificate {cert}: {reason}")]
    Pair {
        /// The key file.
        key: String,
        /// The certificate file.
        cert: String,
        /// Why not.
        reason: String,
    },
}

/// Reads all certificates of a PEM file; at least one.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn read_certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = read(path, what)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(not_pem(path, what, "no CERTIFICATE block")),
        Err(error) => Err(not_pem(path, what, &error.to_string())),
    }
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let pem = read(path, "key")?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| not_pem(path, "key", &error.to_string()))
}

/// Checks that certificate and key are a pair.
///
/// # Errors
/// When they are not, or the key is of a kind the TLS library cannot use.
pub fn check_pair(files: &TlsFiles) -> Result<(), TlsFileError> {
    let certificates = read_certificates(&files.cert, "certificate")?;
    let key = read_key(&files.key)?;
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(certificates, key, &provider).map(|_| ()).map_err(|error| TlsFileError::Pair {
        key: files.key.display().to_string(),
        cert: files.cert.display().to_string(),
        reason: error.to_string(),
    })
}

/// A digest of the content of the three files; changes when any of them does, also when one becomes unreadable.
#[must_use]
pub fn digest(files: &TlsFiles) -> [u8; 32] {
    let mut hash = Sha256::new();
    for path in [&files.ca, &files.cert, &files.key] {
        match fs::read(path) {
            Ok(content) => {
                hash.update(content.len().to_be_bytes());
                hash.update(content);
            }
            Err(error) => hash.update(error.kind().to_string()),
        }
    }
    hash.finalize().into()
}

/// Everything that is wrong with the three files of `key`.
pub(super) fn check_files(key: &str, files: &TlsFiles) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = read_certificates(&files.ca, "certificate authority") {
        findings.push(finding(&format!("{key}.ca"), &error));
    }
    let cert = read_certificates(&files.cert, "certificate");
    if let Err(error) = &cert {
        findings.push(finding(&format!("{key}.cert"), error));
    }
    let key_key = format!("{key}.key");
    let private = read_key(&files.key);
    match &private {
        Err(error) => findings.push(finding(&key_key, error)),
        Ok(_) if is_world_readable(&files.key) => findings.push(
            Finding::new(&key_key, format!("key file {} can be read by everybody", files.key.display()))
                .hint(format!("chmod 0600 {} (in a Kubernetes volume: defaultMode: 0400)", files.key.display())),
        ),
        Ok(_) => {}
    }
    if cert.is_ok()
        && private.is_ok()
        && let Err(error) = check_pair(files)
    {
        findings.push(finding(&key_key, &error));
    }
    findings
}

/// May everybody read the file?
#[must_use]
pub fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & WORLD_READABLE != 0)
}

fn finding(key: &str, error: &TlsFileError) -> Finding {
    let finding = Finding::new(key, chain(error));
    finding.hint(match error {
        TlsFileError::Read { source, path, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => {
                format!("make it with `meshd cert issue`, or correct the path ({path})")
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("make it readable for the user meshd runs as (ls -l {path})")
            }
            _ => format!("it must be a regular file ({path})"),
        },
        TlsFileError::Pem { .. } => "PEM starts with -----BEGIN; see `meshd cert show FILE`".to_owned(),
        TlsFileError::Pair { .. } => {
            "use the key that was issued together with the certificate (`meshd cert issue`)".to_owned()
        }
    })
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsFileError> {
    fs::read(path).map_err(|source| TlsFileError::Read { what, path: path.display().to_string(), source })
}

fn not_pem(path: &Path, what: &'static str, reason: &str) -> TlsFileError {
    TlsFileError::Pem { what, path: path.display().to_string(), reason: reason.to_owned() }
}
