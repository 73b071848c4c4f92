#!/usr/bin/env bash
# confluent-kafka, librdkafka for Python. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] confluent-kafka-python.sh [--install]
source "$(dirname "$0")/../lib.sh"
python_env confluent-kafka
only_installing "$@"
exec "$cache/python-confluent-kafka/bin/python" "$here/python/steps_confluent_kafka.py"
