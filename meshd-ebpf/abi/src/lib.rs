//! meshd-abi
