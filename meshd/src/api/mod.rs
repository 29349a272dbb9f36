//! The unix-socket HTTP API: what the command line asks and what scripts may ask.

pub mod answers;
pub mod metrics;
pub mod server;
pub mod view;
