#!/usr/bin/env bash
# etcdctl 3.7, built from its released module.
# usage: ETCD_ENDPOINTS=HOST:PORT[,…] etcdctl-3.7.sh [--install]
source "$(dirname "$0")/../lib.sh"
go_build etcdctl
only_installing "$@"
etcdctl="$cache/bin/etcdctl"
source "$here/etcd/etcdctl-steps.sh"
