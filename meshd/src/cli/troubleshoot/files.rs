//! The certificate files of this side.

use jiff::Timestamp;

use super::report::{Diagnosis, Report};
use crate::cli::certificate::{self, Certificate};
use crate::config::error::chain;
use crate::config::model::TlsFiles;
use crate::config::tls;

/// What the later steps need to know of the own certificate.
pub(super) struct OwnCertificate {
    /// Its common name: the user in the store.
    pub(super) common_name: String,
    /// Who signed it.
    pub(super) issuer: String,
    /// Why its dates do not hold.
    pub(super) dates: Option<String>,
    /// The authorities the other side is verified against.
    pub(super) authorities: Vec<Certificate>,
}

/// Looks at the three files.
pub(super) fn check(report: &mut Report, files: &TlsFiles, readers: &[String]) -> OwnCertificate {
    let now = Timestamp::now();
    let authorities = authorities(report, files, now);
    let mut own = OwnCertificate { common_name: String::new(), issuer: String::new(), dates: None, authorities };
    let target = files.cert.display().to_string();
    if let Err(error) = tls::check_pair(files) {
        let hint = "issue a new pair with `meshd cert issue`, or correct the paths";
        report.fail("certificate", &target, Diagnosis::new(chain(&error), "certificate or key file is unusable", hint));
    }
    let leaf = match certificate::read(&files.cert).map(|certificates| certificates.into_iter().next()) {
        Ok(Some(leaf)) => leaf,
        // The pair check has said it.
        Ok(None) | Err(_) => return own,
    };
    own.common_name = leaf.common_name.clone().unwrap_or_default();
    own.issuer.clone_from(&leaf.issuer);
    if let Err(message) = leaf.check_dates(now) {
        let (cause, hint) = if now > leaf.not_after {
            (
                "expired certificate: this side's certificate is too old",
                "issue a new one; it is taken up without a restart",
            )
        } else {
            (
                "clock skew: this node's clock is behind, or the certificate was made for later",
                "compare `date -u` with the certificate's dates",
            )
        };
        report.fail("certificate", &target, Diagnosis::new(&message, cause, hint));
        own.dates = Some(message);
    } else if readers.contains(&own.common_name) {
        report.ok(
            "certificate",
            &target,
            format!("CN={}, signed by {}, valid until {}", own.common_name, own.issuer, leaf.not_after),
        );
    } else {
        report.warn(
            "certificate",
            &target,
            Diagnosis::new(
                format!("CN={}, signed by {}, valid until {}", own.common_name, own.issuer, leaf.not_after),
                format!("unusual CN: stores know their readers as {}", readers.join(" or ")),
                format!(
                    "if access is denied: `meshd cert issue --cn {}`",
                    readers.last().map_or("remote", String::as_str)
                ),
            ),
        );
    }
    own
}

fn authorities(report: &mut Report, files: &TlsFiles, now: Timestamp) -> Vec<Certificate> {
    let target = files.ca.display().to_string();
    match certificate::read(&files.ca) {
        Ok(authorities) => {
            for authority in &authorities {
                match authority.check_dates(now) {
                    Ok(()) => report.ok(
                        "certificate",
                        &target,
                        format!("authority {}, valid until {}", authority.subject, authority.not_after),
                    ),
                    Err(message) => {
                        let cause = "expired certificate: the authority itself is out of its dates";
                        report.fail(
                            "certificate",
                            &target,
                            Diagnosis::new(message, cause, "get the other side's new authority"),
                        );
                    }
                }
            }
            authorities
        }
        Err(message) => {
            let hint = "it must be the authority of the other side's server certificate, in PEM";
            report.fail("certificate", &target, Diagnosis::new(message, "the authority file is unusable", hint));
            Vec::new()
        }
    }
}
