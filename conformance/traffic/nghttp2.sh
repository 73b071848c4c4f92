#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH nghttp2.sh [--install]
source "$(dirname "$0")/../lib.sh"
need nghttp "apt-get install nghttp2-client"
need h2load "apt-get install nghttp2-client"
need openssl "apt-get install openssl"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/traffic/steps_nghttp2.py"
