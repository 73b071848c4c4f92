#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH otlp.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
need curl "apt-get install curl"
need python3 "apt-get install python3"
go_build_module go-collector collector
only_installing "$@"
COLLECTOR="$cache/bin/collector" exec python3 "$here/traffic/steps_otlp.py"
