#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH websockets.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
python_env websockets
only_installing "$@"
exec "$cache/python-websockets/bin/python" "$here/traffic/steps_websockets.py"
