//! What a certificate says, and whether a chain of them holds.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::config::error::chain;
use crate::config::tls;

/// The facts of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Certificate {
    /// Subject, as one line.
    pub(super) subject: String,
    /// Common name of the subject: the user name in a store.
    pub(super) common_name: Option<String>,
    /// Issuer, as one line.
    pub(super) issuer: String,
    /// Serial number in hexadecimal.
    pub(super) serial: String,
    /// Valid from.
    pub(super) not_before: Timestamp,
    /// Valid until.
    pub(super) not_after: Timestamp,
    /// Names and addresses it is for.
    pub(super) subject_alt_names: Vec<String>,
    /// Is it an authority?
    pub(super) is_ca: bool,
    /// What it may be used for: `server`, `client`.
    pub(super) usages: Vec<String>,
    #[serde(skip)]
    der: CertificateDer<'static>,
}

/// Reads every certificate of a PEM file.
pub(super) fn read(path: &Path) -> Result<Vec<Certificate>, String> {
    let certificates = tls::read_certificates(path, "certificate").map_err(|error| chain(&error))?;
    certificates
        .into_iter()
        .map(|der| Certificate::parse(der).map_err(|error| format!("{}: {error}", path.display())))
        .collect()
}

impl Certificate {
    /// Parses a certificate.
    pub(super) fn parse(der: CertificateDer<'static>) -> Result<Self, String> {
        let (_, x509) =
            X509Certificate::from_der(&der).map_err(|error| format!("the certificate cannot be parsed: {error}"))?;
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| error.to_string());
        let common_name =
            x509.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        let facts = Self {
            subject: x509.subject().to_string(),
            common_name,
            issuer: x509.issuer().to_string(),
            serial: x509.raw_serial().iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            }),
            not_before: time(x509.validity().not_before.timestamp())?,
            not_after: time(x509.validity().not_after.timestamp())?,
            subject_alt_names: alt_names(&x509),
            is_ca: x509.is_ca(),
            usages: usages(&x509),
            der: der.clone(),
        };
        Ok(facts)
    }

    /// Is it within its dates?
    pub(super) fn check_dates(&self, now: Timestamp) -> Result<(), String> {
        if now > self.not_after {
            Err(format!("certificate {} expired on {}", self.subject, self.not_after))
        } else if now < self.not_before {
            Err(format!("certificate {} is valid from {} only", self.subject, self.not_before))
        } else {
            Ok(())
        }
    }

    /// Did `issuer` sign it?
    fn is_signed_by(&self, issuer: &Self) -> bool {
        let Ok((_, own)) = X509Certificate::from_der(&self.der) else { return false };
        let Ok((_, other)) = X509Certificate::from_der(&issuer.der) else { return false };
        own.issuer() == other.subject() && own.verify_signature(Some(other.public_key())).is_ok()
    }
}

/// Does a chain (leaf first) lead to one of the authorities, every link of it within its dates?
pub(super) fn verify(certificates: &[Certificate], authorities: &[Certificate], now: Timestamp) -> Result<(), String> {
    let Some(leaf) = certificates.first() else { return Err("there is no certificate".to_owned()) };
    let mut current = leaf;
    // Every intermediate is used at most once, so the walk ends.
    for _ in 0..=certificates.len() {
        current.check_dates(now)?;
        if let Some(authority) =
            authorities.iter().find(|authority| *authority == current || current.is_signed_by(authority))
        {
            return authority.check_dates(now);
        }
        let next = certificates.iter().find(|other| *other != current && other.is_ca && current.is_signed_by(other));
        match next {
            Some(next) => current = next,
            None => break,
        }
    }
    let names: Vec<&str> = authorities.iter().map(|authority| authority.subject.as_str()).collect();
    Err(if authorities.iter().any(|authority| authority.subject == current.issuer) {
        format!("{} was signed by another authority of the same name {}", current.subject, current.issuer)
    } else {
        format!("{} was signed by {}, not by {}", current.subject, current.issuer, names.join(" or "))
    })
}

fn alt_names(x509: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = x509.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(bytes), _) => IpAddr::from(bytes).to_string(),
            (_, Ok(bytes)) => IpAddr::from(bytes).to_string(),
            (Err(_), Err(_)) => name.to_string(),
        },
        other => other.to_string(),
    };
    names.value.general_names.iter().map(text).collect()
}

fn usages(x509: &X509Certificate<'_>) -> Vec<String> {
    let mut usages = Vec::new();
    for extension in x509.extensions() {
        if let ParsedExtension::ExtendedKeyUsage(usage) = extension.parsed_extension() {
            if usage.server_auth || usage.any {
                usages.push("server".to_owned());
            }
            if usage.client_auth || usage.any {
                usages.push("client".to_owned());
            }
        }
    }
    usages
}
