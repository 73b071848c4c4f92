#!/usr/bin/env bash
# etcdctl 3.4 as Debian ships it, unpacked into the cache so that nothing on the machine changes.
# usage: ETCD_ENDPOINTS=HOST:PORT[,…] etcdctl-3.4.sh [--install]
source "$(dirname "$0")/../lib.sh"
unpack() {
    rm -rf "$cache/etcd-client" && mkdir -p "$cache/etcd-client" && cd "$cache/etcd-client"
    apt-get download etcd-client 2>/dev/null || { apt-get update -qq && apt-get download etcd-client; }
    dpkg -x etcd-client_*.deb .
}
need apt-get "a Debian machine: this is Debian's own build"
install_once etcd-client "$0" -- unpack
only_installing "$@"
etcdctl="$cache/etcd-client/usr/bin/etcdctl"
source "$here/etcd/etcdctl-steps.sh"
