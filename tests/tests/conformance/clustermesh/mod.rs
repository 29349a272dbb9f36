//! The reader and the exporter against real stores: etcd with TLS and users, and the embedded store.
//!
//! Everything listens on loopback, between reader and store stands a relay that can be cut, so that a lost network is
//! tried without touching the machine's.

mod publishing;
mod reading;
mod relay;
mod store;
mod world;
