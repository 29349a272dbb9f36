//! `meshd cert init`: an authority.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose};

use super::{CA_CERT, CA_KEY, Failure, parameters, write_pair};
use crate::cli::output;

/// Make a certificate authority: DIR/ca.crt and DIR/ca.key
#[derive(Debug, Args)]
pub(in crate::cli) struct Init {
    /// Folder; made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Common name of the authority
    #[arg(long, value_name = "NAME", default_value = "meshd CA")]
    cn: String,
    /// How long it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace an authority that is there; certificates it issued become worthless
    #[arg(long)]
    force: bool,
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut parameters = parameters(&self.cn, self.days)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let failed = |error: rcgen::Error| Failure::message(format!("failed to make the authority: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.self_signed(&key).map_err(failed)?;
        fs::create_dir_all(&self.dir)
            .map_err(|error| Failure::message(format!("failed to make the folder {}: {error}", self.dir.display())))?;
        let (cert_path, key_path) = (self.dir.join(CA_CERT), self.dir.join(CA_KEY));
        write_pair((&cert_path, &certificate.pem()), (&key_path, &key.serialize_pem()), self.force)?;
        output::text(&format!("{}\n{}\n", cert_path.display(), key_path.display()))
    }
}
