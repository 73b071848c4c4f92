#!/usr/bin/env bash
# Our own stream on a Kafka that somebody runs (crates/bridge): its contract, users and certificates, and what it does when the
# broker is killed, hosts fight and answers are lost. KAFKA_BOOTSTRAP is held to the contract; what is hurt is started for that.
source "$(dirname "$0")/../lib.sh"
need java "apt-get install default-jre-headless (17 or newer)"
maven_jars "$here/originals/kafka" kafka-jars
bridge_tests kafka "$@"
