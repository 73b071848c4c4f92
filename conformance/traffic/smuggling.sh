#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH smuggling.sh [--install | --record]
source "$(dirname "$0")/../lib.sh"
need python3 "apt-get install python3"
# They are daemons' directory on Debian, which is not on everybody's path.
PATH=$PATH:/usr/sbin
need haproxy "apt-get install haproxy"
need nginx "apt-get install nginx-light"
if [ "${1:-}" != --record ]; then only_installing "$@"; fi
exec python3 "$here/traffic/steps_smuggling.py" "$@"
