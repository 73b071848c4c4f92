#!/usr/bin/env bash
# Runs a short fleet demo, then starts its cluster again on the same data and lets kcat count what is there.
# usage: demo-kcat.sh BUTTRESS
set -euo pipefail
buttress=$(realpath "$1")
dir=$(mktemp -d)
cluster=
trap '[ -z "$cluster" ] || { kill "$cluster"; wait "$cluster" || true; }; rm -rf "$dir"' EXIT

"$buttress" demo --duration 25s --seed 7 --data-dir "$dir/data" --keep --output json >"$dir/report.json"
python3 - "$dir/report.json" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
for promise in report["promises"]:
    print("held  " if promise["held"] else "BROKEN", promise["id"], promise["text"])
assert report["ok"], "the demo's promises do not hold"
PY

"$buttress" dev --data-dir "$dir/data" --output json >"$dir/nodes.json" &
cluster=$!
for _ in $(seq 300); do [ -s "$dir/nodes.json" ] && break; sleep 0.1; done
broker=$(python3 -c 'import json,sys; print(json.loads(open(sys.argv[1]).readline())["nodes"][0]["kafka"])' "$dir/nodes.json")

read_back() { kcat -b "$broker" -t "$1" -C -o beginning -e -q -f '%p %o %s\n' >"$dir/$1.txt"; }
read_back telemetry
read_back machine-anomalies
python3 - "$dir" <<'PY'
import collections, json, sys
dir = sys.argv[1]
report = json.load(open(f"{dir}/report.json"))
seen, offsets = collections.Counter(), collections.defaultdict(list)
for line in open(f"{dir}/telemetry.txt"):
    partition, offset, body = line.split(" ", 2)
    reading = json.loads(body)
    seen[reading["machine"], reading["seq"]] += 1
    offsets[partition].append(int(offset))
duplicates = sum(count - 1 for count in seen.values())
gaps = sum(later != earlier + 1 for list in offsets.values() for earlier, later in zip(list, list[1:]))
anomalies = sum(1 for _ in open(f"{dir}/machine-anomalies.txt"))
print(f"kcat read {len(seen)} readings, {duplicates} duplicates, {gaps} gaps, {anomalies} anomalies")
assert duplicates == 0 and gaps == 0
assert len(seen) >= report["readings_acked"] > 0, (len(seen), report["readings_acked"])
assert anomalies == report["anomalies"]["reported"], (anomalies, report["anomalies"])
PY
