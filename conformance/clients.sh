#!/usr/bin/env bash
# Ordinary clients against a cluster of three: kcat, mosquitto, curl's equal in Python, and our own command line.
# Every line states what must come back; the first surprise ends the run.
# usage: clients.sh BUTTRESS
set -euo pipefail
buttress=$(realpath "$1")
dir=$(mktemp -d)
"$buttress" dev --nodes 3 --output json >"$dir/nodes.json" &
cluster=$!
trap 'kill "$cluster" 2>/dev/null; wait "$cluster" 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 600); do [ -s "$dir/nodes.json" ] && break; sleep 0.1; done
address() { python3 -c 'import json,sys; print(json.loads(open(sys.argv[1]).readline())["nodes"][int(sys.argv[2])][sys.argv[3]])' "$dir/nodes.json" "$1" "$2"; }
export BUTTRESS_SERVER="http://$(address 0 http)"
kafka=$(address 1 kafka)
mqtt=$(address 2 mqtt)

check() { # name, wanted, got
    if [ "$2" != "$3" ]; then printf 'FAIL %s\n wanted: %s\n got:    %s\n' "$1" "$2" "$3" >&2; exit 1; fi
    printf 'ok   %s\n' "$1"
}

"$buttress" topic create lines --partitions 3
check "kcat lists the topic with its partitions" "3" "$(kcat -b "$kafka" -L -J | python3 -c 'import json,sys; print(next(len(t["partitions"]) for t in json.load(sys.stdin)["topics"] if t["topic"] == "lines"))')"

seq 1 5000 | kcat -b "$kafka" -t lines -P
check "kcat reads back what kcat wrote" "5000" "$(kcat -b "$kafka" -t lines -C -o beginning -e -q | sort -n | uniq | wc -l)"
seq 5001 6000 | kcat -b "$kafka" -t lines -P -z gzip -X enable.idempotence=true
check "compressed, idempotent batches come back whole" "6000" "$(kcat -b "$kafka" -t lines -C -o beginning -e -q | sort -n | uniq | wc -l)"
check "kcat reads the latest record" "1" "$(kcat -b "$kafka" -t lines -p 0 -C -o -1 -e -q -c 1 | wc -l)"

group() { timeout 60 kcat -b "$kafka" -G "$1" -q -c "$2" -X session.timeout.ms=6000 -X auto.offset.reset=earliest lines; }
check "a group reads the whole topic" "6000" "$(group readers 6000 | sort -n | uniq | wc -l)"
seq 6001 6010 | kcat -b "$kafka" -t lines -P
check "and goes on where it was" "10" "$(group readers 10 | sort -n | uniq | awk '$1 > 6000' | wc -l)"

"$buttress" topic create telemetry --partitions 2
host=${mqtt%:*} port=${mqtt#*:}
for n in 1 2 3; do mosquitto_pub -h "$host" -p "$port" -q 1 -t telemetry/m-1 -m "{\"n\":$n}"; done
check "what mosquitto published with QoS 1 is in the log" '{"n":1} {"n":2} {"n":3}' "$(kcat -b "$kafka" -t telemetry -C -o beginning -e -q | tr '\n' ' ' | sed 's/ $//')"
check "kcat sees the MQTT client's key" "m-1 m-1 m-1" "$(kcat -b "$kafka" -t telemetry -C -o beginning -e -q -f '%k\n' | tr '\n' ' ' | sed 's/ $//')"
mosquitto_sub -h "$host" -p "$port" -q 1 -t 'telemetry/#' -C 1 -W 20 >"$dir/sub.txt" &
sub=$!
for _ in $(seq 100); do
    mosquitto_pub -h "$host" -p "$port" -q 1 -t telemetry/m-2 -m '{"n":4}'
    sleep 0.1
    kill -0 "$sub" 2>/dev/null || break
done
wait "$sub"
check "a subscriber gets what is published" '{"n":4}' "$(cat "$dir/sub.txt")"

"$buttress" topic create events --partitions 1 --sequence machine,seq
post() { # content type, path, body
    python3 - "$BUTTRESS_SERVER$2" "$1" "$3" <<'PY'
import sys, urllib.request, urllib.error
request = urllib.request.Request(sys.argv[1], data=sys.argv[3].encode(), headers={"Content-Type": sys.argv[2]}, method="POST")
try:
    print(urllib.request.urlopen(request, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
PY
}
json=application/vnd.kafka.json.v2+json
check "the REST proxy takes records" "200" "$(post "$json" /topics/events '{"records":[{"key":"m","value":{"machine":"m","seq":1}},{"key":"m","value":{"machine":"m","seq":2}}]}')"
check "a retry is acknowledged" "200" "$(post "$json" /topics/events '{"records":[{"key":"m","value":{"machine":"m","seq":2}}]}')"
check "and not appended again" "2" "$(kcat -b "$kafka" -t events -C -o beginning -e -q | wc -l)"
check "an unknown topic is a 404" "404" "$(post "$json" /topics/nothing '{"records":[{"value":1}]}')"
check "malformed JSON is refused" "yes" "$(case "$(post "$json" /topics/events '{"records":')" in 4*) echo yes ;; esac)"

echo '{"machine":"m","seq":3}' | "$buttress" produce events --key m
check "the command line reads every record" "3" "$("$buttress" consume events | wc -l)"
check "an unknown topic is an error with a code" "BT0301" "$("$buttress" consume nothing 2>&1 | grep -o 'BT0301')"
check "cluster status names one leader" "1" "$("$buttress" cluster status | grep -c ' leader ')"
echo "all clients agree"
