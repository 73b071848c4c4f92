#!/usr/bin/env bash
# Wall clocks that are set by an hour, under three real nodes: a lease that etcdctl keeps alive lives through it, whoever
# leads, and one that nobody keeps alive ends. faketime gives each node a wall clock of its own and leaves the monotonic one.
# usage: clocks.sh BUTTRESS
set -euo pipefail
buttress=$(realpath "$1")
fake=$(ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -1) || true
[ -n "$fake" ] || { printf 'error: there is no libfaketime\n\nhint: apt-get install faketime\n' >&2; exit 2; }
command -v etcdctl >/dev/null || { printf 'error: there is no etcdctl\n\nhint: apt-get install etcd-client\n' >&2; exit 2; }
export ETCDCTL_API=3
dir=$(mktemp -d)
pids=()
end() {
    [ -z "${keeper:-}" ] || kill "$keeper" 2>/dev/null || true
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT

python3 - "$dir" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(15)]
for one in held: one.bind(("127.0.0.1", 0))
ports = iter([one.getsockname()[1] for one in held])
members = ""
for n in (1, 2, 3):
    members += f'\n[[members]]\nid = {n}\nname = "node-{n}"\n'
    for edge in ("peer", "kafka", "mqtt", "http", "etcd"):
        port = next(ports)
        members += f'{edge} = "127.0.0.1:{port}"\n'
        open(f"{sys.argv[1]}/{edge}-{n}", "w").write(f"127.0.0.1:{port}")
for n in (1, 2, 3):
    head = f'[node]\nid = {n}\ndata_dir = "{sys.argv[1]}/data-{n}"\n\n[cluster]\nid = "clocks"\n'
    open(f"{sys.argv[1]}/node-{n}.toml", "w").write(head + members)
PY

check() { # name, wanted, got
    if [ "$2" != "$3" ]; then printf 'FAIL %s\n wanted: %s\n got:    %s\n' "$1" "$2" "$3" >&2; tail -n 5 "$dir"/log-* >&2; exit 1; fi
    printf 'ok   %s\n' "$1"
}
until_so() { # what, command…
    local what=$1
    shift
    for _ in $(seq 600); do "$@" && return; sleep 0.1; done
    check "$what" "within a minute" "not"
}
set_clock() { # node, offset
    printf '%s\n' "$2" >"$dir/clock-$1.new"
    mv "$dir/clock-$1.new" "$dir/clock-$1"
}
start() { # node
    LD_PRELOAD=$fake FAKETIME_TIMESTAMP_FILE="$dir/clock-$1" FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
        "$buttress" serve --config "$dir/node-$1.toml" >>"$dir/log-$1" 2>&1 &
    pids[$1]=$!
}
endpoints="$(cat "$dir/etcd-1"),$(cat "$dir/etcd-2"),$(cat "$dir/etcd-3")"
etcd() { etcdctl --endpoints "$endpoints" "$@"; }
of_node() { # node, expression over its answer and the right time in milliseconds
    python3 - "$(cat "$dir/http-$1")" "$2" <<'PY'
import json, sys, time, urllib.request
try:
    node, now_ms = json.load(urllib.request.urlopen(f"http://{sys.argv[1]}/v1/node", timeout=5)), time.time() * 1000
    print(eval(sys.argv[2]))
except OSError:
    print("")  # it does not answer yet
PY
}
leader() { of_node "$1" 'node["leader"] or ""'; }
leads() { [ "$(leader "$1")" = "$2" ]; }
has_leader() { [ -n "$(leader "$1")" ]; }
ahead() { [ "$(of_node "$1" 'round((node["now_ms"] - now_ms) / 60000)')" = "$2" ]; }
gone() { [ -z "$(etcd get "$1" --print-value-only)" ]; }
grant() { etcd lease grant "$1" | awk '{print $2}'; }
# A lease that nobody keeps alive ends, so the time goes on, and the one that is kept alive is there.
lives() { # when
    local brief
    brief=$(grant 2)
    etcd put brief here --lease "$brief" >/dev/null
    until_so "$1, a lease of two seconds ends" gone brief
    check "$1, the lease that is kept alive lives" "held" "$(etcd get kept --print-value-only)"
}

for n in 1 2 3; do set_clock "$n" +0; start "$n"; done
for n in 1 2 3; do until_so "node $n knows a leader" has_leader "$n"; done
lease=$(grant 10)
etcd put kept held --lease "$lease" >/dev/null
etcdctl --endpoints "$endpoints" lease keep-alive "$lease" >"$dir/kept" 2>&1 &
keeper=$!

first=$(leader 1)
set_clock "$first" +3600
until_so "the leader's clock is an hour ahead" ahead "$first" 60
lives "after the leader's clock jumped an hour ahead"
set_clock "$first" -3600
until_so "the leader's clock is an hour behind" ahead "$first" -60
lives "after it jumped two hours back"

heir=$((first % 3 + 1))
set_clock "$heir" +3600
until_so "the heir's clock is an hour ahead" ahead "$heir" 60
etcdctl --endpoints "$(cat "$dir/etcd-$first")" move-leader "$(printf '%x' "$heir")" >/dev/null
until_so "leadership moves" leads "$heir" "$heir"
lives "under a leader whose clock is an hour ahead"

for n in 1 2 3; do kill -9 "${pids[$n]}"; wait "${pids[$n]}" 2>/dev/null || true; done
for n in 1 2 3; do set_clock "$n" +7200; start "$n"; done
for n in 1 2 3; do until_so "node $n knows a leader" has_leader "$n"; done
lives "after all were killed and started two hours ahead"

kill "$keeper"
wait "$keeper" 2>/dev/null || true
keeper=
until_so "the lease ends when nobody keeps it alive" gone kept
check "the lease ends when nobody keeps it alive" "" "$(etcd get kept --print-value-only)"
