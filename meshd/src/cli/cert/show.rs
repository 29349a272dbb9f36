//! `meshd cert show`: what certificates say, and whether an authority signed them.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use crate::cli::certificate::{self, Certificate};
use crate::cli::options::{Format, OutputOptions};
use crate::cli::output;

/// Show certificates: subject, issuer, names, dates; with --ca also whether it signed them
#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    /// PEM files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Verify against this authority; exit 1 when a file does not hold
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    output: OutputOptions,
}

/// A file and its certificates, leaf first.
#[derive(Serialize)]
struct FileView {
    file: String,
    certificates: Vec<Certificate>,
    /// Does the chain hold? `null` without --ca.
    verified: Option<bool>,
    /// Why not.
    error: Option<String>,
}

impl Show {
    pub(super) fn run(self) -> Result<(), Failure> {
        let now = Timestamp::now();
        let authorities = match &self.ca {
            Some(path) => Some(certificate::read(path).map_err(Failure::message)?),
            None => None,
        };
        let mut views = Vec::new();
        for path in &self.files {
            let certificates = certificate::read(path)
                .map_err(|error| Failure::message(error).hint("give files with a -----BEGIN CERTIFICATE----- block"))?;
            let result = authorities.as_deref().map(|authorities| certificate::verify(&certificates, authorities, now));
            views.push(FileView {
                file: path.display().to_string(),
                certificates,
                verified: result.as_ref().map(Result::is_ok),
                error: result.and_then(Result::err),
            });
        }
        match self.output.output {
            Format::Table | Format::Wide => output::text(&page(&views, now))?,
            Format::Json => output::json(&views)?,
            Format::Yaml => output::yaml(&views)?,
        }
        if views.iter().any(|view| view.verified == Some(false)) { Err(Failure::Negative) } else { Ok(()) }
    }
}

fn page(views: &[FileView], now: Timestamp) -> String {
    let mut page = String::new();
    for view in views {
        for certificate in &view.certificates {
            let state = match certificate.check_dates(now) {
                Ok(()) => format!("{} days left", (certificate.not_after.as_second() - now.as_second()) / 86_400),
                Err(_) if now > certificate.not_after => "expired".to_owned(),
                Err(_) => "not valid yet".to_owned(),
            };
            let or_none = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
            let _ = writeln!(
                page,
                "{}\n  subject:  {}\n  issuer:   {}\n  serial:   {}\n  valid:    {} to {} ({state})\n  names:    {}\n  use:      {}",
                view.file,
                certificate.subject,
                certificate.issuer,
                certificate.serial,
                certificate.not_before,
                certificate.not_after,
                or_none(&certificate.subject_alt_names),
                if certificate.is_ca { "authority".to_owned() } else { or_none(&certificate.usages) },
            );
        }
        match (&view.verified, &view.error) {
            (Some(true), _) => page.push_str("  verified: yes\n"),
            (Some(false), Some(error)) => {
                let _ = writeln!(page, "  verified: no, {error}");
            }
            (Some(false), None) | (None, _) => {}
        }
    }
    page
}
