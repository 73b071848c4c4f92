#!/usr/bin/env bash
# Starts the original Kafka, one broker in KRaft mode or several, from its artefacts, and prints a line of JSON once it serves:
#     {"bootstrap":"127.0.0.1:9092,…"}
# Ends with the process that started it, or on a signal. Loopback only. Node n listens on PORT + 2n for clients and on the
# port after that for controllers; every node is a broker and a controller.
# usage: kafka.sh DIR PORT [NODES]
source "$(dirname "$0")/../lib.sh"
need java "apt-get install default-jre-headless (17 or newer)"
maven_jars "$here/originals/kafka" kafka-jars
[ "$1" = --install ] && exit
dir=$1 port=$2 nodes=${3:-1}
parent=$PPID
mkdir -p "$dir"
copies=$((nodes < 3 ? nodes : 3))
voters= bootstrap=
for n in $(seq 0 $((nodes - 1))); do
    voters+=${voters:+,}$((n + 1))@127.0.0.1:$((port + 2 * n + 1))
    bootstrap+=${bootstrap:+,}127.0.0.1:$((port + 2 * n))
done
# One node forms its own quorum; several are told of each other.
if [ "$nodes" = 1 ]; then
    quorum=controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1)) standalone=--standalone
else
    quorum=controller.quorum.voters=$voters standalone=
fi
cat >"$dir/log4j2.properties" <<'EOF'
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
EOF
run=(java -Xms256m -Xmx512m -XX:+UseG1GC "-Dlog4j2.configurationFile=$dir/log4j2.properties" -cp "$cache/kafka-jars/*")
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT TERM INT
brokers=()
for n in $(seq 0 $((nodes - 1))); do
    at=$dir/node$n client=127.0.0.1:$((port + 2 * n)) controller=127.0.0.1:$((port + 2 * n + 1))
    mkdir -p "$at"
    cat >"$at/server.properties" <<EOF
process.roles=broker,controller
node.id=$((n + 1))
$quorum
listeners=PLAINTEXT://$client,CONTROLLER://$controller
advertised.listeners=PLAINTEXT://$client,CONTROLLER://$controller
controller.listener.names=CONTROLLER
log.dirs=$at/data
offsets.topic.replication.factor=$copies
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$(((copies + 1) / 2))
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$(((copies + 1) / 2))
group.initial.rebalance.delay.ms=0
EOF
    [ -e "$at/data/meta.properties" ] || "${run[@]}" kafka.tools.StorageTool format $standalone --cluster-id Y29uZm9ybWFuY2UtMTIzNA --config "$at/server.properties" >"$at/format.log" 2>&1 ||
        { cat "$at/format.log" >&2; fail "Kafka's storage cannot be formatted" "the lines above say why"; }
    "${run[@]}" kafka.Kafka "$at/server.properties" >"$at/kafka.log" 2>&1 &
    brokers+=($!)
done
alive() { for broker in "${brokers[@]}"; do kill -0 "$broker" 2>/dev/null || return 1; done; }
serves() {
    for n in $(seq 0 $((nodes - 1))); do (exec 3<>"/dev/tcp/127.0.0.1/$((port + 2 * n))") 2>/dev/null || return 1; done
}
# Waiting ends early when a broker has ended.
settled() { ! alive || serves; }
until_true 90 settled && alive || { tail -n 20 "$dir"/node*/kafka.log >&2; fail "Kafka does not come up" "its last lines are above; is a port in use?"; }
printf '{"bootstrap":"%s"}\n' "$bootstrap"
# A parent that was killed sends no signal, so it is looked for.
while kill -0 "$parent" 2>/dev/null && alive; do
    sleep 0.5 &
    wait $!
done
