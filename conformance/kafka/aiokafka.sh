#!/usr/bin/env bash
# aiokafka. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] aiokafka.sh [--install]
source "$(dirname "$0")/../lib.sh"
python_env aiokafka
only_installing "$@"
exec "$cache/python-aiokafka/bin/python" "$here/python/steps_aiokafka.py"
