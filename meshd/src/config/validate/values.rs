//! Single values: addresses, prefixes, endpoints, certificate files.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::Validator;
use crate::config::model::{Endpoint, TlsFiles};
use crate::config::raw::{Address, EndpointText, PrefixText, RawTls};
use crate::config::tls;

impl Validator<'_> {
    pub(super) fn address(&mut self, key: &str, text: &Address) -> Option<IpAddr> {
        let address = match text.as_str().parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => {
                let hint = match text.as_str().parse::<IpNet>() {
                    Ok(prefix) => format!("write {}, without prefix length", prefix.addr()),
                    Err(_) => "write an address such as 172.18.0.5 or fd00::5".to_owned(),
                };
                self.error(key, format!("{:?} is not an address", text.as_str()), hint);
                return None;
            }
        };
        if let Some(what) = unusable(address) {
            self.error(key, format!("{address} is {what}"), "write an address of one machine");
            return None;
        }
        Some(address)
    }

    pub(super) fn addresses(&mut self, key: &str, texts: &[Address]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let Some(address) = self.address(&key, text) else { continue };
            if addresses.contains(&address) {
                self.error(&key, format!("{address} is there twice"), "write each address once");
            } else {
                addresses.push(address);
            }
        }
        addresses
    }

    pub(super) fn prefix(&mut self, key: &str, text: &PrefixText) -> Option<IpNet> {
        let prefix = match text.as_str().parse::<IpNet>() {
            Ok(prefix) => prefix,
            Err(_) => {
                let hint = match text.as_str().parse::<IpAddr>() {
                    Ok(address) => format!("add a length; one address alone is {}", IpNet::from(address)),
                    Err(_) => "write address/length such as 10.0.1.0/24 or fd00:1::/64".to_owned(),
                };
                self.error(key, format!("{:?} is not a prefix", text.as_str()), hint);
                return None;
            }
        };
        if prefix != prefix.trunc() {
            self.error(key, format!("{prefix} has host bits set"), format!("write {}", prefix.trunc()));
            return None;
        }
        if prefix.prefix_len() > 0
            && let Some(what) = unusable(prefix.addr())
        {
            self.error(key, format!("{prefix} is {what}"), "write a unicast prefix");
            return None;
        }
        Some(prefix)
    }

    pub(super) fn prefixes(&mut self, key: &str, texts: &[PrefixText]) -> Vec<IpNet> {
        let mut prefixes = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            prefixes.extend(self.prefix(&format!("{key}[{i}]"), text));
        }
        prefixes
    }

    pub(super) fn socket_address(&mut self, key: &str, text: &str, example: &str) -> Option<SocketAddr> {
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let message = format!("{text:?} is not an address with a port");
                self.error(key, message, format!("write for instance {example}"));
                None
            }
        }
    }

    pub(super) fn endpoints(&mut self, key: &str, raw: &[EndpointText], has_tls: bool) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (i, text) in raw.iter().enumerate() {
            let key = format!("{key}[{i}]");
            match text.as_str().parse::<Endpoint>() {
                Ok(endpoint) if endpoints.contains(&endpoint) => {
                    self.error(&key, format!("{endpoint} is there twice"), "write each endpoint once");
                }
                Ok(endpoint) => {
                    if !endpoint.is_tls() && has_tls {
                        self.error(&key, format!("{endpoint} is not encrypted, but tls is given"), "write https://");
                    } else if !endpoint.is_tls() && !endpoint.is_loopback() {
                        self.warn(
                            &key,
                            format!("{endpoint} is neither encrypted nor authenticated"),
                            "use https and certificates (`meshd cert init`)",
                        );
                    }
                    endpoints.push(endpoint);
                }
                Err(message) => self.error(&key, message, "write a URL such as https://172.18.0.3:2379"),
            }
        }
        endpoints
    }

    pub(super) fn tls(&mut self, key: &str, raw: &RawTls) -> Option<TlsFiles> {
        let parts = [("ca", &raw.ca), ("cert", &raw.cert), ("key", &raw.key)];
        for (name, part) in parts {
            if part.is_none() {
                self.error(&format!("{key}.{name}"), "required key is missing", "give ca, cert and key, all three");
            }
        }
        let files = TlsFiles {
            ca: self.path(raw.ca.as_ref()?),
            cert: self.path(raw.cert.as_ref()?),
            key: self.path(raw.key.as_ref()?),
        };
        self.errors.extend(tls::check_files(key, &files));
        Some(files)
    }
}

/// Why an address cannot be one machine's.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("multicast");
    }
    if address.is_loopback() {
        return Some("loopback");
    }
    match address {
        IpAddr::V4(address) if address.is_broadcast() => Some("broadcast"),
        IpAddr::V4(address) if address.octets()[0] == 0 || address.octets()[0] >= 240 => Some("reserved"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 form"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
