#!/usr/bin/env bash
# The way out: a snapshot taken with etcdctl 3.7, looked into and restored with etcdutl 3.7, served by a real etcd 3.7, and
# compared key by key with where it was taken.
# usage: ETCD_ENDPOINTS=HOST:PORT[,…] etcdutl.sh [--install]
source "$(dirname "$0")/../lib.sh"
go_build etcdctl
go_build etcdutl
go_build etcd
only_installing "$@"
begin "$(basename "$0" .sh)" "$("$cache/bin/etcdctl" version | sed -n 's/^etcdctl version: //p')"
p="conformance/etcdutl/$(date +%s%N)/"
first=${ETCD_ENDPOINTS%%,*}
at() { local endpoint=$1; shift; timeout 60 "$cache/bin/etcdctl" --endpoints "$endpoint" "$@" 2>&1; }
there() { at "$first" "$@"; }
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" | head -1; }
without_header() { sed 's/"header":{[^}]*},\{0,1\}//'; }

# Whoever was here before may have left leases whose end would change the keys between two looks.
nobody_left() { [ "$(there lease list | sed -n 's/^found \([0-9]*\) leases$/\1/p')" = 0 ]; }
until_true 120 nobody_left || echo "note: there are leases of others, whose end may change keys" >&2

# Keys that were written often, deleted, written again, written together, with leases, large and empty.
for n in 1 2 3; do for k in a b c d; do there put "$p$k" "$k$n" >/dev/null; done; done
there del "${p}a" "${p}c" >/dev/null
compact_at=$(there get "${p}none" -w json | field revision)
there put "${p}a" again >/dev/null
printf 'put %st1 one\nput %st2 two\ndel %sd\n\n\n\n' "$p" "$p" "$p" | sed '1i\\' | there txn >/dev/null
printf '\n%s\n%s\n\n\n' "put ${p}t3 three" "put ${p}t4 four" | there txn >/dev/null
lease=$(there lease grant 3600 | sed -n 's/^lease \([0-9a-f]*\) granted.*/\1/p')
for k in l1 l2; do there put "$p$k" held --lease "$lease" >/dev/null; done
there put "${p}empty" "" >/dev/null
head -c 1000000 /dev/zero | tr '\0' x | there put "${p}large" >/dev/null
for n in $(seq 1 40); do printf 'put %smany/%s %s\n' "$p" "$n" "$(head -c 3000 /dev/zero | tr '\0' "$((n % 10))")"; done |
    { echo; cat; printf '\n\n'; } | there txn >/dev/null
there compact "$compact_at" >/dev/null
now=$(there get "${p}none" -w json | field revision)

check_has "the snapshot is saved" "Snapshot saved at" "$(there snapshot save "$work/file.db")"
check "no page of it is wrong" OK "$("$cache/bin/etcdutl" check "$work/file.db" 2>&1)"
status=$("$cache/bin/etcdutl" snapshot status "$work/file.db" -w json 2>&1)
check "its status names the revision" "$now" "$(field revision <<<"$status")"
keys=$(there get "" --from-key --count-only -w fields | sed -n 's/.*"Count" : //p')
check "its status counts the keys" "$keys" "$(field totalKey <<<"$status")"
cp "$work/file.db" "$work/damaged.db"
printf '\1' | dd of="$work/damaged.db" bs=1 seek=9000 conv=notrunc 2>/dev/null
check_has "a damaged one is noticed" "expected sha256" "$("$cache/bin/etcdutl" snapshot restore "$work/damaged.db" --data-dir "$work/damaged" 2>&1 || true)"

# A free pair of ports, taken a moment later.
port=$(python3 -c 'import socket
s = [socket.socket() for _ in range(2)]
for one in s: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in s))')
read -r client peer <<<"$port"
client=127.0.0.1:$client peer=http://127.0.0.1:$peer
"$cache/bin/etcdutl" snapshot restore "$work/file.db" --data-dir "$work/restored" --name one --initial-cluster "one=$peer" --initial-advertise-peer-urls "$peer" >"$work/restore.log" 2>&1 && restored=0 || restored=$?
check "it is restored" 0 "$restored"
"$cache/bin/etcd" --name one --data-dir "$work/restored" --listen-client-urls "http://$client" --advertise-client-urls "http://$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --log-level warn >"$work/etcd.log" 2>&1 &
healthy() { at "$client" endpoint health >/dev/null; }
until_true 30 healthy || cat "$work/etcd.log" >&2
here_() { at "$client" "$@"; }
all() { "$1" get "" --from-key -w json "${@:2}" | without_header || true; }
same() { # name, how it is there, how it is here
    if [ "$2" = "$3" ]; then check "$1" same same; else check "$1" "${2:0:900}" "${3:0:900}"; fi
}
check "an etcd that starts from it is at the same revision" "$now" "$(here_ get "${p}none" -w json | field revision)"
same "it has all keys, with values, versions, revisions and leases" "$(all there)" "$(all here_)"
for back in 1 2 3 $((now - compact_at)); do
    same "it has them as they were $back revisions before" "$(all there --rev $((now - back)))" "$(all here_ --rev $((now - back)))"
done
same "what was compacted is compacted" "$(there get "${p}a" --rev $((compact_at - 1)) | grep -v '^{' | tail -1 || true)" "$(here_ get "${p}a" --rev $((compact_at - 1)) | grep -v '^{' | tail -1 || true)"
check_has "keys and values were compared, and not two errors" "$(printf '%s' "${p}large" | base64 -w0 | head -c 40)" "$(all here_ | head -c 3000000)"
watched() { timeout 3 "$cache/bin/etcdctl" --endpoints "$1" watch --prefix "$p" --rev "$compact_at" 2>&1 | grep -a . | cut -c1-200 || true; }
same "a watch from the compaction on hears the same" "$(watched "$first" | sha256sum)" "$(watched "$client" | sha256sum)"
check_has "and it hears what was written" "${p}t4" "$(watched "$client")"
check "the leases are the same" "$(there lease list | sort | tr '\n' ' ')" "$(here_ lease list | sort | tr '\n' ' ')"
ttl=$(here_ lease timetolive "$lease" --keys)
check_has "a lease has its time to live" "granted with TTL(3600s)" "$ttl"
for k in l1 l2; do check_has "and its key $k" "$p$k" "$ttl"; done
check "and ends them when it is revoked" 0 "$(here_ lease revoke "$lease" >/dev/null; here_ get --prefix "${p}l1" --count-only -w fields | sed -n 's/.*"Count" : //p')"
check "it takes writes" OK "$(here_ put "${p}new" 1)"
check "and gives them the next revision" $((now + 2)) "$(here_ get "${p}new" -w json | field mod_revision)"
there lease revoke "$lease" >/dev/null
end
