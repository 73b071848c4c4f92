#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH curl.sh [--install]
source "$(dirname "$0")/../lib.sh"
need curl "apt-get install curl"
need openssl "apt-get install openssl"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/traffic/steps_curl.py"
