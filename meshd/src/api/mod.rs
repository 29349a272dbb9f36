//! The unix-socket HTTP API: what the command line asks and what scripts may ask. Metrics are also served over TCP where
//! the configuration says so.

pub mod answers;
mod bgp;
pub mod bgp_answers;
mod bgp_metrics;
pub mod bgp_paths_answers;
pub mod bgp_paths_view;
pub mod bgp_view;
pub mod flow_view;
mod flows;
pub mod metrics;
pub mod scrape;
pub mod server;
pub mod service_answers;
pub mod view;
