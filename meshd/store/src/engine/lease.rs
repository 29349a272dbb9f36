//! Leases: who holds which keys, and when they run out. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::error::EngineError;
use super::record::LeaseId;

/// The shortest time to live that is granted; a shorter wish is lengthened, as etcd does with its default election
/// timeout.
pub const LEASE_TTL_S_MIN: i64 = 2;
/// The longest time to live that is granted.
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;

/// What a client learns about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Seconds that remain.
    pub remaining_s: i64,
    /// Seconds that were granted.
    pub granted_s: i64,
    /// The keys attached, in order.
    pub keys: Vec<Arc<[u8]>>,
}

#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    expires: Duration,
    keys: BTreeSet<Arc<[u8]>>,
}

/// All leases, by number and by expiry.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(Duration, LeaseId)>,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn contains(&self, id: LeaseId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.by_id.keys().copied()
    }

    /// Adds a lease; the time to live has been checked. Returns the granted one.
    pub(super) fn grant(&mut self, id: LeaseId, ttl_s: i64, now: Duration) -> i64 {
        let ttl_s = ttl_s.max(LEASE_TTL_S_MIN);
        let expires = now + Duration::from_secs(ttl_s.unsigned_abs());
        self.by_id.insert(id, Lease { ttl_s, expires, keys: BTreeSet::new() });
        self.by_expiry.insert((expires, id));
        ttl_s
    }

    /// Restarts the clock of a lease. Returns the granted time to live.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Duration) -> Result<i64, EngineError> {
        let lease = self.by_id.get_mut(&id).ok_or(EngineError::LeaseNotFound)?;
        if lease.expires <= now {
            return Err(EngineError::LeaseNotFound);
        }
        self.by_expiry.remove(&(lease.expires, id));
        lease.expires = now + Duration::from_secs(lease.ttl_s.unsigned_abs());
        self.by_expiry.insert((lease.expires, id));
        Ok(lease.ttl_s)
    }

    /// Forgets a lease and returns the keys it held, in order.
    pub(super) fn remove(&mut self, id: LeaseId) -> Option<Vec<Arc<[u8]>>> {
        let lease = self.by_id.remove(&id)?;
        self.by_expiry.remove(&(lease.expires, id));
        Some(lease.keys.into_iter().collect())
    }

    pub(super) fn attach(&mut self, id: LeaseId, key: Arc<[u8]>) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    pub(super) fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub(super) fn view(&self, id: LeaseId, now: Duration) -> Option<LeaseView> {
        let lease = self.by_id.get(&id)?;
        let remaining = lease.expires.checked_sub(now)?;
        Some(LeaseView {
            remaining_s: i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX),
            granted_s: lease.ttl_s,
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    pub(super) fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Arc<[u8]>> {
        self.by_id.get(&id).into_iter().flat_map(|lease| lease.keys.iter())
    }

    /// The lease that runs out next and when.
    pub(super) fn next_expiry(&self) -> Option<(Duration, LeaseId)> {
        self.by_expiry.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_lives_until_its_deadline_and_keep_alive_moves_it() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(LeaseId(7), 10, at(100)), 10);
        assert_eq!(leases.next_expiry(), Some((at(110), LeaseId(7))));
        assert_eq!(leases.keep_alive(LeaseId(7), at(109)), Ok(10));
        assert_eq!(leases.next_expiry(), Some((at(119), LeaseId(7))));
        assert_eq!(leases.view(LeaseId(7), at(112)).map(|view| view.remaining_s), Some(7));
        assert_eq!(leases.keep_alive(LeaseId(7), at(119)), Err(EngineError::LeaseNotFound));
        assert_eq!(leases.keep_alive(LeaseId(8), at(1)), Err(EngineError::LeaseNotFound));
    }

    #[test]
    fn a_very_short_wish_is_lengthened() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(LeaseId(1), 0, at(0)), LEASE_TTL_S_MIN);
        assert_eq!(leases.grant(LeaseId(2), LEASE_TTL_S_MAX, at(0)), LEASE_TTL_S_MAX);
    }

    #[test]
    fn keys_follow_attach_and_detach() {
        let mut leases = Leases::default();
        leases.grant(LeaseId(1), 5, at(0));
        for key in [b"b", b"a", b"c"] {
            leases.attach(LeaseId(1), key.as_slice().into());
        }
        leases.detach(LeaseId(1), b"b");
        let keys = leases.remove(LeaseId(1)).unwrap();
        assert_eq!(keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>(), [b"a", b"c"]);
        assert_eq!(leases.len(), 0);
        assert_eq!(leases.next_expiry(), None);
    }
}
