#!/usr/bin/env bash
# The Python package etcd3. usage: ETCD_ENDPOINTS=HOST:PORT[,…] python-etcd3.sh [--install]
source "$(dirname "$0")/../lib.sh"
python_env etcd3
only_installing "$@"
exec "$cache/python-etcd3/bin/python" "$here/python/steps_etcd3.py"
