#!/usr/bin/env bash
# kafkajs. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] kafkajs.sh [--install]
source "$(dirname "$0")/../lib.sh"
node_modules kafkajs
only_installing "$@"
CHECKS="$here/node/checks.js" NODE_PATH="$cache/node-kafkajs/node_modules" exec node "$here/node/steps_kafkajs.js"
