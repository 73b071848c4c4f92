#!/usr/bin/env bash
# Starts the original Kafka, one broker in KRaft mode or several, from its artefacts, and prints a line of JSON once it serves:
#     {"bootstrap":"127.0.0.1:9092,…","pid":4711}
# with the process of the first broker. Ends with the process that started it, on a signal, or with any of the brokers. Loopback
# only. Node n listens on PORT + 2n for clients and on the port after that for controllers; every node is a broker and a
# controller. Started again with the same arguments after a broker was killed, it goes on with the same data.
# With --restart the first broker is stopped by a signal (KILL unless another is named) and started again on its data; the
# command returns when it serves.
# What may be in the environment:
#   KAFKA_MORE=LINES            more lines for server.properties
#   KAFKA_ADVERTISE=HOST:PORT   one node only: where clients find the broker: a proxy, say
#   KAFKA_SECURE=DIR            one node only: PEM files ca.pem and server.pem (the key, then the certificate): PORT + 2 takes
#                               users over TLS (alice may do everything, mallory nothing; the password is the name and
#                               -secret), PORT + 3 takes certificates of the same authority (CN=client may do everything)
# usage: kafka.sh DIR PORT [NODES] | kafka.sh --restart DIR [SIGNAL]
source "$(dirname "$0")/../lib.sh"
if [ "$1" = --restart ]; then
    dir=$2
    before=$(cat "$dir/broker.pid") || fail "no broker runs in $dir" "start it first: kafka.sh $dir PORT"
    rm -f "$dir/serves"
    touch "$dir/restart"
    kill "-${3:-KILL}" "$before"
    again() { [ -e "$dir/serves" ]; }
    until_true 120 again || { tail -20 "$dir/node0/kafka.log" >&2; fail "Kafka does not come up again" "its last lines are above"; }
    exit
fi
need java "apt-get install default-jre-headless (17 or newer)"
maven_jars "$here/originals/kafka" kafka-jars
[ "$1" = --install ] && exit
dir=$1 port=$2 nodes=${3:-1}
[ "$nodes" = 1 ] || [ -z "${KAFKA_ADVERTISE:-}${KAFKA_SECURE:-}" ] || fail "KAFKA_ADVERTISE and KAFKA_SECURE are for one node" "leave NODES out"
parent=$PPID
mkdir -p "$dir"
rm -f "$dir/restart" "$dir/serves"
copies=$((nodes < 3 ? nodes : 3))
voters='' bootstrap=''
for n in $(seq 0 $((nodes - 1))); do
    voters+=${voters:+,}$((n + 1))@127.0.0.1:$((port + 2 * n + 1))
    bootstrap+=${bootstrap:+,}127.0.0.1:$((port + 2 * n))
done
# One node forms its own quorum; several are told of each other.
if [ "$nodes" = 1 ]; then
    quorum=controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1)) format=(--standalone)
else
    quorum=controller.quorum.voters=$voters format=()
fi
more_listeners=''
if [ -n "${KAFKA_SECURE:-}" ]; then
    more_listeners=,SECURE://127.0.0.1:$((port + 2)),MUTUAL://127.0.0.1:$((port + 3))
    for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
        for user in alice mallory; do format+=(--add-scram "$mechanism=[name=$user,password=$user-secret]"); done
    done
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
start() { # a node that is formatted
    "${run[@]}" kafka.Kafka "$dir/node$1/server.properties" >>"$dir/node$1/kafka.log" 2>&1 &
    brokers[$1]=$!
    [ "$1" != 0 ] || echo "$!" >"$dir/broker.pid"
}
for n in $(seq 0 $((nodes - 1))); do
    at=$dir/node$n client=127.0.0.1:$((port + 2 * n)) controller=127.0.0.1:$((port + 2 * n + 1))
    mkdir -p "$at"
    cat >"$at/server.properties" <<EOF
process.roles=broker,controller
node.id=$((n + 1))
$quorum
listeners=PLAINTEXT://$client,CONTROLLER://$controller$more_listeners
advertised.listeners=PLAINTEXT://${KAFKA_ADVERTISE:-$client},CONTROLLER://$controller$more_listeners
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
${KAFKA_MORE:-}
EOF
    [ -z "${KAFKA_SECURE:-}" ] || cat >>"$at/server.properties" <<EOF
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
    [ -e "$at/data/meta.properties" ] || "${run[@]}" kafka.tools.StorageTool format "${format[@]}" --cluster-id Y29uZm9ybWFuY2UtMTIzNA --config "$at/server.properties" >"$at/format.log" 2>&1 ||
        { cat "$at/format.log" >&2; fail "Kafka's storage cannot be formatted" "the lines above say why"; }
    start "$n"
done
alive() { for broker in "${brokers[@]}"; do kill -0 "$broker" 2>/dev/null || return 1; done; }
serves() {
    for n in $(seq 0 $((nodes - 1))); do (exec 3<>"/dev/tcp/127.0.0.1/$((port + 2 * n))") 2>/dev/null || return 1; done
}
# Waiting ends early when a broker has ended.
settled() { ! alive || serves; }
up() { until_true 90 settled && alive; }
up || { tail -n 20 "$dir"/node*/kafka.log >&2; fail "Kafka does not come up" "its last lines are above; is a port in use?"; }
printf '{"bootstrap":"%s","pid":%s}\n' "$bootstrap" "${brokers[0]}"
# A parent that was killed sends no signal, so it is looked for.
while kill -0 "$parent" 2>/dev/null; do
    if ! alive; then
        [ -e "$dir/restart" ] || break
        rm -f "$dir/restart"
        start 0
        up || break
        touch "$dir/serves"
    fi
    sleep 0.5 &
    wait $! || true
done
