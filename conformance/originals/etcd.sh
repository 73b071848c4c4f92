#!/usr/bin/env bash
# Starts the original etcd, as one node or as several, and prints a line of JSON once a leader is there:
#     {"endpoints":"127.0.0.1:2379,…"}
# Ends with the process that started it, or on a signal. Loopback only. Node n listens on PORT + 2n for clients and on the
# port after that for its peers.
# usage: etcd.sh DIR PORT [NODES]
source "$(dirname "$0")/../lib.sh"
go_build etcd
[ "$1" = --install ] && exit
dir=$1 port=$2 nodes=${3:-1}
parent=$PPID
mkdir -p "$dir"
cluster= endpoints=
for n in $(seq 0 $((nodes - 1))); do
    cluster+=${cluster:+,}node$n=http://127.0.0.1:$((port + 2 * n + 1))
    endpoints+=${endpoints:+,}127.0.0.1:$((port + 2 * n))
done
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT TERM INT
for n in $(seq 0 $((nodes - 1))); do
    client=http://127.0.0.1:$((port + 2 * n)) peer=http://127.0.0.1:$((port + 2 * n + 1))
    "$cache/bin/etcd" --name "node$n" --data-dir "$dir/node$n" --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$cluster" --initial-cluster-state new \
        --log-level warn >"$dir/node$n.log" 2>&1 &
done
healthy() { # every node names a leader
    for n in $(seq 0 $((nodes - 1))); do
        (exec 3<>"/dev/tcp/127.0.0.1/$((port + 2 * n))" && printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && grep -q '"health":"true"' <&3) 2>/dev/null || return 1
    done
}
until_true 60 healthy || { cat "$dir"/node*.log >&2; fail "etcd does not come up" "its last lines are above; is a port in use?"; }
printf '{"endpoints":"%s"}\n' "$endpoints"
# A parent that was killed sends no signal, so it is looked for.
while kill -0 "$parent" 2>/dev/null && [ "$(jobs -rp | wc -l)" = "$nodes" ]; do
    sleep 0.5 &
    wait $!
done
