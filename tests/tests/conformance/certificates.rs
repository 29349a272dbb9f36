//! An authority with certificates for one test.

use std::path::{Path, PathBuf};

use meshd_store::ServerTls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use tempfile::TempDir;

/// An authority and a folder with its certificate.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) ca_pem: String,
    pub(super) folder: TempDir,
}

/// A certificate with its key, as files.
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut parameters = named("test authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = parameters.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), &ca_pem).unwrap();
        Self { issuer: Issuer::new(parameters, key), ca_pem, folder }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Certificate and key as PEM.
    pub(super) fn issue(&self, common_name: &str) -> (String, String) {
        let mut parameters = named(common_name);
        parameters.subject_alt_names =
            vec![SanType::IpAddress("127.0.0.1".parse().unwrap()), SanType::DnsName("localhost".try_into().unwrap())];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The same as files.
    pub(super) fn issue_files(&self, common_name: &str) -> Pair {
        let (cert_pem, key_pem) = self.issue(common_name);
        let path = |ending: &str| Path::new(self.folder.path()).join(format!("{common_name}.{ending}"));
        let pair = Pair { cert: path("crt"), key: path("key") };
        std::fs::write(&pair.cert, cert_pem).unwrap();
        std::fs::write(&pair.key, key_pem).unwrap();
        pair
    }

    /// What a store shows to clients of this authority.
    pub(super) fn server(&self) -> ServerTls {
        let (cert_pem, key_pem) = self.issue("clustermesh-apiserver.cilium.io");
        ServerTls {
            cert_pem: cert_pem.into_bytes(),
            key_pem: key_pem.into_bytes(),
            client_ca_pem: self.ca_pem.clone().into_bytes(),
        }
    }
}

fn named(common_name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters
}
