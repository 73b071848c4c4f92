#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH openssl.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/traffic/steps_openssl.py"
