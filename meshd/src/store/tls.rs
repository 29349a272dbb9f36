//! From PEM files to a TLS client.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use crate::config::{
    model::TlsFiles,
    tls::{TlsFileError, read_certificates, read_key},
};

/// HTTP/2, the only protocol gRPC speaks.
const ALPN: &[u8] = b"h2";

/// Why no TLS client can be made from the configured files.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// The authority's certificate is not one.
    #[error("failed to use the certificate authority in {path}: {source}")]
    Authority {
        /// The file.
        path: String,
        /// Why not.
        source: rustls::Error,
    },
    /// Certificate and key do not fit.
    #[error("failed to use the client certificate in {path}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// Why not.
        source: rustls::Error,
    },
}

/// Reads the files as they are now.
pub(super) fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&files.ca, "certificate authority")? {
        let path = || files.ca.display().to_string();
        roots.add(certificate).map_err(|source| TlsError::Authority { path: path(), source })?;
    }
    let chain = read_certificates(&files.cert, "certificate")?;
    let key = read_key(&files.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = |source| TlsError::Certificate { path: files.cert.display().to_string(), source };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(certificate)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(certificate)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}
