//! The built binary, from outside: what a person or a script sees of it.
//!
//! The binary is the one beside the test (`target/debug/meshd`), or `MESHD_BIN`. Stores are real: `/usr/bin/etcd` with TLS
//! and users, on loopback.

mod blackbox {
    mod cert;
    mod check;
    mod connect;
    mod etcd;
    mod meshd;
    mod troubleshoot;
    mod unit_file;
}
