//! meshd-store
