//! The configuration: from files, environment and flags to checked values.
//!
//! ```text
//! meshd.yaml ─┐                     unknown keys,          texts to types,
//! conf.d/*   ─┼─► tree of values ─► wrong types   ─► raw ─► rules          ─► Config
//! MESHD_*    ─┤   (with origins)    (check)                 (validate)
//! flags      ─┘
//! ```
//!
//! Later sources win. Every stage collects all it finds instead of stopping at the first, and every finding
//! names file and line (or variable, or flag), key, and what to do. Raw and checked values are different types:
//! what holds a [`Config`] needs no second look.
//!
//! The raw sections describe themselves (see [`described`]): the same declaration is read by serde, by the
//! unknown-key check and by the reference page.
//!
//! What is ugly: the `config` crate forgets where in a file a value was, so files are scanned twice, the second
//! time only for line numbers.

pub mod cilium;
pub mod described;
pub mod error;
pub mod file;
pub mod host;
pub mod model;
pub mod raw;
pub mod reference;
pub mod secret;
pub mod tls;

mod check;
mod inherit;
mod load;
mod locate;
mod tree;
mod validate;

pub use error::{ConfigErrors, Finding, Origin};
pub use load::{CONFIG_FILE, ConfigSource, Environment, Overrides};
pub use model::Config;
pub use validate::SOCKET;

#[cfg(test)]
mod bgp_tests;
#[cfg(test)]
mod services_tests;
#[cfg(test)]
mod shipped_tests;
#[cfg(test)]
mod tests;
