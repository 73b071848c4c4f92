#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH dns.sh [--install]
source "$(dirname "$0")/../lib.sh"
need unshare "apt-get install util-linux"
need curl "apt-get install curl"
need python3 "apt-get install python3"
only_installing "$@"
unshare --mount true 2>/dev/null || fail "a hosts file of its own cannot be mounted" "run it as root: the proxy gets a mount namespace"
exec python3 "$here/traffic/steps_dns.py"
