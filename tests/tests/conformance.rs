//! The embedded store against what it claims to be: the same requests to a real etcd, `etcdctl`, restarts and faults.
//!
//! Needs Debian's `etcd-server` and `etcd-client`; servers listen on loopback ports of the system's choice and are
//! ended by the handle that started them.

mod conformance {
    mod certificates;
    mod differential;
    mod embedded;
    mod etcd;
    mod etcdctl;
    mod generator;
    mod lifecycle;
    mod raw;
    mod sniffing;
}
