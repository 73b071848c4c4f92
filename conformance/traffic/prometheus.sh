#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH prometheus.sh [--install]
source "$(dirname "$0")/../lib.sh"
need prometheus "apt-get install prometheus"
need promtool "apt-get install prometheus"
need curl "apt-get install curl"
need openssl "apt-get install openssl"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/traffic/steps_prometheus.py"
