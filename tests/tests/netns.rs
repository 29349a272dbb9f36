//! Tests against the real kernel: act, then ask the kernel what it holds, and count real packets.
//!
//! Each test works in network namespaces of its own and needs root for them.

mod netns {
    mod alone;
    mod direct_return;
    mod errors;
    mod etcd;
    mod exhaustion;
    mod faults;
    mod idle;
    mod ipv6;
    mod lab;
    mod layout_2;
    mod masquerade;
    mod mesh;
    mod meshes;
    mod netfilter;
    mod netlink;
    mod observing;
    mod refusals;
    mod routes;
    mod service_options;
    mod service_traffic;
    mod services;
    mod silence;
    mod sockets;
    mod source_ranges;
    mod tunnels;
    mod upgrades;
    mod uplinks;
    mod users;
    mod ways;
    mod webpod;
}
