//! Server certificates, and the user in a client certificate.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What the server shows and whom it believes, as PEM text.
#[derive(Clone)]
pub struct ServerTls {
    /// Certificate of the server, followed by intermediates.
    pub cert_pem: Vec<u8>,
    /// Private key.
    pub key_pem: Vec<u8>,
    /// Authorities that sign client certificates.
    pub client_ca_pem: Vec<u8>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key never reaches a log.
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// Why certificates do not work.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server certificate is no PEM, or there is none.
    #[error("failed to read the server certificate: {0}")]
    Certificate(String),
    /// The key is no PEM, or there is none.
    #[error("failed to read the server key: {0}")]
    Key(String),
    /// The client authorities are no PEM, or there are none.
    #[error("failed to read the client certificate authorities: {0}")]
    ClientCa(String),
    /// Certificate and key do not belong together, or are of a kind that cannot be used.
    #[error("failed to use the server certificate with its key: {0}")]
    Mismatch(String),
}

impl ServerTls {
    pub(crate) fn to_config(&self) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.cert_pem).map_err(TlsError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key_pem).map_err(|error| TlsError::Key(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.client_ca_pem).map_err(TlsError::ClientCa)? {
            roots.add(authority).map_err(|error| TlsError::ClientCa(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError::ClientCa(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Mismatch(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| TlsError::Mismatch(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The common name of a verified client certificate; empty if it has none.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return String::new();
    };
    let name = certificate.subject().iter_common_name().next();
    name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("no certificate found".to_owned());
    }
    Ok(certificates)
}
