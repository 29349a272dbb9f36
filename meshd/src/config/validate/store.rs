//! Where the own cluster publishes itself, and who may read it.

use std::collections::{BTreeMap, BTreeSet};

use meshd_core::id::ClusterName;

use super::Validator;
use crate::config::model::{Endpoint, Peer, StoreConfig, StoreUser, UserRole};
use crate::config::raw::{RawStore, RawUser, SocketText, StoreMode};

/// Where the embedded store listens unless `store.listen` says otherwise.
const LISTEN: &str = "0.0.0.0:2379";

impl Validator<'_> {
    pub(super) fn store(&mut self, raw: RawStore, own: Option<&ClusterName>, peers: &[Peer]) -> Option<StoreConfig> {
        let Some(mode) = raw.mode else {
            self.missing("store.mode", "store: {mode: embedded} (or mode: etcd with endpoints)");
            return None;
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls("store.tls", tls));
        match mode {
            StoreMode::Etcd => {
                if raw.endpoints.is_empty() {
                    self.missing("store.endpoints", "endpoints: [\"https://ADDRESS:2379\"]");
                }
                self.only_with("store.listen", raw.listen.is_some(), "embedded");
                self.only_with("store.users", !raw.users.is_empty(), "embedded");
                let endpoints = self.endpoints("store.endpoints", &raw.endpoints, raw.tls.is_some());
                if raw.tls.is_none() && endpoints.iter().any(Endpoint::is_tls) {
                    self.error("store.tls", "https needs certificates", "add tls: {ca: FILE, cert: FILE, key: FILE}");
                }
                Some(StoreConfig::Etcd { endpoints, tls })
            }
            StoreMode::Embedded => {
                self.only_with("store.endpoints", !raw.endpoints.is_empty(), "etcd");
                let text = raw.listen.as_ref().map_or(LISTEN, SocketText::as_str);
                let listen = self.socket_address("store.listen", text, "0.0.0.0:2379 or [::]:2379")?;
                if raw.tls.is_none() && !listen.ip().is_loopback() {
                    self.error(
                        "store.tls",
                        format!("a store on {listen} needs certificates"),
                        "make some with `meshd cert init` and `meshd cert issue`, or listen on 127.0.0.1:2379",
                    );
                }
                let users = self.users(raw.users, own, peers);
                Some(StoreConfig::Embedded { listen, tls, users })
            }
        }
    }

    pub(super) fn only_with(&mut self, key: &str, given: bool, mode: &str) {
        if given {
            self.error(
                key,
                format!("only possible with store.mode: {mode}"),
                format!("remove {key}, or set store.mode: {mode}"),
            );
        }
    }

    pub(super) fn users(&mut self, raw: Vec<RawUser>, own: Option<&ClusterName>, peers: &[Peer]) -> Vec<StoreUser> {
        let mut users: BTreeMap<String, UserRole> = BTreeMap::new();
        if let Some(own) = own {
            users.insert(format!("admin-{own}"), UserRole::Root);
            users.insert(format!("node-{own}"), UserRole::Node);
            users.insert(format!("local-{own}"), UserRole::Local);
        }
        users.insert("remote".to_owned(), UserRole::Remote);
        users.extend(peers.iter().map(|peer| (format!("remote-{}", peer.cluster), UserRole::Remote)));
        let mut seen = BTreeSet::new();
        for (i, user) in raw.into_iter().enumerate() {
            let key = format!("store.users[{i}]");
            let (Some(name), Some(role)) = (user.name, user.role) else {
                self.error(&key, "a user needs name and role", "write {name: remote-east, role: remote}");
                continue;
            };
            if name.as_str().is_empty() {
                self.error(&format!("{key}.name"), "the name is empty", "write the CN of the certificate");
            } else if !seen.insert(name.0.clone()) {
                self.error(
                    &format!("{key}.name"),
                    format!("user {} is there twice", name.as_str()),
                    "write each user once",
                );
            } else {
                users.insert(name.0, role);
            }
        }
        users.into_iter().map(|(name, role)| StoreUser { name, role }).collect()
    }
}
