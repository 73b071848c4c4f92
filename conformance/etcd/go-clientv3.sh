#!/usr/bin/env bash
# etcd's own Go client. usage: ETCD_ENDPOINTS=HOST:PORT[,…] go-clientv3.sh [--install]
source "$(dirname "$0")/../lib.sh"
go_build clientv3
only_installing "$@"
exec "$cache/bin/clientv3"
