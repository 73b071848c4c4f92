#!/usr/bin/env bash
# Kafka frames that are cut, that lie and that break the rules, and what a broker makes of them: an answer with the right code
# or a closed connection, nothing written, and everybody else served.
# usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] bad-frames.sh [--install]
source "$(dirname "$0")/../lib.sh"
need python3 "apt-get install python3"
only_installing "$@"
exec python3 "$here/python/steps_bad_frames.py"
