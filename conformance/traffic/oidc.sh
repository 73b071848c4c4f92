#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH oidc.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
need curl "apt-get install curl"
need python3 "apt-get install python3"
go_build_module go-issuer issuer
only_installing "$@"
ISSUER="$cache/bin/issuer" exec python3 "$here/traffic/steps_oidc.py"
