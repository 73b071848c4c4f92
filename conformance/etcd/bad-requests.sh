#!/usr/bin/env bash
# Requests that are wrong, sent as they are, and the very bytes that come back.
# usage: ETCD_ENDPOINTS=HOST:PORT[,…] bad-requests.sh [--install]
source "$(dirname "$0")/../lib.sh"
go_build bad-requests
only_installing "$@"
exec "$cache/bin/bad-requests"
