//! Making the targets hold what is desired: one room per target, each with the same files.

pub mod datapath;
pub mod export;
pub mod masquerade;
pub mod routes;
pub mod tunnels;
