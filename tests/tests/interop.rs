//! Tests against other people's routers: FRR, BIRD, GoBGP and ExaBGP from Debian's packages, in network namespaces.
//!
//! `foreign` shows that the harness tells the truth, with no part of ours on the wire: what one of them sends, another
//! one is seen to hold. `meshd` is ours between them, and what follows is a subject each: `gobgp` and `exabgp` the two that install
//! nothing, `next_hops` IPv6 next hops for IPv4 and peers found by link, `security` keys and hop limits, `add_path`,
//! `refresh`, `limits` of prefixes and peers, `roles`, `shutdown` with words and drain, `policy` where there is none.
//! They share `configurations`. `hostile` peers send too much, read nothing, or knock without end.
//!
//! `bfd` is our BFD with FRR's, with BIRD's, and with itself, `echo` its packets that FRR's node sends back. `exports` lets tshark and bgpdump read what we tell monitoring
//! stations and write into files. `failover` cuts the cable of a node with two and measures what its traffic misses.
//! `labs` runs the topologies of `lab/topologies` and shows what their rows in `lab/README.md` say.
//! `clusters` joins two of ours without a store between them. `sessions` is what ours may demand of a peer, `watching` what it tells stations and files. `restart` is about
//! what a restart of us or of them does to traffic, `liveness` about a path that dies, `full_table` about a whole table that goes through
//! us.

mod interop {
    mod add_path;
    mod bfd;
    mod clusters;
    mod configurations;
    mod echo;
    mod exabgp;
    mod exports;
    mod failover;
    mod foreign;
    mod full_table;
    mod gobgp;
    mod hostile;
    mod labs;
    mod limits;
    mod liveness;
    mod meshd;
    mod next_hops;
    mod policy;
    mod refresh;
    mod restart;
    mod roles;
    mod security;
    mod sessions;
    mod shutdown;
    mod watching;
}
