#!/usr/bin/env bash
# Starts the original Kafka, one broker in KRaft mode, from its artefacts, and prints a line of JSON once it serves:
#     {"bootstrap":"127.0.0.1:9092"}
# Ends with the process that started it, or on a signal. Loopback only. PORT is for clients, PORT + 1 for the controller.
# ADVERTISED, where it is given, is the port that clients are told: that of a proxy before the broker.
# usage: kafka.sh DIR PORT [ADVERTISED]
source "$(dirname "$0")/../lib.sh"
need java "apt-get install default-jre-headless (17 or newer)"
maven_jars "$here/originals/kafka" kafka-jars
[ "$1" = --install ] && exit
dir=$1 port=$2 advertised=${3:-$2}
parent=$PPID
mkdir -p "$dir"
cat >"$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$advertised,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
EOF
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
[ -e "$dir/data/meta.properties" ] || "${run[@]}" kafka.tools.StorageTool format --standalone --cluster-id Y29uZm9ybWFuY2UtMTIzNA --config "$dir/server.properties" >"$dir/format.log" 2>&1 ||
    { cat "$dir/format.log" >&2; fail "Kafka's storage cannot be formatted" "the lines above say why"; }
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT TERM INT
"${run[@]}" kafka.Kafka "$dir/server.properties" >"$dir/kafka.log" 2>&1 &
broker=$!
serves() { kill -0 "$broker" 2>/dev/null && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
until_true 90 serves || { tail -20 "$dir/kafka.log" >&2; fail "Kafka does not come up" "its last lines are above; is a port in use?"; }
printf '{"bootstrap":"127.0.0.1:%s"}\n' "$port"
# A parent that was killed sends no signal, so it is looked for.
while kill -0 "$parent" 2>/dev/null && kill -0 "$broker" 2>/dev/null; do
    sleep 0.5 &
    wait $!
done
