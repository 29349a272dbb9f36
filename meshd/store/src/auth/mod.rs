//! Who may read and write which keys.
//!
//! Users are the common names of client certificates; there are no passwords. Users and roles come from configuration
//! only: the store answers questions about them on the wire but never changes them from there. A reader of another
//! cluster gets exactly the ranges that stock Cilium would give it, a node of the own cluster may write what it
//! publishes about itself, and whoever hosts the store is root.

mod access;

use std::collections::BTreeMap;

use crate::engine::KeySpan;

pub use access::{Access, AuthTable};

/// Name of the role that may do everything, as in etcd.
pub const ROOT_ROLE: &str = "root";

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionKind {
    /// Range and Watch.
    Read,
    /// Put and DeleteRange.
    Write,
    /// Both.
    ReadWrite,
}

impl PermissionKind {
    /// True for kinds that allow reading.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// True for kinds that allow writing.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// A span of keys and what may be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The keys.
    pub span: KeySpan,
    /// What is allowed.
    pub kind: PermissionKind,
}

impl Permission {
    /// Reading all keys with a prefix.
    #[must_use]
    pub fn read_prefix(prefix: &str) -> Self {
        Self { span: KeySpan::prefix(prefix.as_bytes()), kind: PermissionKind::Read }
    }

    /// Reading one key.
    #[must_use]
    pub fn read_key(key: &str) -> Self {
        Self { span: KeySpan::single(key.as_bytes()), kind: PermissionKind::Read }
    }

    /// Reading and writing all keys with a prefix.
    #[must_use]
    pub fn write_prefix(prefix: &str) -> Self {
        Self { span: KeySpan::prefix(prefix.as_bytes()), kind: PermissionKind::ReadWrite }
    }
}

/// A named list of permissions. The role [`ROOT_ROLE`] needs none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Name, as in `role get`.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<Permission>,
}

impl Role {
    /// May do everything.
    #[must_use]
    pub fn root() -> Self {
        Self { name: ROOT_ROLE.to_owned(), permissions: Vec::new() }
    }

    /// Agents of the own cluster that read mirrored remote clusters: the cached copies, never the own state.
    #[must_use]
    pub fn local() -> Self {
        Self {
            name: "local".to_owned(),
            permissions: vec![
                Permission::read_prefix("cilium/.heartbeat"),
                Permission::read_prefix("cilium/cache/"),
                Permission::read_prefix("cilium/cluster-config/"),
                Permission::read_prefix("cilium/synced/"),
            ],
        }
    }

    /// Readers of other clusters: the own state of `cluster` and nothing that was learned from elsewhere.
    #[must_use]
    pub fn remote(cluster: &str) -> Self {
        Self {
            name: "remote".to_owned(),
            permissions: vec![
                Permission::read_prefix("cilium/.heartbeat"),
                Permission::read_prefix("cilium/state/"),
                Permission::read_key(&format!("cilium/cluster-config/{cluster}")),
                Permission::read_prefix(&format!("cilium/synced/{cluster}/")),
            ],
        }
    }

    /// Nodes of `cluster`: they read everything of the mesh and write the records of their own cluster's state.
    /// Cluster-config, heartbeat and canaries stay with the host of the store.
    #[must_use]
    pub fn node(cluster: &str) -> Self {
        Self {
            name: "node".to_owned(),
            permissions: vec![
                Permission::read_prefix("cilium/"),
                Permission::write_prefix(&format!("cilium/state/nodes/v1/{cluster}/")),
                Permission::write_prefix("cilium/state/ip/v1/default/"),
                Permission::write_prefix("cilium/state/identities/v1/"),
                Permission::write_prefix(&format!("cilium/state/services/v1/{cluster}/")),
                Permission::write_prefix(&format!("cilium/state/serviceexports/v1/{cluster}/")),
                Permission::write_prefix(&format!("cilium/state/endpointslices/v1/{cluster}/")),
            ],
        }
    }
}

/// A user: the common name of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Common name.
    pub name: String,
    /// Names of its roles.
    pub roles: Vec<String>,
}

impl User {
    /// A user with one role.
    #[must_use]
    pub fn new(name: impl Into<String>, role: impl Into<String>) -> Self {
        Self { name: name.into(), roles: vec![role.into()] }
    }
}

/// All users and roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthConfig {
    /// Roles by name.
    pub roles: BTreeMap<String, Role>,
    /// Users by common name.
    pub users: BTreeMap<String, User>,
}

impl AuthConfig {
    /// No users at all: with TLS every request for keys is refused.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The users and roles of a store of `cluster`: `root`, `admin-<cluster>`, `local-<cluster>`, `node-<cluster>`,
    /// the shared user `remote`, and `remote-<name>` for each of `remotes`.
    #[must_use]
    pub fn standard<'a>(cluster: &str, remotes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut config = Self::default();
        for role in [Role::root(), Role::local(), Role::remote(cluster), Role::node(cluster)] {
            config.add_role(role);
        }
        config.add_user(User::new("root", ROOT_ROLE));
        config.add_user(User::new(format!("admin-{cluster}"), ROOT_ROLE));
        config.add_user(User::new(format!("local-{cluster}"), "local"));
        config.add_user(User::new(format!("node-{cluster}"), "node"));
        config.add_user(User::new("remote", "remote"));
        for remote in remotes {
            config.add_user(User::new(format!("remote-{remote}"), "remote"));
        }
        config
    }

    /// Adds or replaces a role.
    pub fn add_role(&mut self, role: Role) {
        self.roles.insert(role.name.clone(), role);
    }

    /// Adds or replaces a user.
    pub fn add_user(&mut self, user: User) {
        self.users.insert(user.name.clone(), user);
    }
}
