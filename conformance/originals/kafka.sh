#!/usr/bin/env bash
# Starts the original Kafka, one broker in KRaft mode, from its artefacts, and prints a line of JSON once it serves:
#     {"bootstrap":"127.0.0.1:9092","pid":4711}
# Ends with the process that started it, on a signal, or with the broker. Loopback only. PORT is for clients, PORT + 1 for the
# controller. Started again with the same arguments after the broker was killed, it goes on with the same data.
# What may be in the environment:
#   KAFKA_ADVERTISE=HOST:PORT   where clients find the broker: a proxy, say
#   KAFKA_MORE=LINES            more lines for server.properties
#   KAFKA_SECURE=DIR            PEM files ca.pem and server.pem (the key, then the certificate): PORT + 2 takes users over TLS
#                               (alice may do everything, mallory nothing; the password is the name and -secret), PORT + 3
#                               takes certificates of the same authority (CN=client may do everything)
# With --restart a broker that runs is stopped by a signal (KILL unless another is named) and started again on its data; the
# command returns when it serves.
# usage: kafka.sh DIR PORT | kafka.sh --restart DIR [SIGNAL]
source "$(dirname "$0")/../lib.sh"
if [ "$1" = --restart ]; then
    dir=$2
    before=$(cat "$dir/broker.pid") || fail "no broker runs in $dir" "start it first: kafka.sh $dir PORT"
    rm -f "$dir/serves"
    touch "$dir/restart"
    kill "-${3:-KILL}" "$before"
    again() { [ -e "$dir/serves" ]; }
    until_true 120 again || { tail -20 "$dir/kafka.log" >&2; fail "Kafka does not come up again" "its last lines are above"; }
    exit
fi
need java "apt-get install default-jre-headless (17 or newer)"
maven_jars "$here/originals/kafka" kafka-jars
[ "$1" = --install ] && exit
dir=$1 port=$2
parent=$PPID
mkdir -p "$dir"
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised=PLAINTEXT://${KAFKA_ADVERTISE:-127.0.0.1:$port},CONTROLLER://127.0.0.1:$((port + 1))
scram=()
if [ -n "${KAFKA_SECURE:-}" ]; then
    more=SECURE://127.0.0.1:$((port + 2)),MUTUAL://127.0.0.1:$((port + 3))
    listeners+=,$more advertised+=,$more
    for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
        for user in alice mallory; do scram+=(--add-scram "$mechanism=[name=$user,password=$user-secret]"); done
    done
fi
cat >"$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1))
listeners=$listeners
advertised.listeners=$advertised
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
${KAFKA_MORE:-}
EOF
[ -z "${KAFKA_SECURE:-}" ] || cat >>"$dir/server.properties" <<EOF
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL
ssl.keystore.type=PEM
ssl.keystore.location=$KAFKA_SECURE/server.pem
ssl.truststore.type=PEM
ssl.truststore.location=$KAFKA_SECURE/ca.pem
listener.name.mutual.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="alice-secret" user_mallory="mallory-secret";
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:alice;User:CN=client
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
[ -e "$dir/data/meta.properties" ] || "${run[@]}" kafka.tools.StorageTool format --standalone --cluster-id Y29uZm9ybWFuY2UtMTIzNA --config "$dir/server.properties" "${scram[@]}" >"$dir/format.log" 2>&1 ||
    { cat "$dir/format.log" >&2; fail "Kafka's storage cannot be formatted" "the lines above say why"; }
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT TERM INT
start() {
    "${run[@]}" kafka.Kafka "$dir/server.properties" >>"$dir/kafka.log" 2>&1 &
    broker=$!
    echo "$broker" >"$dir/broker.pid"
}
rm -f "$dir/restart" "$dir/serves"
start
serves() { kill -0 "$broker" 2>/dev/null && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
until_true 90 serves || { tail -20 "$dir/kafka.log" >&2; fail "Kafka does not come up" "its last lines are above; is a port in use?"; }
printf '{"bootstrap":"127.0.0.1:%s","pid":%s}\n' "$port" "$broker"
# A parent that was killed sends no signal, so it is looked for.
while kill -0 "$parent" 2>/dev/null; do
    if ! kill -0 "$broker" 2>/dev/null; then
        [ -e "$dir/restart" ] || break
        rm -f "$dir/restart"
        start
        until_true 90 serves || break
        touch "$dir/serves"
    fi
    sleep 0.5 &
    wait $! || true
done
