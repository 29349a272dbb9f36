//! Import and export policy: which paths pass, and what is changed on the way.
//!
//! ```text
//!              ┌────────── Policy ──────────┐
//!              │ guard    rule set, rule set│
//! Candidate ──►│ prefix ─► matches          │──► Decision {rule, Accept | Edit | Reject}
//!              │           actions          │
//!              │           then    ─► end   │
//!              └────────────────────────────┘
//! ```
//!
//! A [`Policy`] is built once from the configuration and then only asked. It is asked for every path of a full table, so
//! [`Policy::evaluate`] makes no allocation for a path that passes unchanged, a prefix list of any length costs one binary
//! search, and an AS path pattern one pass over the path. What the rules look at is known: when they do not look at the
//! prefix, the caller asks once for all prefixes with the same attributes ([`Policy::rules_depend_on_prefix`]) and only the
//! guard is asked for each ([`Policy::check_prefix`]).
//!
//! What no configuration may switch off stands in the guard: our own prefixes are never taken from a peer. An external peer
//! without policy gets and gives nothing (RFC 8212): whoever makes peers says so with [`Policy::reject_all`].
//!
//! Every decision names its rule by a small number that is kept with the path, so that people are told why.
//!
//! What is ugly: numbers of rules are those of one policy, and mean nothing after it was replaced.
//!
//! RFCs: 1997 (communities), 4360 (extended), 8092 (large), 6811 (prefix origin validation), 7999 (blackhole), 8212 (default
//! deny), 8326 (graceful shutdown), 9774 (no AS_SET).

mod as_path_pattern;
mod candidate;
mod chain;
mod community;
mod edit;
mod guard;
mod nested;
mod prefix_list;
mod rpki;
mod rule;

pub use as_path_pattern::{AsPathList, AsPathPattern, AsPathPatternError, PATTERN_LEN_MAX};
pub use candidate::{
    Candidate, Decision, Edited, LocalSource, NextHopEdit, Outcome, PeerSource, RuleId, Source, SourceKind,
};
pub use chain::{End, Policy, RULES_MAX, TooManyRules};
pub use community::{Administrator, Community, CommunityError, CommunityPattern};
pub use guard::{GuardSettings, ImportGuard, Martians};
pub use prefix_list::{PrefixEntry, PrefixEntryError, PrefixList};
pub use rpki::{VRPS_MAX, Validity, Vrp, Vrps, VrpsError, origin_of};
pub use rule::{Action, Match, NumberEdit, PrependAs, Rule, RuleSet, Then};
