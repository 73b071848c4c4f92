"""The steps of an ordinary user of the Python package etcd3."""

import importlib.metadata
import os
import queue
import tempfile
import threading
import time

import etcd3
from etcd3 import etcdrpc

from checks import begin, check, end, error_of, eventually, step

begin("python-etcd3", importlib.metadata.version("etcd3"))
endpoints = [e.rsplit(":", 1) for e in os.environ["ETCD_ENDPOINTS"].split(",")]
host, port = endpoints[0]
etcd = etcd3.client(host=host, port=int(port), timeout=20)
p = f"conformance/python-etcd3/{time.time_ns()}/"


def value(key):
    return (etcd.get(p + key)[0] or b"gone").decode()


def keys(pairs):
    return " ".join(meta.key.decode().removeprefix(p) for _, meta in pairs)


def revision():
    return etcd.status().raft_index and etcd.put(p + "revision", "x").header.revision


# Keys and ranges.
check("get of a missing key", (None, None), etcd.get(p + "nothing"))
step("put answers with a revision", True, lambda: etcd.put(p + "a", "1").header.revision > 0)
step("get returns what was put", "1", lambda: value("a"))
step("put returns the previous pair", b"1", lambda: etcd.put(p + "a", "2", prev_kv=True).prev_kv.value)
step("bytes come back as they were sent", bytes(range(256)), lambda: etcd.put(p + "bin", bytes(range(256))) and etcd.get(p + "bin")[0])
step("delete tells whether there was a key", [True, False], lambda: [etcd.delete(p + "bin"), etcd.delete(p + "bin")])
for k in "bcde":
    etcd.put(p + k, "v-" + k)
step("get by prefix", "a b c d e", lambda: keys(etcd.get_prefix(p)))
step("keys only", ["a b c d e", {b""}], lambda: [keys(etcd.get_prefix(p, keys_only=True)), {v for v, _ in etcd.get_prefix(p, keys_only=True)}])
step("get of a range leaves out its end", "b c", lambda: keys(etcd.get_range(p + "b", p + "d")))
step("sorted by key, descending", "e d c b a", lambda: keys(etcd.get_prefix(p, sort_order="descend")))
step("sorted by version", "a", lambda: keys(etcd.get_prefix(p, sort_order="descend", sort_target="version")).split()[0])
step("sorted by modification", "e d c b a", lambda: keys(etcd.get_prefix(p, sort_order="descend", sort_target="mod")))
step("sorted by creation", "a b c d e", lambda: keys(etcd.get_prefix(p, sort_order="ascend", sort_target="create")))
step("sorted by value", "a b c d e", lambda: keys(etcd.get_prefix(p, sort_order="ascend", sort_target="value")))
step("a serializable get", "2", lambda: etcd.get(p + "a", serializable=True)[0].decode())


def metadata():
    etcd.put(p + "a", "3")
    first = etcd.get(p + "a")[1]
    etcd.put(p + "a", "3")
    then = etcd.get(p + "a")[1]
    return [then.version - first.version, then.mod_revision - first.mod_revision, then.create_revision - first.create_revision]


step("a put raises version and revision by one", [1, 1, 0], metadata)
step("put if there is none", [True, False], lambda: [etcd.put_if_not_exists(p + "n", "1"), etcd.put_if_not_exists(p + "n", "2")])
step("replace compares first", [False, True], lambda: [etcd.replace(p + "n", "2", "3"), etcd.replace(p + "n", "1", "3")])
step("delete by prefix counts", 1, lambda: etcd.delete_prefix(p + "n").deleted)

# Transactions.
t = etcd.transactions


def transaction(compare):
    ok, answers = etcd.transaction(compare=compare, success=[t.put(p + "t", "yes"), t.get(p + "t")], failure=[t.get(p + "a")])
    return [ok, answers[-1][0][0].decode()]


step("a transaction whose compare holds", [True, "yes"], lambda: transaction([t.value(p + "a") == "3", t.version(p + "a") > 0]))
step("a transaction whose compare does not hold", [False, "3"], lambda: transaction([t.create(p + "a") == 0]))
step("a transaction without compares holds", True, lambda: transaction([])[0])
step("a compare of modification", True, lambda: transaction([t.mod(p + "a") == etcd.get(p + "a")[1].mod_revision])[0])
step("a compare of a range", [True, False], lambda: [
    transaction([t.version(p + "b", p + "e") > 0])[0],
    transaction([t.value(p + "b", p + "e") == "v-b"])[0],
])


def nested():
    inner = t.txn(compare=[t.value(p + "t") == "yes"], success=[t.put(p + "t", "inner"), t.get(p + "t")], failure=[])
    ok, answers = etcd.transaction(compare=[t.version(p + "a") > 0], success=[inner, t.delete(p + "e")], failure=[])
    txn = answers[0].response_txn
    return [ok, txn.succeeded, txn.responses[1].response_range.kvs[0].value.decode(), answers[1].response_delete_range.deleted]


step("a transaction in a transaction", [True, True, "inner", 1], nested)

# Watches.


def next_events(events, count):
    got = []
    while len(got) < count:
        event = events.get(timeout=10)
        kind = type(event).__name__.removesuffix("Event").upper()
        before = event._event.prev_kv.value.decode()
        got.append(" ".join(filter(None, [kind, event.key.decode().removeprefix(p), event.value.decode(), before and f"({before})"])))
    return got


def watching(do, count, **options):
    events = queue.Queue()
    prefix = options.pop("prefix", None)

    def heard(response):
        for event in response.events if hasattr(response, "events") else [response]:
            events.put(event)

    watch = etcd.add_watch_prefix_callback(p + prefix, heard, **options) if prefix else etcd.add_watch_callback(p + "w", heard, **options)
    do()
    try:
        return next_events(events, count)
    finally:
        etcd.cancel_watch(watch)


def change():
    etcd.put(p + "w", "1")
    etcd.put(p + "w", "2")
    etcd.delete(p + "w")


start = revision()
step("a live watch", ["PUT w 1", "PUT w 2", "DELETE w"], lambda: watching(change, 3))
step("a watch with what was before", ["PUT w 1", "PUT w 2 (1)", "DELETE w (2)"], lambda: watching(change, 3, prev_kv=True))
step("a watch from an older revision", ["PUT w 1", "PUT w 2", "DELETE w"], lambda: watching(lambda: None, 3, start_revision=start + 1))
step("a watch of a prefix", ["PUT w1 x", "PUT w2 y"], lambda: watching(lambda: [etcd.put(p + "w1", "x"), etcd.put(p + "w2", "y")], 2, prefix="w"))
step("a watch that asks for progress", ["PUT w 1"], lambda: watching(lambda: etcd.put(p + "w", "1"), 1, progress_notify=True))


def once():
    threading.Timer(0.3, lambda: etcd.put(p + "once", "1")).start()
    return etcd.watch_once(p + "once", timeout=10).value


step("a watch of one event", b"1", once)

# Revisions and compaction. The client leaves a revision out of a range, so its stub is asked.


def at(number, **more):
    return etcd.kvstub.Range(etcdrpc.RangeRequest(key=(p + "a").encode(), revision=number, **more), 20)


now = etcd.put(p + "a", "4").header.revision
step("a read at an older revision", b"3", lambda: at(now - 1).kvs[0].value)
step("a count", 1, lambda: at(now, count_only=True).count)
step("a limit tells that there is more", [1, True, 4], lambda: (
    lambda r: [len(r.kvs), r.more, r.count])(etcd.kvstub.Range(etcdrpc.RangeRequest(key=(p + "a").encode(), range_end=(p + "e").encode(), limit=1), 20)))
step("bounds of the modification", 1, lambda: len(etcd.kvstub.Range(etcdrpc.RangeRequest(
    key=p.encode(), range_end=(p[:-1] + "0").encode(), min_mod_revision=now), 20).kvs))
step("a future revision", "etcdserver: mvcc: required revision is a future revision",
     lambda: error_of(lambda: at(10**12), "etcdserver: mvcc: required revision is a future revision"))
step("compaction", None, lambda: etcd.compact(now, physical=True))
step("a read of what was compacted", "etcdserver: mvcc: required revision has been compacted",
     lambda: error_of(lambda: at(now - 1), "etcdserver: mvcc: required revision has been compacted"))
step("compacting twice", "etcdserver: mvcc: required revision has been compacted",
     lambda: error_of(lambda: etcd.compact(now), "etcdserver: mvcc: required revision has been compacted"))


def compacted_watch():
    events, cancel = etcd.watch(p + "a", start_revision=1)
    try:
        next(events)
        return "no error"
    except etcd3.exceptions.RevisionCompactedError as error:
        return error.compacted_revision - now
    finally:
        cancel()


step("a watch of what was compacted names the revision", 0, compacted_watch)

# Leases.


def leased():
    lease = etcd.lease(60)
    etcd.put(p + "leased", "1", lease=lease)
    refreshed = lease.refresh()[0].TTL
    seen = [lease.granted_ttl, 0 < lease.remaining_ttl <= 60, [k.decode().removeprefix(p) for k in lease.keys], refreshed]
    lease.revoke()
    return seen + [value("leased")]


step("a lease is granted, asked, kept alive and revoked", [60, True, ["leased"], 60, "gone"], leased)
step("a lease with an id of one's own", 7_000_000 + now, lambda: etcd.lease(60, lease_id=7_000_000 + now).id)
step("an id that is taken", "etcdserver: lease already exists",
     lambda: error_of(lambda: etcd.lease(60, lease_id=7_000_000 + now), "FailedPrecondition") and error_of(
         lambda: etcd.leasestub.LeaseGrant(etcdrpc.LeaseGrantRequest(TTL=60, ID=7_000_000 + now), 20), "etcdserver: lease already exists"))
step("a lease that is not there", "etcdserver: requested lease not found",
     lambda: error_of(lambda: etcd.revoke_lease(99), "etcdserver: requested lease not found"))
step("its time to live is -1", -1, lambda: etcd.get_lease_info(99).TTL)
step("a put with it", "etcdserver: requested lease not found",
     lambda: error_of(lambda: etcd.put(p + "l", "1", lease=99), "etcdserver: requested lease not found"))
step("keeping it alive answers with 0", 0, lambda: list(etcd.refresh_lease(99))[0].TTL)


def expiry():
    lease = etcd.lease(2)
    etcd.put(p + "short", "1", lease=lease)
    return [value("short"), eventually(lambda: value("short") == "gone", 15)]


step("a key goes with its expired lease", ["1", True], expiry)


def expiry_watched():
    events = queue.Queue()
    watch = etcd.add_watch_callback(p + "seen", lambda r: [events.put(e) for e in r.events])
    etcd.put(p + "seen", "1", lease=etcd.lease(2))
    try:
        return next_events(events, 1) + [type(events.get(timeout=15)).__name__]
    finally:
        etcd.cancel_watch(watch)


step("a watch sees the expiry", ["PUT seen 1", "DeleteEvent"], expiry_watched)

# Locks.


def locks():
    first, second = etcd.lock(p + "lock", ttl=20), etcd.lock(p + "lock", ttl=20)
    seen = [first.acquire(timeout=5), second.acquire(timeout=1), first.is_acquired(), second.is_acquired()]
    threading.Timer(0.5, first.release).start()
    seen.append(second.acquire(timeout=10))
    second.refresh()
    return seen + [second.is_acquired(), second.release()]


step("a lock is held by one, and handed on", [True, False, True, False, True, True, True], locks)

# The cluster.
step("members have names and addresses", True, lambda: all(m.name and m.peer_urls and m.client_urls for m in etcd.members))
step("there are as many members as endpoints", True, lambda: len(list(etcd.members)) >= len(endpoints))
step("status names version and leader", [True, True, True], lambda: (lambda s: [s.version.startswith("3."), s.leader is not None, s.raft_index > 0])(etcd.status()))
step("no alarm is raised", [], lambda: list(etcd.list_alarms()))
step("a hash", True, lambda: etcd.hash() > 0)
step("defragmenting succeeds", None, etcd.defragment)


def snapshot():
    with tempfile.TemporaryFile() as file:
        etcd.snapshot(file)
        return file.tell() > 0


step("a snapshot is streamed", True, snapshot)

# What is wrong is said as etcd says it.
step("an empty key", "etcdserver: key is not provided", lambda: error_of(lambda: etcd.put("", "1"), "etcdserver: key is not provided"))
step("a key twice in one transaction", "etcdserver: duplicate key given in txn request", lambda: error_of(
    lambda: etcd.transaction(compare=[], success=[t.put(p + "z", "1"), t.put(p + "z", "2")], failure=[]), "etcdserver: duplicate key given in txn request"))
step("more operations than a transaction may have", "etcdserver: too many operations in txn request", lambda: error_of(
    lambda: etcd.transaction(compare=[], success=[t.put(f"{p}{n}", "1") for n in range(129)], failure=[]), "etcdserver: too many operations in txn request"))
step("a value that is too large", "etcdserver: request is too large", lambda: error_of(
    lambda: etcd.put(p + "large", "x" * 1_700_000), "etcdserver: request is too large"))
end()
os._exit(0)  # the client's watch thread does not end by itself
