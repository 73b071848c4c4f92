#!/usr/bin/env bash
# kcat with librdkafka. usage: KAFKA_BOOTSTRAP=HOST:PORT[,…] kcat.sh [--install]
source "$(dirname "$0")/../lib.sh"
need kcat "apt-get install kcat"
need python3 "apt-get install python3"
only_installing "$@"
begin kcat "$(kcat -V | sed -n 's/^Version \([0-9.]*\).*librdkafka \([0-9.]*\).*/\1 (librdkafka \2)/p')"
t=conformance-kcat-$(date +%s%N)

k() { timeout 40 kcat -b "$KAFKA_BOOTSTRAP" "$@" 2>&1; }
produce() { local topic=$1; shift; k -P -t "$topic" "$@"; }
consume() { local topic=$1; shift; k -C -t "$topic" -e -q "$@"; }
one_line() { tr '\n' ' ' | sed 's/ $//'; }
metadata() { k -L -J "$@" | python3 -c "import json,sys; m=json.load(sys.stdin); print($expression)"; }

# Metadata; a topic that is named is created.
expression='len(m["brokers"]) > 0 and all(":" in b["name"] for b in m["brokers"])'
check "brokers are listed with addresses" True "$(metadata)"
echo first | produce "$t" >/dev/null
expression='[len(x["partitions"]) for x in m["topics"]]'
check "a topic that is produced to is created" "[1]" "$(metadata -t "$t")"
expression='all(p["leader"] >= 0 and p["replicas"] and p["isrs"] for x in m["topics"] for p in x["partitions"])'
check "partitions have a leader, replicas and replicas in sync" True "$(metadata -t "$t")"

# Producing and reading back, in every compression.
for codec in none gzip snappy lz4 zstd; do
    seq 1 3000 | sed "s/^/$codec-line-with-some-text-/" | produce "$t-$codec" -z "$codec" >/dev/null
    check "reads back what was written with $codec" "$(seq 1 3000 | sed "s/^/$codec-line-with-some-text-/" | sha256sum)" "$(consume "$t-$codec" -o beginning | sha256sum)"
done
seq 1 2000 | produce "$t-idem" -X enable.idempotence=true >/dev/null
check "an idempotent producer's records are there once" 2000 "$(consume "$t-idem" -o beginning | wc -l)"
for acks in 0 1 all; do
    echo "acks=$acks" | produce "$t-acks" -X acks=$acks >/dev/null
done
there() { [ "$(consume "$t-acks" -o beginning | wc -l)" = 3 ]; }
check "acknowledgements of nobody, one and all" yes "$(until_true 10 there && echo yes)"

# Keys, headers, timestamps, empty values.
printf 'k1:v1\nk2:\n:v3\n' | produce "$t-keys" -K: -Z -H "h=one" -H "h=two" -H "other=x" >/dev/null
check "keys, empty values and headers" "k1=v1[h=one,h=two,other=x] k2=-1 =v3" "$(consume "$t-keys" -o beginning -f '%k=%s[%h] %S\n' | sed -e '1s/ 2$//' -e '2s/=.*\] -1/=-1/' -e '3s/\[.*//' | one_line)"
now=$(date +%s%3N)
check "timestamps are close to now" yes "$(consume "$t-keys" -o beginning -c 1 -f '%T\n' | while read -r at; do [ $((at - now)) -lt 5000 ] && [ $((now - at)) -lt 60000 ] && echo yes; done)"
check "offsets are counted from 0" "0 1 2" "$(consume "$t-keys" -o beginning -f '%o\n' | one_line)"

# Positions.
check "from an offset on" "1998 1999 2000" "$(consume "$t-idem" -p 0 -o 1997 | one_line)"
check "the last records" "1999 2000" "$(consume "$t-idem" -p 0 -o -2 | one_line)"
check "a number of records" "1 2" "$(consume "$t-idem" -p 0 -o beginning -c 2 | one_line)"
check "the end of a topic" "" "$(consume "$t-idem" -o end)"
check "the offset of a time in the past" "$t-keys [0] offset 0" "$(k -Q -t "$t-keys:0:1000")"
check "the earliest offset" "$t-idem [0] offset 0" "$(k -Q -t "$t-idem:0:-2")"
check "the latest offset" "$t-idem [0] offset 2000" "$(k -Q -t "$t-idem:0:-1")"
sleep 0.05
middle=$(date +%s%3N)
sleep 0.05
echo later | produce "$t-keys" >/dev/null
check "the offset of a time" "$t-keys [0] offset 3" "$(k -Q -t "$t-keys:0:$middle")"
check "reading from a time on" later "$(consume "$t-keys" -o "s@$middle")"

# Waiting for what is not there yet.
timeout 30 kcat -b "$KAFKA_BOOTSTRAP" -C -t "$t-idem" -o end -c 1 -q -u >"$work/live" 2>/dev/null &
reader=$!
live() { echo live | produce "$t-idem" >/dev/null; sleep 0.3; ! kill -0 "$reader" 2>/dev/null; }
until_true 20 live || true
check "a reader that waits is woken" live "$(cat "$work/live")"

# Groups. A member is a process of its own, so that it can be told to end.
group() { exec timeout "${limit:-60}" kcat -b "$KAFKA_BOOTSTRAP" -G "$t-group" -X auto.offset.reset=earliest -X session.timeout.ms=6000 -X heartbeat.interval.ms=500 -X partition.assignment.strategy=roundrobin "$@"; }
seq 1 100 | produce "$t-g" >/dev/null
check "a group reads everything" 100 "$(group -e -q "$t-g" 2>/dev/null | wc -l)"
seq 101 110 | produce "$t-g" >/dev/null
check "and goes on where it was" 10 "$(group -e -q "$t-g" 2>/dev/null | wc -l)"
limit=25 group -u "$t-g" "$t-none" "$t-gzip" "$t-snappy" >"$work/m1" 2>"$work/m1.log" &
first=$!
assigned() { grep -qs 'assigned: .*\[0\]' "$1"; }
until_true 20 assigned "$work/m1.log" || true
limit=25 group -u "$t-g" "$t-none" "$t-gzip" "$t-snappy" >"$work/m2" 2>"$work/m2.log" &
second=$!
until_true 20 assigned "$work/m2.log" || true
last() { tail -n 50 "$1" | grep -o 'assigned: .*' | tail -1 | grep -o '\[0\]' | wc -l; }
settled() { [ $(($(last "$work/m1.log") + $(last "$work/m2.log"))) = 4 ]; }
check "two members share the partitions" "4, both some" "$(until_true 15 settled; a=$(last "$work/m1.log") b=$(last "$work/m2.log"); echo "$((a + b)), $([ "$a" -gt 0 ] && [ "$b" -gt 0 ] && echo both some)")"
kill "$second" 2>/dev/null || true
wait "$second" 2>/dev/null || true
alone() { [ "$(last "$work/m1.log")" = 4 ]; }
check "when one leaves the other has all" 4 "$(until_true 20 alone; last "$work/m1.log")"
kill "$first" 2>/dev/null || true
wait "$first" 2>/dev/null || true

# What cannot be.
head -c 2000000 /dev/zero | tr '\0' x >"$work/large"
check_has "a message that is too large for the broker" "Broker: Message size too large" "$(k -P -t "$t" -X message.max.bytes=5000000 "$work/large" || true)"
check_has "a partition that is not there" "does not exist" "$(consume "$t" -p 99 -o beginning || true)"
check_has "a topic that is not there is not created by reading" "Unknown topic" "$(consume "$t-missing" -o beginning || true)"

# Transactions.
seq 1 5 | produce "$t-tx" -X transactional.id="$t" >"$work/tx" 2>&1 || true
check "a transaction commits" "1 2 3 4 5" "$(grep -i error "$work/tx" || consume "$t-tx" -o beginning -X isolation.level=read_committed | one_line)"
end
