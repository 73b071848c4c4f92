#!/usr/bin/env bash
# Plays the fleet demo on the original Kafka and the original etcd: function hosts instead of nodes, one of them killed, the
# broker killed and started again in the middle. Then Kafka's own consumer, with isolation.level=read_committed, reads
# everything back, and what it counts is held against the report.
# usage: demo-engines.sh BUTTRESS [DEMO'S ARGUMENTS…]
buttress=$(realpath "$1")
shift
source "$(dirname "$0")/lib.sh"
need python3 "apt-get install python3"
dir=$(mktemp -d)
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait || true; rm -rf "$dir"' EXIT
"$here/originals/kafka.sh" --install
"$here/originals/etcd.sh" --install
# Two ports each: clients and controller, clients and peers.
read -r kafka_port etcd_port < <(python3 - <<'PY'
import socket
def pair():
    for port in range(20_000, 30_000, 2):
        try:
            held = [socket.create_server(("127.0.0.1", port + n)) for n in (0, 1)]
        except OSError:
            continue
        yield port, held
found = pair()
(one, _), (two, _) = next(found), next(found)
print(one, two)
PY
)
"$here/originals/kafka.sh" "$dir/kafka" "$kafka_port" >"$dir/kafka.json" &
"$here/originals/etcd.sh" "$dir/etcd" "$etcd_port" >"$dir/etcd.json" &
both_serve() { [ -s "$dir/kafka.json" ] && [ -s "$dir/etcd.json" ]; }
until_true 120 both_serve || fail "the originals do not come up" "the lines above say why"

code=0
"$buttress" demo --kafka "127.0.0.1:$kafka_port" --etcd "http://127.0.0.1:$etcd_port" \
    --restart-broker "$here/originals/kafka.sh --restart $dir/kafka KILL" \
    --machines 500 --sessions 100 --rate 500 --duration 40s --seed 7 --keep --data-dir "$dir/demo" --output json "$@" >"$dir/report.json" || code=$?
[ -s "$dir/report.json" ] || { tail -n 5 "$dir"/demo/*.log >&2 || true; fail "the demo gives no report (exit $code)" "the lines above say why"; }

namespace=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["engines"]["namespace"])' "$dir/report.json")
read_back() { # topic
    java -cp "$cache/kafka-jars/*" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "127.0.0.1:$kafka_port" \
        --topic "$namespace$1" --from-beginning --isolation-level read_committed --timeout-ms 10000 >"$dir/$1.txt" 2>"$dir/$1.err" || true
}
read_back telemetry
read_back machine-anomalies
read_back buttress-audit
python3 - "$dir" "$code" <<'PY'
import collections, json, sys
dir, code = sys.argv[1], int(sys.argv[2])
report = json.load(open(f"{dir}/report.json"))
for promise in report["promises"]:
    print("held  " if promise["held"] else "BROKEN", promise["id"], promise["text"])
lines = lambda topic: [json.loads(line) for line in open(f"{dir}/{topic}.txt")]
seen = collections.Counter((reading["machine"], reading["seq"]) for reading in lines("telemetry"))
alerts = collections.Counter((alert["machine"], alert["seq"]) for alert in lines("machine-anomalies"))
ranges = collections.defaultdict(list)
for event in lines("buttress-audit"):
    if event["event"] == "batch" and event["function"] == "anomaly":
        ranges[event["partition"]].append((event["from"], event["to"], event["records"]))
holes = sum(a[1] != b[0] for list in ranges.values() for a, b in zip(list, list[1:]))
judged = sum(records for list in ranges.values() for _, _, records in list)
twice = lambda counter: sum(count - 1 for count in counter.values())
print(f"Kafka's own consumer read {len(seen)} readings, {twice(seen)} twice; {len(alerts)} anomalies, {twice(alerts)} twice; "
      f"{judged} verdicts with {holes} holes or overlaps")
print(f"the broker was {'restarted' if report['engines']['broker_restarted'] else 'NOT restarted'}, "
      f"{report['failover']['killed']} was killed")
assert twice(seen) == 0 and twice(alerts) == 0 and holes == 0
assert len(seen) == report["readings_sent"] == report["readings_acked"] > 0, (len(seen), report["readings_sent"])
assert judged == len(seen), (judged, len(seen))
assert len(alerts) == report["anomalies"]["reported"], (len(alerts), report["anomalies"])
assert report["lost"] == report["duplicates"] == report["stale_after_swap"] == 0
assert report["engines"]["broker_restarted"] and report["failover"]["killed"] and report["swap"]["to"] == 2
assert report["ok"] and code == 0, "the demo's promises do not hold"
PY
