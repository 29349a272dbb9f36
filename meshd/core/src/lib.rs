//! meshd-core
