//! What the tests of several levels share.

pub mod bgp;
pub mod iperf;
pub mod links;
pub mod load;
pub mod ping;
pub mod routers;
pub mod traffic;
pub mod usage;

/// Fails the test when it is not run by root.
///
/// A test that cannot do its work must not count as passed, and the test harness knows no skipped test at run time. So a
/// test of the network namespaces begins with this, and the nextest profile `unprivileged` leaves those tests out and
/// counts them.
///
/// # Panics
/// When the effective user is not root.
pub fn need_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root; without root run `cargo nextest run --workspace --profile unprivileged`, which skips \
         these tests and counts them"
    );
}
