#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH clock.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
need curl "apt-get install curl"
need python3 "apt-get install python3"
LIBFAKETIME=$(ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -1) || true
[ -n "$LIBFAKETIME" ] || fail "there is no libfaketime" "apt-get install faketime"
only_installing "$@"
export LIBFAKETIME
exec python3 "$here/traffic/steps_clock.py"
