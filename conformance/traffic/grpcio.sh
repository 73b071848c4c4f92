#!/usr/bin/env bash
# usage: BUTTRESS_BINARY=PATH grpcio.sh [--install]
source "$(dirname "$0")/../lib.sh"
need openssl "apt-get install openssl"
python_env grpcio
only_installing "$@"
exec "$cache/python-grpcio/bin/python" "$here/traffic/steps_grpcio.py"
