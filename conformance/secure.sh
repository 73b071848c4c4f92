#!/usr/bin/env bash
# The binary with a Kafka and an etcd that want TLS and users: a host that runs a function on them, an uplink, and locks; then
# with a wrong password, a wrong authority and missing rights, each of which must be told with its code and a hint, and never
# with a password. Prints a line per check; ends with 0 if all hold.
# usage: secure.sh BUTTRESS
source "$(dirname "$0")/lib.sh"
need openssl "apt-get install openssl"
need kcat "apt-get install kcat"
need python3 "apt-get install python3"
"$here/originals/kafka.sh" --install >&2
"$here/originals/etcd.sh" --install >&2
exec python3 "$here/secure.py" "$(realpath "$1")"
