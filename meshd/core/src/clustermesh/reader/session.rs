//! What exists only while a connection does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Settings, Target,
    follow::{Follow, Watch},
};
use crate::{
    clustermesh::{Key, cluster_config::AcceptedConfig, keys},
    observed::Kind,
};

/// Where the cluster-config stands.
#[derive(Debug, Clone)]
pub(super) enum ConfigStage {
    /// No answer yet.
    Asked,
    /// The key does not exist.
    Missing,
    /// It exists and is refused, for this reason.
    Refused(Arc<str>),
    /// It is fine, and its cluster id is being claimed.
    Claiming(AcceptedConfig),
    /// It is in force.
    Accepted {
        /// The one in force.
        config: AcceptedConfig,
        /// What has been wrong with the key since then, if anything.
        problem: Option<Arc<str>>,
    },
}

/// The heartbeat watchdog (wire contract section 2.4).
#[derive(Debug, Clone, Copy)]
pub(super) struct Watchdog {
    last_beat: Duration,
    pub(super) next_check: Duration,
    pub(super) failing: u32,
}

/// A connection.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) since: Duration,
    pub(super) store_id: Option<u64>,
    pub(super) follows: BTreeMap<Target, Follow>,
    pub(super) config: ConfigStage,
    pub(super) config_retry_at: Option<Duration>,
    /// When the first list of the canaries was complete.
    pub(super) canaries_listed: Option<Duration>,
    /// Kinds whose list is complete but whose end is not told before [`Self::sweep_at`].
    pub(super) unswept: BTreeSet<Kind>,
    /// When rows of the data this store had before may be removed, once a list had to wait for that.
    pub(super) sweep_at: Option<Duration>,
    pub(super) watchdog: Watchdog,
}

impl Session {
    pub(super) fn new(settings: &Settings, now: Duration) -> Self {
        let key = |target, key: Key<'_>| (target, Follow::new(target, key.to_string(), Vec::new(), 1));
        let cluster = &settings.cluster;
        let follows = BTreeMap::from([
            key(Target::Heartbeat, Key::Heartbeat),
            key(Target::Config, Key::cluster_config(cluster)),
            range(Target::Canaries, keys::canary_prefix(cluster), settings.page_limit),
        ]);
        Self {
            since: now,
            store_id: None,
            follows,
            config: ConfigStage::Asked,
            config_retry_at: None,
            canaries_listed: None,
            unswept: BTreeSet::new(),
            sweep_at: None,
            watchdog: Watchdog { last_beat: now, next_check: now + settings.timers.check, failing: 0 },
        }
    }

    /// Adds the ranges of the records, once it is known which form they have.
    pub(super) fn add_records(&mut self, settings: &Settings, config: &AcceptedConfig) {
        self.follows.extend(Kind::ALL.map(|kind| {
            let prefix = keys::prefix(config.keyspace, &settings.cluster, config.key_kind(kind));
            range(Target::Records(kind), prefix, settings.page_limit)
        }));
    }

    /// The configuration in force.
    pub(super) fn accepted(&self) -> Option<&AcceptedConfig> {
        match &self.config {
            ConfigStage::Accepted { config, .. } => Some(config),
            ConfigStage::Asked | ConfigStage::Missing | ConfigStage::Refused(_) | ConfigStage::Claiming(_) => None,
        }
    }

    /// The next moment at which something is due without an input.
    pub(super) fn deadline(&self, settings: &Settings) -> Duration {
        let timers = &settings.timers;
        let mut due = self.watchdog.next_check;
        let mut at = |moment: Option<Duration>| due = due.min(moment.unwrap_or(due));
        at(self.config_retry_at);
        at(self.sweep_at.filter(|_| !self.unswept.is_empty()));
        if self.accepted().is_none() {
            at(Some(self.since + timers.config_timeout));
        }
        for follow in self.follows.values() {
            at(follow.retry_at);
            if let Watch::Opening(since) = follow.watch {
                at(Some(since + timers.watch_timeout));
            }
        }
        due
    }
}

impl Watchdog {
    /// A heartbeat has come.
    pub(super) fn beat(&mut self, now: Duration) {
        self.last_beat = now;
        self.failing = 0;
    }

    /// Looks whether the heartbeat is silent, if that is due; true when the connection must end.
    pub(super) fn check(&mut self, settings: &Settings, now: Duration) -> bool {
        let timers = &settings.timers;
        if now < self.next_check {
            return false;
        }
        if now.saturating_sub(self.last_beat) > timers.silence {
            self.failing += 1;
            self.next_check = now + timers.check_failing;
        } else {
            self.failing = 0;
            self.next_check = now + timers.check;
        }
        self.failing >= timers.failing_checks
    }
}

fn range(target: Target, prefix: String, limit: u32) -> (Target, Follow) {
    let end = keys::range_end(prefix.as_bytes());
    (target, Follow::new(target, prefix, end, limit))
}
