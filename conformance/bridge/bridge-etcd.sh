#!/usr/bin/env bash
# Our own ledger on an etcd that somebody runs (crates/bridge): its contract, users and certificates, and what it does when
# nodes are killed. ETCD_ENDPOINTS is held to the contract; what is hurt is started for that.
source "$(dirname "$0")/../lib.sh"
go_build etcd
bridge_tests etcd "$@"
