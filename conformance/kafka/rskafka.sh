#!/usr/bin/env bash
# The Rust crate rskafka. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] rskafka.sh [--install]
source "$(dirname "$0")/../lib.sh"
cargo_build conformance-rskafka
only_installing "$@"
exec "$cache/rust/debug/conformance-rskafka"
