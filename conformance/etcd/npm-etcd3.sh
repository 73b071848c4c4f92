#!/usr/bin/env bash
# The npm package etcd3. usage: ETCD_ENDPOINTS=HOST:PORT[,…] npm-etcd3.sh [--install]
source "$(dirname "$0")/../lib.sh"
node_modules etcd3
only_installing "$@"
CHECKS="$here/node/checks.js" NODE_PATH="$cache/node-etcd3/node_modules" exec node "$here/node/steps_etcd3.js"
