#!/bin/sh
# Users and roles of a cluster's etcd, once, before authentication is switched on. A user is the common name of a client
# certificate and has no password.
set -eu

role() { etcdctl role add "$1" >/dev/null; }
may() { etcdctl role grant-permission "$@" >/dev/null; }
user() {
    etcdctl user add "$1" --no-password >/dev/null
    etcdctl user grant-role "$1" "$2" >/dev/null
}

# Peers read what the cluster says about itself, and nothing it has mirrored from others.
role remote
may remote read cilium/.heartbeat --prefix=true
may remote read cilium/state/ --prefix=true
may remote read "cilium/cluster-config/$CLUSTER"
may remote read "cilium/synced/$CLUSTER/" --prefix=true

# Agents of the cluster that read what was mirrored from others.
role local
may local read cilium/.heartbeat --prefix=true
may local read cilium/cache/ --prefix=true
may local read cilium/cluster-config/ --prefix=true
may local read cilium/synced/ --prefix=true

# Nodes of the cluster write its state; the elected one also its configuration, heartbeat and canaries. The same
# permissions as in docs/guides/real-etcd.md, so that the tests of this topology show that they are enough.
role node
may node readwrite cilium/.heartbeat --prefix=true
may node readwrite cilium/state/ --prefix=true
may node readwrite "cilium/cluster-config/$CLUSTER"
may node readwrite "cilium/synced/$CLUSTER/" --prefix=true
may node readwrite meshd/ --prefix=true

role root
user root root
user "admin-$CLUSTER" root
user "local-$CLUSTER" local
user "node-$CLUSTER" node
user remote remote
for peer in $PEERS; do
    user "remote-$peer" remote
done
etcdctl auth enable >/dev/null
