//! A TLS handshake that can say why it failed.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::files::OwnCertificate;
use super::report::Diagnosis;
use crate::cli::certificate::{self, Certificate};
use crate::config::error::chain;
use crate::config::model::TlsFiles;
use crate::config::tls;

/// The protocol that `GET /version` needs.
const ALPN: &[u8] = b"http/1.1";

/// Verifies as usual, and remembers what the server showed.
#[derive(Debug)]
pub(super) struct Recorder {
    inner: Arc<WebPkiServerVerifier>,
    shown: Mutex<Vec<CertificateDer<'static>>>,
}

/// A client configuration with the files of a peer.
pub(super) fn client(files: &TlsFiles) -> Result<(ClientConfig, Arc<Recorder>), String> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in tls::read_certificates(&files.ca, "certificate authority").map_err(|error| chain(&error))? {
        roots.add(authority).map_err(|error| format!("{}: {error}", files.ca.display()))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| format!("{}: {error}", files.ca.display()))?;
    let recorder = Arc::new(Recorder { inner, shown: Mutex::new(Vec::new()) });
    let certificates = tls::read_certificates(&files.cert, "certificate").map_err(|error| chain(&error))?;
    let key = tls::read_key(&files.key).map_err(|error| chain(&error))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(certificates, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((config, recorder))
}

impl Recorder {
    /// The certificates the server showed, its own first.
    pub(super) fn shown(&self) -> Vec<Certificate> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().filter_map(|der| Certificate::parse(der.clone()).ok()).collect()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The TLS error inside an I/O or HTTP error, if there is one.
pub(super) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error hides what it wraps from `source`.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        current = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// What a failed handshake means.
pub(super) fn diagnose(
    error: &(dyn Error + 'static),
    shown: &[Certificate],
    own: Option<&OwnCertificate>,
    host: &str,
) -> Diagnosis {
    let text = chain(error);
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(reason)) => server_certificate(reason, shown, own, host),
        Some(rustls::Error::AlertReceived(alert)) => refused(*alert, own),
        Some(rustls::Error::InvalidMessage(_)) => Diagnosis::new(
            "the other side does not speak TLS",
            "the port is not that of a store with TLS, or something in between answers",
            "check the port; a store without TLS is http://",
        ),
        Some(_) => Diagnosis::new(text, "the two sides do not agree on TLS", "look at the log of the store"),
        None => Diagnosis::new(
            format!("the connection was closed during the TLS handshake: {text}"),
            "a proxy, a firewall or an overloaded store closed it",
            "look at the log of the store and at what is in between",
        ),
    }
}

/// The server's certificate does not hold.
fn server_certificate(
    reason: &CertificateError,
    shown: &[Certificate],
    own: Option<&OwnCertificate>,
    host: &str,
) -> Diagnosis {
    let authorities = own.map_or(&[][..], |own| own.authorities.as_slice());
    let leaf = shown.first();
    let (issuer, names) = leaf.map_or_else(
        || ("unknown".to_owned(), String::new()),
        |leaf| (leaf.issuer.clone(), leaf.subject_alt_names.join(", ")),
    );
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Diagnosis::new(
            leaf.map_or_else(
                || reason.to_string(),
                |leaf| format!("the server's certificate expired on {}", leaf.not_after),
            ),
            "expired certificate on the other side (or this node's clock is ahead)",
            "renew the server certificate of the other side; compare `date -u` on both",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Diagnosis::new(
            leaf.map_or_else(
                || reason.to_string(),
                |leaf| format!("the server's certificate is valid from {} only", leaf.not_before),
            ),
            "clock skew: this node's clock is behind",
            "compare `date -u` on both sides",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Diagnosis::new(
            format!("the server's certificate is not for {host}, but for {names}"),
            "wrong endpoint, or the certificate lacks this name",
            format!("use one of these names, or issue the server certificate with --san {host}"),
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Diagnosis::new(
            "the server's certificate is not for servers",
            "a client certificate is used by the server",
            "issue it with `meshd cert issue --server`",
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let why = certificate::verify(shown, authorities, jiff::Timestamp::now())
                .err()
                .unwrap_or_else(|| reason.to_string());
            Diagnosis::new(
                format!("the server's certificate cannot be verified: {why}"),
                format!("wrong CA: tls.ca is not the authority ({issuer}) of the other side's server certificate"),
                "put the other side's ca.crt into tls.ca; compare with `meshd cert show`",
            )
        }
        other => Diagnosis::new(
            format!("the server's certificate cannot be verified: {other}"),
            "the certificate of the other side is unusable",
            "look at it with `meshd cert show` on the other side",
        ),
    }
}

/// The server does not like our certificate.
fn refused(alert: AlertDescription, own: Option<&OwnCertificate>) -> Diagnosis {
    let detail = format!("the other side refused the connection with the TLS alert {alert:?}");
    if let Some(dates) = own.and_then(|own| own.dates.as_ref()) {
        return Diagnosis::new(
            detail,
            format!("expired certificate: {dates}"),
            "issue a new one; it is taken up without a restart",
        );
    }
    let issuer = own.map_or("unknown", |own| own.issuer.as_str());
    match alert {
        AlertDescription::CertificateExpired => Diagnosis::new(
            detail,
            "clock skew: our certificate is within its dates here, but expired for the other side",
            "compare `date -u` on both sides",
        ),
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => Diagnosis::new(
            detail,
            format!("wrong CA: the store does not trust the authority of our certificate ({issuer})"),
            "have our certificate signed by the authority the store trusts, or add ours to its trusted ones",
        ),
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            Diagnosis::new(detail, "the store wants a client certificate", "give tls.cert and tls.key")
        }
        AlertDescription::NoApplicationProtocol => {
            Diagnosis::new(detail, "the port is not that of an etcd store", "check the port; it is usually 2379")
        }
        _ => Diagnosis::new(detail, "the two sides do not agree on TLS", "look at the log of the store"),
    }
}
