//! Policy: which entries can hold for a connection, and what follows from those that are there.

use meshd_abi::{Policy, PolicyKey, policy_verdict};

/// Entries that can hold for a connection: for this identity and port, for this identity whatever the port, for this port whoever it is. All are
/// asked: the first that refuses counts, wherever it stands.
#[must_use]
#[inline(always)]
pub const fn keys(exact: PolicyKey) -> [PolicyKey; 3] {
    [exact, PolicyKey { port: 0, protocol: 0, ..exact }, PolicyKey { identity: 0, ..exact }]
}

/// What entries say together; `None`: none of them is there, and what holds without a rule is the policy's to say.
#[must_use]
#[inline(always)]
pub fn verdict(found: [Option<Policy>; 3]) -> Option<Policy> {
    let mut allowed = None;
    for entry in found.into_iter().flatten() {
        if entry.verdict == policy_verdict::DENY {
            return Some(entry);
        }
        allowed = allowed.or(Some(entry));
    }
    allowed
}

#[cfg(test)]
mod tests {
    use meshd_abi::policy_direction;

    use super::*;

    const EXACT: PolicyKey =
        PolicyKey { policy: 7, identity: 0x0001_0203, port: 0x5000, protocol: 6, direction: policy_direction::INGRESS };

    fn entry(rule: u32, verdict: u8) -> Option<Policy> {
        Some(Policy { rule, verdict, reserved: [0; 3] })
    }

    #[test]
    fn each_key_leaves_out_one_thing() {
        let [exact, any_port, anybody] = keys(EXACT);
        assert_eq!(exact, EXACT);
        assert_eq!(any_port, PolicyKey { port: 0, protocol: 0, ..EXACT });
        assert_eq!(anybody, PolicyKey { identity: 0, ..EXACT });
    }

    #[test]
    fn a_refusal_counts_more_than_any_permission() {
        let (allow, deny) = (policy_verdict::ALLOW, policy_verdict::DENY);
        assert_eq!(verdict([None; 3]), None);
        assert_eq!(verdict([None, entry(2, allow), entry(3, allow)]), entry(2, allow), "the closest one");
        for place in 0..3 {
            let mut found = [entry(1, allow); 3];
            found[place] = entry(9, deny);
            assert_eq!(verdict(found), entry(9, deny));
        }
    }
}
