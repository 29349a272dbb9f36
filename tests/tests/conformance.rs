//! Stores, readers and writers against the real thing: the embedded store beside a real etcd, the reader and the exporter
//! against both, and records that a Cilium control plane wrote.
//!
//! Needs Debian's `etcd-server` and `etcd-client`; servers listen on loopback ports of the system's choice and are
//! ended by the handle that started them.

mod conformance {
    mod certificates;
    mod clustermesh;
    mod differential;
    mod embedded;
    mod etcd;
    mod etcdctl;
    mod generator;
    mod lifecycle;
    mod raw;
    mod shares;
    mod sniffing;
}
