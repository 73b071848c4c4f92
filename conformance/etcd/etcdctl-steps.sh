# The steps of an ordinary user of etcdctl; sourced with $etcdctl set.
version=$("$etcdctl" version | sed -n 's/^etcdctl version: //p')
range=(--range)
case $version in 3.4.*) range=() && export ETCDCTL_API=3 ;; esac # what later versions warn of, and what 3.4 does not know
begin "$(basename "$0" .sh)" "$version"
p="conformance/etcdctl/$(date +%s%N)/"

first=${ETCD_ENDPOINTS%%,*}
etcdctl() { timeout 20 "$etcdctl" --endpoints "$ETCD_ENDPOINTS" "$@"; }
ctl() { etcdctl "$@" 2>&1; }
ctl_first() { timeout 20 "$etcdctl" --endpoints "$first" "$@" 2>&1; }
one_line() { tr '\n' ' ' | sed 's/ $//'; }
field() { # a name in etcdctl's JSON, which is compact in one version and spaced in none
    sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" | head -1
}
revision() { ctl get "${p}none" -w json | field revision; }
short() { sed "s#$p##g"; }
# The text of an error. 3.4 logs it as JSON before it says it.
error() { grep -v '^{' | sed -n 's/.*Error: //p' | tail -1; }

# Keys and ranges.
check "put says OK" OK "$(ctl put "${p}a" 1)"
check "get returns key and value" "a 1" "$(ctl get "${p}a" | short | one_line)"
check "get with the value only" 1 "$(ctl get "${p}a" --print-value-only)"
check "put returns the previous pair" "OK a 1" "$(ctl put "${p}a" 2 --prev-kv | short | one_line)"
check "get of a missing key is empty" "" "$(ctl get "${p}nothing")"
value=$'two\nlines, ünïcode and a \t'
ctl put "${p}binary" <<<"$value" >/dev/null
check "a value comes back as it was sent" "$value" "$(ctl get "${p}binary" --print-value-only)"
ctl put "${p}empty" "" >/dev/null
check "an empty value is kept" "empty " "$(ctl get "${p}empty" | short | tr '\n' ' ' | sed 's/  $/ /')"
ctl del "${p}binary" >/dev/null
ctl del "${p}empty" >/dev/null
for k in b c d e; do ctl put "$p$k" "v-$k" >/dev/null; done
check "get by prefix" "a 2 b v-b c v-c d v-d e v-e" "$(ctl get --prefix "$p" | short | one_line)"
check "get of a range leaves out its end" "b v-b c v-c" "$(ctl get "${p}b" "${p}d" | short | one_line)"
check "get with a limit" "a 2 b v-b" "$(ctl get --prefix "$p" --limit 2 | short | one_line)"
check "keys only" "a  b  c  d  e" "$(ctl get --prefix "$p" --keys-only | short | one_line | sed 's/ *$//')"
check "sorted by key, descending" "e d c b a" "$(ctl get --prefix "$p" --keys-only --order DESCEND --sort-by KEY | short | grep . | one_line)"
ctl put "${p}b" v-b2 >/dev/null
ctl put "${p}b" v-b3 >/dev/null
check "sorted by version, descending" b "$(ctl get --prefix "$p" --keys-only --order DESCEND --sort-by VERSION --limit 1 | short | grep . | one_line)"
check "sorted by modification" "b" "$(ctl get --prefix "$p" --keys-only --order DESCEND --sort-by MODIFY --limit 1 | short | grep . | one_line)"
check "sorted by creation" "a b c d e" "$(ctl get --prefix "$p" --keys-only --order ASCEND --sort-by CREATE | short | grep . | one_line)"
check "sorted by value" "a b c d e" "$(ctl get --prefix "$p" --keys-only --order ASCEND --sort-by VALUE | short | grep . | one_line)"
check "from a key on" "d e" "$(ctl get --from-key "${p}d" --limit 2 --keys-only | short | grep . | one_line)"
before=$(revision)
ctl put "${p}a" 3 >/dev/null
check "one change is one revision" $((before + 1)) "$(revision)"
check "get at an older revision" 2 "$(ctl get "${p}a" --rev "$before" --print-value-only)"
check "a serializable get" 3 "$(ctl get "${p}a" --consistency s --print-value-only)"
check "the version counts the puts" 3 "$(ctl get "${p}a" -w json | field version)"
check "the header names cluster and member" 0 "$(ctl get "${p}a" -w json | grep -q '"cluster_id":[1-9].*"member_id":[1-9].*"raft_term":[1-9]'; echo $?)"
check "delete counts" 1 "$(ctl del "${p}e")"
check "delete returns the previous pair" "1 d v-d" "$(ctl del "${p}d" --prev-kv | short | one_line)"
check "delete of a missing key counts none" 0 "$(ctl del "${p}d")"
check "delete of a range" 2 "$(ctl del "${range[@]}" "${p}b" "${p}d")"
for k in x1 x2 x3; do ctl put "$p$k" "$k" >/dev/null; done
check "delete by prefix" 3 "$(ctl del --prefix "${p}x")"

# Transactions.
txn() { # compares, what to do if they hold, what if not; an empty line ends each part
    { for part in "$@"; do [ -z "$part" ] || printf '%s\n' "$part"; echo; done; } | ctl txn | short | grep . | one_line
}
check "a transaction whose compare holds" "SUCCESS OK a 4" "$(txn "value(\"${p}a\") = \"3\"" "put ${p}a 4
get ${p}a" "get ${p}a")"
check "a transaction whose compare does not hold" "FAILURE a 4" "$(txn "value(\"${p}a\") = \"3\"" "put ${p}a 5" "get ${p}a")"
check "compare of version, of creation and of modification" "SUCCESS OK" "$(txn "version(\"${p}a\") > \"1\"
create(\"${p}a\") > \"0\"
mod(\"${p}a\") != \"1\"" "put ${p}t 1" "")"
check "a key that is not there has version 0" "SUCCESS OK" "$(txn "version(\"${p}new\") = \"0\"" "put ${p}new 1" "")"
check "a delete in a transaction" "SUCCESS 1" "$(txn "" "del ${p}new" "" | sed 's/ *$//')"
check "a key twice in one transaction" "etcdserver: duplicate key given in txn request" "$(printf '\nput %sz 1\nput %sz 2\n\n\n\n' "$p" "$p" | ctl txn | error)"
many=$(for n in $(seq 129); do echo "put ${p}many$n 1"; done)
check "more operations than a transaction may have" "etcdserver: too many operations in txn request" "$(printf '\n%s\n\n\n\n' "$many" | ctl txn | error)"

# Watches.
watching() { # file, what must be in it
    until_true 10 grep -qsF -- "$2" "$1"
}
start=$(revision)
etcdctl watch "${p}w" --rev $((start + 1)) --prev-kv >"$work/w1" 2>&1 &
ctl put "${p}w" 1 >/dev/null
ctl put "${p}w" 2 >/dev/null
ctl del "${p}w" >/dev/null
watching "$work/w1" DELETE || true
check "a watch sees puts and deletes with what was before" "PUT w 1 PUT w 1 w 2 DELETE w 2 w" "$(short <"$work/w1" | grep . | one_line)"
etcdctl watch --prefix "${p}w" --rev $((start + 1)) >"$work/w2" 2>&1 &
watching "$work/w2" DELETE || true
check "a watch from an older revision catches up" "PUT w 1 PUT w 2 DELETE w" "$(short <"$work/w2" | grep . | one_line)"
etcdctl watch --prefix "${p}live" >"$work/w3" 2>&1 &
live() { ctl put "${p}live/k" now >/dev/null; grep -q now "$work/w3"; } 2>/dev/null
until_true 10 live || true
check "a live watch" "PUT live/k now" "$(short <"$work/w3" | head -3 | one_line)"
{ echo "watch ${p}i"; sleep 1; echo progress; sleep 1; } | etcdctl watch -i >"$work/w4" 2>&1 || true
check_has "a watch tells its progress when asked" "progress notify: " "$(cat "$work/w4")"

# Compaction.
check "a future revision" "etcdserver: mvcc: required revision is a future revision" "$(ctl get "${p}a" --rev 9000000000 | error)"
now=$(revision)
check "compaction names its revision" "compacted revision $now" "$(ctl compact "$now")"
check "compacting twice" "etcdserver: mvcc: required revision has been compacted" "$(ctl compact "$now" | error)"
check "compacting the future" "etcdserver: mvcc: required revision is a future revision" "$(ctl compact 9000000000 | error)"
check "a read of what was compacted" "etcdserver: mvcc: required revision has been compacted" "$(ctl get "${p}a" --rev $((now - 2)) | error)"
check "a read at the compacted revision itself" 4 "$(ctl get "${p}a" --rev "$now" --print-value-only)"
# A watch may come to a member that has not compacted yet, so it is asked again.
cancelled() { timeout 3 "$etcdctl" --endpoints "$ETCD_ENDPOINTS" watch "${p}a" --rev $((now - 2)) >"$work/cancelled" 2>&1; grep -q compacted "$work/cancelled"; }
until_true 15 cancelled || true
check_has "a watch of what was compacted is cancelled" "etcdserver: mvcc: required revision has been compacted" "$(cat "$work/cancelled")"

# Leases.
lease=$(ctl lease grant 60 | sed -n 's/^lease \([0-9a-f]*\) granted with TTL(60s)$/\1/p')
check "a lease is granted" 1 "$([ -n "$lease" ] && echo 1)"
check "a put with a lease" OK "$(ctl put "${p}leased" 1 --lease "$lease")"
check_has "its time to live and its keys" "granted with TTL(60s), remaining(" "$(ctl lease timetolive "$lease" --keys)"
check_has "its keys by name" "attached keys([${p}leased])" "$(ctl lease timetolive "$lease" --keys)"
check_has "it is in the list" "$lease" "$(ctl lease list)"
check "it is kept alive" "lease $lease keepalived with TTL(60)" "$(ctl lease keep-alive --once "$lease")"
ctl put "${p}leased" 2 --ignore-lease >/dev/null
ctl put "${p}leased" --ignore-value --lease "$lease" >/dev/null
check "ignoring lease and value keeps them" 2 "$(ctl get "${p}leased" --print-value-only)"
check "it is revoked" "lease $lease revoked" "$(ctl lease revoke "$lease")"
check "its key is gone" "" "$(ctl get "${p}leased")"
check_has "revoking it again" "etcdserver: requested lease not found" "$(ctl lease revoke "$lease")"
check "a put with a lease that is gone" "etcdserver: requested lease not found" "$(ctl put "${p}leased" 3 --lease "$lease" | error)"
check "the time to live of a lease that is gone" "lease $lease already expired" "$(ctl lease timetolive "$lease")"
lease=$(ctl lease grant 2 | sed -n 's/^lease \([0-9a-f]*\) granted.*/\1/p')
ctl put "${p}short" 1 --lease "$lease" >/dev/null
gone() { [ -z "$(ctl get "${p}short")" ]; }
check "a key is there while its lease lives" 1 "$(ctl get "${p}short" --print-value-only)"
check "a key goes with its expired lease" gone "$(until_true 15 gone && echo gone)"
lease=$(ctl lease grant 2 | sed -n 's/^lease \([0-9a-f]*\) granted.*/\1/p')
ctl put "${p}kept" 1 --lease "$lease" >/dev/null
timeout 6 "$etcdctl" --endpoints "$ETCD_ENDPOINTS" lease keep-alive "$lease" >/dev/null 2>&1 || true
check "a lease that is kept alive outlives its time" 1 "$(ctl get "${p}kept" --print-value-only)"

# Locks and elections.
check_has "a lock runs a command and tells it the key" "${p}lock/" "$(ctl lock "${p}lock" -- sh -c 'echo "$ETCD_LOCK_KEY"')"
check "a lock is handed on" "1 2" "$( (etcdctl lock "${p}lock2" -- sh -c 'sleep 1; echo 1' 2>&1 & sleep 0.5; etcdctl lock "${p}lock2" echo 2 2>&1; wait) | one_line)"
etcdctl elect "${p}elect" me >"$work/elect" 2>&1 &
elector=$!
watching "$work/elect" me || true
etcdctl elect -l "${p}elect" >"$work/leader" 2>&1 &
watching "$work/leader" me || true
check "an election has a leader" me "$(sed -n 2p "$work/elect")"
check "an observer hears who leads" me "$(sed -n 2p "$work/leader")"
kill "$elector" 2>/dev/null || true

# The cluster.
members=$(ctl member list -w json)
check "members have ids, names and addresses" 0 "$(grep -q '"ID":[1-9].*"name":"..*"peerURLs":\["..*"clientURLs":\["..*' <<<"$members"; echo $?)"
check_has "an endpoint is healthy" "is healthy: successfully committed proposal" "$(ctl_first endpoint health)"
status=$(ctl_first endpoint status -w json)
check "status names version, leader and revision" 0 "$(grep -q '"revision":[1-9].*"version":"3\..*"leader":[1-9].*"raftIndex":[1-9].*' <<<"$status"; echo $?)"
check "a hash of the keys" 0 "$(ctl_first endpoint hashkv | grep -Eq ', [0-9]+$|, [0-9]+,'; echo $?)"
check "no alarm is raised" "" "$(ctl alarm list)"
check_has "defragmenting succeeds" "Finished defragmenting etcd member[" "$(ctl_first defrag)"
ctl_first snapshot save "$work/snapshot" >"$work/snapshot.log" 2>&1 || true
check "a snapshot is saved" saved "$([ -s "$work/snapshot" ] && echo saved || cat "$work/snapshot.log")"
case $version in 3.4.*) ;; *) check_has "whether authentication is on" "Authentication Status: false" "$(ctl auth status)" ;; esac

# What is wrong is said as etcd says it.
check "an empty key" "etcdserver: key is not provided" "$(ctl put "" 1 | error)"
check "ignoring the value of a key that is not there" "etcdserver: key not found" "$(ctl put "${p}nothing" --ignore-value | error)"
head -c 1700000 /dev/zero | tr '\0' x >"$work/large"
check "a value that is too large" "etcdserver: request is too large" "$(ctl put "${p}large" <"$work/large" | error)"
end
