//! Files of Cilium's clustermesh folder: the client configuration of one remote store each (the YAML form of
//! the Go etcd client, plus host aliases).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::error::Finding;
use super::model::{Endpoint, TlsFiles};
use super::tree::{Format, Node, Tree};

/// What makes a file of the folder a remote cluster.
const MARK: &str = "endpoints:";

/// Keys that are read.
const ENDPOINTS: &str = "endpoints";
const CA: &str = "trusted-ca-file";
const CERT: &str = "cert-file";
const KEY: &str = "key-file";
const ALIASES: &str = "cilium-host-aliases";

/// Keys of the Go client that are about how it dials; we have our own ways.
const IGNORED: [&str; 11] = [
    "dial-timeout",
    "keep-alive-time",
    "keep-alive-timeout",
    "auto-sync-interval",
    "permit-without-stream",
    "reject-old-cluster",
    "max-call-send-msg-size",
    "max-call-recv-msg-size",
    "backoff-wait-between",
    "backoff-jitter-fraction",
    "max-unary-retries",
];

/// A remote store as Cilium describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumClient {
    /// Its members.
    pub endpoints: Vec<Endpoint>,
    /// The certificate to use there; `None` for `http`.
    pub tls: Option<TlsFiles>,
    /// Addresses of names in `endpoints`.
    pub host_aliases: BTreeMap<String, Vec<IpAddr>>,
    /// What is accepted, but somebody should look at.
    pub warnings: Vec<Finding>,
}

/// Is a file with this content a remote cluster? Others in the folder are certificates.
#[must_use]
pub fn is_client(content: &str) -> bool {
    content.contains(MARK)
}

/// Reads the file at `path` with its content.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(path: &Path, content: &str) -> Result<CiliumClient, Vec<Finding>> {
    let tree = Node::parse_as(Format::Yaml, path, content).map_err(|finding| vec![finding])?;
    let mut reader = Reader { path, errors: Vec::new(), warnings: Vec::new() };
    let client = reader.client(&tree);
    let locate = |mut finding: Finding| {
        finding.origin = finding.origin.or_else(|| tree.origin_of(&finding.key)).or_else(|| tree.origin.clone());
        finding
    };
    match client {
        Some(mut client) if reader.errors.is_empty() => {
            client.warnings = reader.warnings.into_iter().map(locate).collect();
            Ok(client)
        }
        Some(_) | None => Err(reader.errors.into_iter().map(locate).collect()),
    }
}

/// The text of such a file.
#[must_use]
pub fn print(endpoints: &[Endpoint], tls: Option<&TlsFiles>) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!("{MARK}\n");
    for endpoint in endpoints {
        text.push_str(&format!("- {}\n", quote(&endpoint.to_string())));
    }
    if let Some(tls) = tls {
        for (key, path) in [(CA, &tls.ca), (KEY, &tls.key), (CERT, &tls.cert)] {
            text.push_str(&format!("{key}: {}\n", quote(&path.display().to_string())));
        }
    }
    text
}

struct Reader<'a> {
    path: &'a Path,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Reader<'_> {
    fn client(&mut self, tree: &Node) -> Option<CiliumClient> {
        let Tree::Table(table) = &tree.value else {
            self.errors.push(Finding::new("", "the file does not hold a table"));
            return None;
        };
        let mut files = BTreeMap::new();
        let mut client =
            CiliumClient { endpoints: Vec::new(), tls: None, host_aliases: BTreeMap::new(), warnings: Vec::new() };
        for (key, node) in table {
            match key.as_str() {
                ENDPOINTS => client.endpoints = self.endpoints(node),
                CA | CERT | KEY => {
                    files.extend(text(node).map(|path| (key.as_str(), self.file(&path))));
                }
                ALIASES => client.host_aliases = self.aliases(node),
                "insecure-skip-tls-verify" if is_true(node) => self.errors.push(
                    Finding::new(key, "certificates are always verified")
                        .hint("remove the key and give the right trusted-ca-file"),
                ),
                "username" | "password" => self.errors.push(
                    Finding::new(key, "stores are used by certificate, not by password")
                        .hint("remove the key and give cert-file and key-file"),
                ),
                // Whether TLS is used follows from the scheme of the endpoints.
                "insecure-transport" | "insecure-skip-tls-verify" => {}
                other if IGNORED.contains(&other) => {}
                other => self
                    .warnings
                    .push(Finding::new(other, "unknown key, ignored").hint("remove it if it is a misspelling")),
            }
        }
        if client.endpoints.is_empty() && self.errors.is_empty() {
            self.errors
                .push(Finding::new(ENDPOINTS, "there is no endpoint").hint("write endpoints: [\"https://NAME:2379\"]"));
        }
        client.tls = self.tls(&files, client.endpoints.iter().any(Endpoint::is_tls));
        Some(client)
    }

    fn endpoints(&mut self, node: &Node) -> Vec<Endpoint> {
        let Tree::List(items) = &node.value else {
            self.errors
                .push(Finding::new(ENDPOINTS, "wrong type: expected a list of URLs").hint("write - https://NAME:2379"));
            return Vec::new();
        };
        let mut endpoints = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match text(item).unwrap_or_default().parse::<Endpoint>() {
                Ok(endpoint) if endpoints.contains(&endpoint) => {}
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.errors.push(
                    Finding::new(format!("{ENDPOINTS}[{i}]"), message).hint("write a URL such as https://NAME:2379"),
                ),
            }
        }
        endpoints
    }

    fn tls(&mut self, files: &BTreeMap<&str, PathBuf>, needed: bool) -> Option<TlsFiles> {
        if files.is_empty() && !needed {
            return None;
        }
        for key in [CA, CERT, KEY] {
            if !files.contains_key(key) {
                self.errors.push(
                    Finding::new(key, "required key is missing")
                        .hint(format!("give {CA}, {CERT} and {KEY}, all three")),
                );
            }
        }
        Some(TlsFiles { ca: files.get(CA)?.clone(), cert: files.get(CERT)?.clone(), key: files.get(KEY)?.clone() })
    }

    fn aliases(&mut self, node: &Node) -> BTreeMap<String, Vec<IpAddr>> {
        let mut aliases: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let items = match &node.value {
            Tree::List(items) => items.as_slice(),
            Tree::Table(_) | Tree::Leaf(_) => &[],
        };
        for (i, item) in items.iter().enumerate() {
            let key = format!("{ALIASES}[{i}]");
            let name = item.get("hostname").and_then(text).unwrap_or_default().to_lowercase();
            let ips = match item.get("ips").map(|ips| &ips.value) {
                Some(Tree::List(ips)) => ips.iter().map(|ip| text(ip).and_then(|ip| ip.parse().ok())).collect(),
                Some(Tree::Table(_) | Tree::Leaf(_)) | None => None,
            };
            match ips {
                Some(ips) if !name.is_empty() => {
                    let ips: Vec<IpAddr> = ips;
                    aliases.entry(name).or_default().extend(ips);
                }
                Some(_) | None => {
                    let finding = Finding::new(key, "an alias needs hostname and a list of addresses");
                    self.errors.push(finding.hint("write {hostname: NAME, ips: [ADDRESS]}"));
                }
            }
        }
        aliases
    }

    /// Relative paths start at the folder.
    fn file(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or_else(|| Path::new("")).join(path)
    }
}

fn text(node: &Node) -> Option<String> {
    match &node.value {
        Tree::Leaf(value) => Some(value.to_string()),
        Tree::Table(_) | Tree::List(_) => None,
    }
}

fn is_true(node: &Node) -> bool {
    text(node).is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EAST: &str = "endpoints:\n- https://east.mesh.cilium.io:2379\ntrusted-ca-file: /c/ca.crt\nkey-file: c.key\ncert-file: /c/c.crt\ndial-timeout: 3s\n";

    #[test]
    fn a_file_cilium_writes_is_read() {
        let text = format!(
            "{EAST}cilium-host-aliases:\n- hostname: East.mesh.cilium.io\n  ips: [172.18.0.3, \"fd00::3\"]\nnew-key: 1\n"
        );
        let client = parse(Path::new("/d/east"), &text).unwrap();
        assert_eq!(client.endpoints[0].to_string(), "https://east.mesh.cilium.io:2379");
        let tls = client.tls.unwrap();
        assert_eq!((tls.ca, tls.key), (PathBuf::from("/c/ca.crt"), PathBuf::from("/d/c.key")));
        assert_eq!(client.host_aliases["east.mesh.cilium.io"].len(), 2);
        assert_eq!(client.warnings[0].to_string(), "/d/east:10: new-key: unknown key, ignored");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (text, words) in [
            ("endpoints: []", "/d/east:1: endpoints: there is no endpoint"),
            ("endpoints:\n- 10.0.0.1:2379", "/d/east:2: endpoints[0]: \"10.0.0.1:2379\" is not a URL"),
            ("endpoints: [\"https://a\"]", "cert-file: required key is missing"),
            ("endpoints: [\"http://a\"]\nusername: root", "/d/east:2: username: stores are used by certificate"),
            ("endpoints: [\"http://a\"]\ninsecure-skip-tls-verify: true", "certificates are always verified"),
            ("endpoints: [\"http://a\"]\ncilium-host-aliases: [{hostname: a, ips: [b]}]", "an alias needs hostname"),
            ("endpoints: [", "invalid YAML"),
        ] {
            let errors = parse(Path::new("/d/east"), text).unwrap_err();
            let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(all.contains(words), "{text}\n{all}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let tls = TlsFiles { ca: "/c/ca: x".into(), cert: "/c/c.crt".into(), key: "/c/c.key".into() };
        let endpoints = ["https://[fd00::1]:2379".parse().unwrap()];
        let text = print(&endpoints, Some(&tls));
        assert!(is_client(&text));
        let client = parse(Path::new("/d/east"), &text).unwrap();
        assert_eq!((client.endpoints.as_slice(), client.tls), (endpoints.as_slice(), Some(tls)));
    }
}
