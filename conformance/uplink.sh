#!/usr/bin/env bash
# An edge node and its uplink against the original Kafka: the link is cut, the edge is killed with SIGKILL, the broker is
# restarted, retention overtakes a topic; then kcat reads both sides, the Kafka with read_committed, and they are compared.
# Prints one JSON object; ends with 0 if nothing is lost, doubled or out of order.
# usage: uplink.sh BUTTRESS [SECONDS]
source "$(dirname "$0")/lib.sh"
need kcat "apt-get install kcat"
need python3 "apt-get install python3"
"$here/originals/kafka.sh" --install >&2
exec python3 "$here/uplink.py" "$1" "${2:-45}"
