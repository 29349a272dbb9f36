//! Which flows somebody wants to see.
//!
//! A filter has a list for each question. An empty list asks nothing; of several words in a list one must fit, and every list that
//! asks must. What names an end of a flow (cluster, identity, address, port) fits when any end does, before translation or after.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::flow_view::{FlowEndView, FlowKind, FlowView, Verdict};

/// Which flows are wanted; also what a query of the API is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// What is told.
    #[serde(rename = "type", skip_serializing_if = "List::is_empty")]
    pub kind: List<FlowKind>,
    /// What was decided.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub verdict: List<Verdict>,
    /// Why.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub reason: List<String>,
    /// Cluster of an end.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub cluster: List<String>,
    /// Identity of an end.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub identity: List<u32>,
    /// Address or prefix of an end.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub address: List<Addresses>,
    /// Port of an end.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub port: List<u16>,
    /// Protocol.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub protocol: List<String>,
    /// Service, by name or `namespace/name`.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub service: List<String>,
    /// Workload of an end, by name or `namespace/name`.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub workload: List<String>,
}

impl Filter {
    /// True when the flow is wanted.
    #[must_use]
    pub fn fits(&self, flow: &FlowView) -> bool {
        let ends = || {
            let translated = flow.translated.iter().flat_map(|to| [&to.source, &to.destination]);
            [&flow.source, &flow.destination].into_iter().chain(translated)
        };
        let any_end = |fits: &dyn Fn(&FlowEndView) -> bool| ends().any(fits);
        let named = |wanted: &String, namespace: Option<&String>, name: Option<&String>| match wanted.split_once('/') {
            Some((space, base)) => namespace.is_some_and(|it| it == space) && name.is_some_and(|it| it == base),
            None => name == Some(wanted),
        };
        self.kind.fits(|kind| *kind == flow.kind)
            && self.verdict.fits(|verdict| *verdict == flow.verdict)
            && self.reason.fits(|reason| *reason == flow.reason)
            && self.protocol.fits(|protocol| *protocol == flow.protocol)
            && self.cluster.fits(|cluster| any_end(&|end| end.cluster.as_ref() == Some(cluster)))
            && self.identity.fits(|identity| any_end(&|end| end.identity == Some(*identity)))
            && self
                .address
                .fits(|wanted| any_end(&|end| end.address.is_some_and(|address| wanted.0.contains(&address))))
            && self.port.fits(|port| any_end(&|end| end.port == *port))
            && self.workload.fits(|wanted| any_end(&|end| named(wanted, end.namespace.as_ref(), end.workload.as_ref())))
            && self.service.fits(|wanted| {
                let service = flow.service.as_ref();
                service.is_some_and(|service| named(wanted, service.namespace.as_ref(), service.name.as_ref()))
            })
    }
}

/// Words of which one must fit; in a query they are joined by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> List<T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn fits(&self, fits: impl Fn(&T) -> bool) -> bool {
        self.is_empty() || self.0.iter().any(fits)
    }
}

impl<T: ToString> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

impl<'de, T: Word> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let word = |word: &str| T::read(word).map_err(serde::de::Error::custom);
        text.split(',').filter(|word| !word.is_empty()).map(word).collect::<Result<_, _>>().map(Self)
    }
}

/// What a list can be of.
pub trait Word: Sized {
    /// Reads one word.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(word: &str) -> Result<Self, String>;
}

impl Word for String {
    fn read(word: &str) -> Result<Self, String> {
        Ok(word.to_owned())
    }
}

impl Word for u32 {
    fn read(word: &str) -> Result<Self, String> {
        word.parse().map_err(|_| format!("{word:?} is not a number"))
    }
}

impl Word for u16 {
    fn read(word: &str) -> Result<Self, String> {
        word.parse().map_err(|_| format!("{word:?} is not a port"))
    }
}

impl Word for FlowKind {
    fn read(word: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.word() == word)
            .ok_or_else(|| format!("{word:?} is not a type of flow"))
    }
}

impl Word for Verdict {
    fn read(word: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|verdict| verdict.word() == word)
            .ok_or_else(|| format!("{word:?} is not a verdict"))
    }
}

/// An address, or all of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses(pub IpNet);

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Word for Addresses {
    fn read(word: &str) -> Result<Self, String> {
        let prefix = match word.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => word.parse().map_err(|_| format!("{word:?} is neither an address nor a prefix"))?,
        };
        Ok(Self(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::flow;

    fn filter(json: serde_json::Value) -> Filter {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn every_list_that_asks_must_fit_and_of_a_list_one_word() {
        let flow = flow();
        for (query, fits) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"type": "new"}), true),
            (serde_json::json!({"type": "drop,close"}), false),
            (serde_json::json!({"type": "drop,new", "verdict": "forwarded"}), true),
            (serde_json::json!({"type": "new", "verdict": "dropped"}), false),
            (serde_json::json!({"reason": "new_connection"}), true),
            (serde_json::json!({"reason": "no_backend"}), false),
            // Ends before and after translation.
            (serde_json::json!({"cluster": "east"}), true),
            (serde_json::json!({"cluster": "north"}), false),
            (serde_json::json!({"identity": "70001"}), true),
            (serde_json::json!({"identity": "7"}), false),
            (serde_json::json!({"address": "10.2.0.80"}), true),
            (serde_json::json!({"address": "10.1.0.0/16"}), true),
            (serde_json::json!({"address": "10.9.0.0/16,fd00::/8"}), false),
            (serde_json::json!({"port": "8080"}), true),
            (serde_json::json!({"port": "81,82"}), false),
            (serde_json::json!({"protocol": "tcp"}), true),
            (serde_json::json!({"protocol": "udp"}), false),
            (serde_json::json!({"service": "webpod"}), true),
            (serde_json::json!({"service": "default/webpod"}), true),
            (serde_json::json!({"service": "other/webpod"}), false),
            (serde_json::json!({"workload": "default/client"}), true),
            (serde_json::json!({"workload": "webpod-2"}), true),
            (serde_json::json!({"workload": "webpod"}), false),
        ] {
            assert_eq!(filter(query.clone()).fits(&flow), fits, "{query}");
        }
    }

    #[test]
    fn filters_are_queries_and_back() {
        let asked = serde_json::json!({"type": "new,drop", "address": "10.0.0.1/32,fd00::/8", "port": "80", "service": "default/web"});
        assert_eq!(serde_json::to_value(filter(asked.clone())).unwrap(), asked);
        for (bad, message) in [
            (serde_json::json!({"type": "often"}), "not a type of flow"),
            (serde_json::json!({"address": "10.0.0"}), "neither an address nor a prefix"),
            (serde_json::json!({"port": "65536"}), "not a port"),
        ] {
            let error = serde_json::from_value::<Filter>(bad).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
