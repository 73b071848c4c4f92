#!/usr/bin/env bash
# Starts the original etcd, as one node or as several, and prints a line of JSON once a leader is there:
#     {"endpoints":"127.0.0.1:2379,…"}
# Ends with the process that started it, or on a signal. Loopback only. Node n listens on PORT + 2n for clients and on the
# port after that for its peers.
# With --node N it starts that one node, prints {"pid":4711} at once, and ends with it: for whoever kills nodes and starts them
# again.
# What may be in the environment:
#   ETCD_MORE=FLAGS         more flags
#   ETCD_SECURE=DIR         PEM files server.crt and server.key: clients are served over TLS
#   ETCD_CLIENT_CA=FILE     and only those with a certificate of this authority
# usage: etcd.sh [--node N] DIR PORT [NODES]
source "$(dirname "$0")/../lib.sh"
go_build etcd
[ "$1" = --install ] && exit
only=
if [ "$1" = --node ]; then only=$2 && shift 2; fi
dir=$1 port=$2 nodes=${3:-1}
parent=$PPID
mkdir -p "$dir"
scheme=http flags=(${ETCD_MORE:-})
if [ -n "${ETCD_SECURE:-}" ]; then
    scheme=https
    flags+=(--cert-file "$ETCD_SECURE/server.crt" --key-file "$ETCD_SECURE/server.key")
    [ -z "${ETCD_CLIENT_CA:-}" ] || flags+=(--client-cert-auth --trusted-ca-file "$ETCD_CLIENT_CA")
fi
cluster= endpoints=
for n in $(seq 0 $((nodes - 1))); do
    cluster+=${cluster:+,}node$n=http://127.0.0.1:$((port + 2 * n + 1))
    endpoints+=${endpoints:+,}127.0.0.1:$((port + 2 * n))
done
node() { # which
    local client=$scheme://127.0.0.1:$((port + 2 * $1)) peer=http://127.0.0.1:$((port + 2 * $1 + 1))
    exec "$cache/bin/etcd" --name "node$1" --data-dir "$dir/node$1" --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$cluster" --initial-cluster-state new \
        --log-level warn "${flags[@]}" >>"$dir/node$1.log" 2>&1
}
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT TERM INT
if [ -n "$only" ]; then
    node "$only" &
    pid=$!
    printf '{"pid":%s}\n' "$pid"
    while kill -0 "$parent" 2>/dev/null && kill -0 "$pid" 2>/dev/null; do
        sleep 0.2 &
        wait $!
    done
    exit
fi
for n in $(seq 0 $((nodes - 1))); do node "$n" & done
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
