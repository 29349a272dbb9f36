//! Tests against other people's routers: FRR, BIRD, GoBGP and ExaBGP from Debian's packages, in network namespaces.
//!
//! `bfd` is our BFD with FRR's, with BIRD's, and with itself.
//! `exports` lets tshark and bgpdump read what we tell monitoring stations and write into files.
//! `foreign` shows that the harness tells the truth, with no part of ours on the wire: what one of them sends, another
//! one is seen to hold. `meshd` is ours between them. `labs` shows the same of the foreign halves of the topologies in `lab/topologies`.

mod interop {
    mod bfd;
    mod exports;
    mod foreign;
    mod labs;
    mod meshd;
}
