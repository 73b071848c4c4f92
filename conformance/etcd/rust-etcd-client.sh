#!/usr/bin/env bash
# The Rust crate etcd-client. usage: ETCD_ENDPOINTS=HOST:PORT[,…] rust-etcd-client.sh [--install]
source "$(dirname "$0")/../lib.sh"
cargo_build conformance-protoc
PROTOC=$("$cache/rust/debug/conformance-protoc")
export PROTOC
cargo_build conformance-etcd-client
only_installing "$@"
exec "$cache/rust/debug/conformance-etcd-client"
