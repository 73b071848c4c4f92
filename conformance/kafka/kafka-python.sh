#!/usr/bin/env bash
# kafka-python. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] kafka-python.sh [--install]
source "$(dirname "$0")/../lib.sh"
python_env kafka-python
only_installing "$@"
exec "$cache/python-kafka-python/bin/python" "$here/python/steps_kafka_python.py"
