//! meshd joins clusters into one natively routed network.

pub mod api;
pub mod cli;
pub mod config;
pub mod kernel;
