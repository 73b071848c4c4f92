#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH crowd.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
need curl "apt-get install curl"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/traffic/steps_crowd.py"
