//! `meshd cert issue`: a certificate from the authority of a folder.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::{CA_CERT, CA_KEY, Failure, parameters, write_pair};
use crate::cli::output;

/// Issue a certificate from DIR/ca.crt: DIR/NAME.crt and DIR/NAME.key
///
/// The common name is the user name in a store: `node-CLUSTER` for the nodes of a cluster, `remote-CLUSTER` (or
/// `remote`) for a cluster that reads others, `admin-CLUSTER` for everything.
#[derive(Debug, Args)]
pub(in crate::cli) struct Issue {
    /// Folder of the authority
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Common name
    #[arg(long, value_name = "CN")]
    cn: String,
    /// Address or DNS name the certificate is for (repeatable)
    #[arg(long, value_name = "ADDRESS|NAME")]
    san: Vec<String>,
    /// For a server; without --server and --client it is for both
    #[arg(long)]
    server: bool,
    /// For a client
    #[arg(long)]
    client: bool,
    /// How long it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 1095, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Name of the files, without extension [default: the common name]
    #[arg(long, value_name = "NAME")]
    out: Option<String>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

impl Issue {
    pub(super) fn run(self) -> Result<(), Failure> {
        let name = self.out.as_deref().unwrap_or(&self.cn);
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name == "ca" {
            return Err(Failure::usage(
                format!("{name:?} cannot be a file name here"),
                "give another name with --out NAME",
            ));
        }
        if self.server && self.san.is_empty() {
            return Err(Failure::usage(
                "a server certificate without addresses is accepted by nobody",
                "add --san ADDRESS for every address or name it is reached by",
            ));
        }
        let mut parameters = parameters(&self.cn, self.days)?;
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let both = self.server == self.client;
        if self.server || both {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.client || both {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        parameters.subject_alt_names = self.san.iter().map(|text| alt_name(text)).collect::<Result<_, _>>()?;
        let issuer = self.issuer()?;
        let failed = |error: rcgen::Error| Failure::message(format!("failed to issue the certificate: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.signed_by(&key, &issuer).map_err(failed)?;
        let cert_path = self.dir.join(format!("{name}.crt"));
        let key_path = self.dir.join(format!("{name}.key"));
        write_pair((&cert_path, &certificate.pem()), (&key_path, &key.serialize_pem()), self.force)?;
        output::text(&format!("{}\n{}\n", cert_path.display(), key_path.display()))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Failure> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            fs::read_to_string(&path).map_err(|error| {
                Failure::message(format!("failed to read the authority's {}: {error}", path.display()))
                    .hint(format!("make one with `meshd cert init --dir {}`", self.dir.display()))
            })
        };
        let (cert, key) = (read(CA_CERT)?, read(CA_KEY)?);
        let key = KeyPair::from_pem(&key).map_err(|error| {
            Failure::message(format!("{} holds no usable key: {error}", self.dir.join(CA_KEY).display()))
        })?;
        Issuer::from_ca_cert_pem(&cert, key).map_err(|error| {
            Failure::message(format!("{} holds no usable certificate: {error}", self.dir.join(CA_CERT).display()))
        })
    }
}

fn alt_name(text: &str) -> Result<SanType, Failure> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    let bad = || {
        Failure::usage(
            format!("{text:?} is neither an address nor a DNS name"),
            "write for instance --san 172.18.0.3 --san east.mesh.cilium.io",
        )
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(bad());
    }
    text.try_into().map(SanType::DnsName).map_err(|_| bad())
}
