#!/usr/bin/env bash
# franz-go. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] franz-go.sh [--install]
source "$(dirname "$0")/../lib.sh"
go_build franz-go
only_installing "$@"
exec "$cache/bin/franz-go"
