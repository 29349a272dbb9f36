//! The decision: may this user touch all of these keys?

use std::collections::BTreeMap;

use super::{AuthConfig, PermissionKind, ROOT_ROLE};
use crate::engine::{EngineError, KeySpan};

/// What one user may do, with touching and overlapping spans merged, so that a request may cross the border between
/// two permissions but never a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    root: bool,
    read: Vec<KeySpan>,
    write: Vec<KeySpan>,
}

impl Access {
    /// May do everything.
    #[must_use]
    pub fn root() -> Self {
        Self { root: true, ..Self::default() }
    }

    /// Merges permissions.
    pub fn from_permissions<'a>(permissions: impl IntoIterator<Item = (&'a KeySpan, PermissionKind)> + Clone) -> Self {
        let of = |allows: fn(PermissionKind) -> bool| {
            merge(
                permissions
                    .clone()
                    .into_iter()
                    .filter(|(_, kind)| allows(*kind))
                    .map(|(span, _)| span.clone())
                    .collect(),
            )
        };
        Self { root: false, read: of(PermissionKind::reads), write: of(PermissionKind::writes) }
    }

    /// True for root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// True if any key may be written.
    #[must_use]
    pub fn writes_anything(&self) -> bool {
        self.root || !self.write.is_empty()
    }

    /// True if every key of `span` may be read.
    #[must_use]
    pub fn reads(&self, span: &KeySpan) -> bool {
        self.root || covers(&self.read, span)
    }

    /// True if every key of `span` may be written.
    #[must_use]
    pub fn writes(&self, span: &KeySpan) -> bool {
        self.root || covers(&self.write, span)
    }
}

/// Users and roles in the form requests are checked with.
#[derive(Clone, Debug)]
pub struct AuthTable {
    config: AuthConfig,
    access: BTreeMap<String, Access>,
    revision: u64,
}

impl AuthTable {
    /// Works out what each user may do. A role that is not defined allows nothing.
    #[must_use]
    pub fn new(config: AuthConfig, revision: u64) -> Self {
        let mut access = BTreeMap::new();
        for user in config.users.values() {
            let roles = || user.roles.iter().filter_map(|role| config.roles.get(role));
            let allowed = if roles().any(|role| role.name == ROOT_ROLE) {
                Access::root()
            } else {
                let permissions: Vec<_> = roles()
                    .flat_map(|role| role.permissions.iter().map(|permission| (&permission.span, permission.kind)))
                    .collect();
                Access::from_permissions(permissions)
            };
            access.insert(user.name.clone(), allowed);
        }
        Self { config, access, revision }
    }

    /// What `user` may do.
    ///
    /// # Errors
    /// As in etcd, a certificate without a common name is "user name is empty" and an unknown one is "permission
    /// denied".
    pub fn access(&self, user: &str) -> Result<&Access, EngineError> {
        if user.is_empty() {
            return Err(EngineError::UserEmpty);
        }
        self.access.get(user).ok_or(EngineError::PermissionDenied)
    }

    /// The users and roles it was made from.
    #[must_use]
    pub fn config(&self) -> &AuthConfig {
        &self.config
    }

    /// Counts reloads.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

fn covers(allowed: &[KeySpan], span: &KeySpan) -> bool {
    // The spans are disjoint and in order: only the last one that starts in time can contain the request.
    let candidates = allowed.partition_point(|candidate| candidate.start <= span.start);
    candidates > 0 && !span.is_empty() && allowed[candidates - 1].contains_span(span)
}

fn merge(mut spans: Vec<KeySpan>) -> Vec<KeySpan> {
    spans.retain(|span| !span.is_empty());
    spans.sort_unstable();
    let mut merged: Vec<KeySpan> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| span.start <= *end) => {
                last.end = match (last.end.take(), span.end) {
                    (Some(own), Some(other)) => Some(own.max(other)),
                    _ => None,
                };
            }
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> AuthTable {
        AuthTable::new(AuthConfig::standard("west", ["east"]), 1)
    }

    #[test]
    fn a_remote_reads_state_but_no_cache_and_writes_nothing() {
        let table = table();
        let remote = table.access("remote-east").unwrap();
        assert!(remote.reads(&KeySpan::prefix(b"cilium/state/nodes/v1/west/")));
        assert!(remote.reads(&KeySpan::prefix(b"cilium/.heartbeat")));
        assert!(remote.reads(&KeySpan::single(b"cilium/cluster-config/west")));
        assert!(!remote.reads(&KeySpan::single(b"cilium/cluster-config/east")));
        assert!(!remote.reads(&KeySpan::prefix(b"cilium/cluster-config/west")));
        assert!(!remote.reads(&KeySpan::prefix(b"cilium/cache/")));
        assert!(!remote.reads(&KeySpan::prefix(b"cilium/")));
        assert!(!remote.reads(&KeySpan::all()));
        assert!(!remote.writes_anything() && !remote.is_root());
    }

    #[test]
    fn a_node_writes_records_of_its_own_cluster_only() {
        let table = table();
        let node = table.access("node-west").unwrap();
        assert!(node.writes(&KeySpan::single(b"cilium/state/nodes/v1/west/west-worker")));
        assert!(node.writes(&KeySpan::single(b"cilium/state/ip/v1/default/10.0.0.1")));
        assert!(!node.writes(&KeySpan::single(b"cilium/state/nodes/v1/east/x")));
        assert!(!node.writes(&KeySpan::single(b"cilium/cluster-config/west")));
        assert!(!node.writes(&KeySpan::single(b"cilium/.heartbeat")));
        assert!(node.reads(&KeySpan::prefix(b"cilium/")));
    }

    #[test]
    fn unknown_and_nameless_users_are_refused_as_etcd_does() {
        let table = table();
        assert_eq!(table.access("mallory"), Err(EngineError::PermissionDenied));
        assert_eq!(table.access(""), Err(EngineError::UserEmpty));
        assert!(table.access("admin-west").unwrap().is_root());
        assert!(table.access("admin-east").is_err());
    }

    #[test]
    fn adjacent_spans_merge_and_gaps_do_not() {
        let spans = [
            KeySpan::from_wire(b"c", b"d"),
            KeySpan::from_wire(b"a", b"b"),
            KeySpan::from_wire(b"b", b"c"),
            KeySpan::from_wire(b"e", b"f"),
            KeySpan::single(b"f"),
            KeySpan::from_wire(b"x", b"\0"),
            KeySpan::from_wire(b"y", b"z"),
        ];
        let access = Access::from_permissions(spans.iter().map(|span| (span, PermissionKind::Read)));
        assert!(access.reads(&KeySpan::from_wire(b"a", b"d")));
        assert!(access.reads(&KeySpan::from_wire(b"e", b"f\0")));
        assert!(!access.reads(&KeySpan::from_wire(b"a", b"e")));
        assert!(!access.reads(&KeySpan::from_wire(b"c", b"d\0")));
        assert!(access.reads(&KeySpan::from_wire(b"zz", b"\0")));
        assert!(!access.reads(&KeySpan::from_wire(b"e", b"\0")));
        assert!(!access.reads(&KeySpan::from_wire(b"b", b"a")), "an empty span proves nothing");
        assert!(!access.writes(&KeySpan::single(b"a")));
    }
}
