//! Tests against other people's routers: FRR, BIRD, GoBGP and ExaBGP from Debian's packages, in network namespaces.
//!
//! `bfd` is our BFD with FRR's, with BIRD's, and with itself.
//! `exports` lets tshark and bgpdump read what we tell monitoring stations and write into files.
//! `failover` cuts the cable of a node with two and measures what its traffic misses.
//! `foreign` shows that the harness tells the truth, with no part of ours on the wire: what one of them sends, another
//! one is seen to hold. `hostile` peers send too much, read nothing, or knock without end. `meshd` is ours between them. `labs` runs the
//! topologies of `lab/topologies` and shows what their rows in `lab/README.md` say.

mod interop {
    mod bfd;
    mod exports;
    mod failover;
    mod foreign;
    mod hostile;
    mod labs;
    mod meshd;
}
