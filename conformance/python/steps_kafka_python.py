"""The steps of an ordinary user of kafka-python."""

import os
import threading
import time

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from checks import begin, end, error_of, eventually, step

begin("kafka-python", kafka.__version__)
servers = {"bootstrap_servers": os.environ["KAFKA_BOOTSTRAP"].split(",")}
t = f"conformance-kafka-python-{time.time_ns()}"
admin = KafkaAdminClient(**servers)


def produce(topic, values, partition=0, **config):
    producer = KafkaProducer(**servers, **config)
    try:
        futures = [producer.send(topic, v, partition=partition) for v in values]
        return [f.get(timeout=20).offset for f in futures]
    finally:
        producer.close()


def read(topic, count, partition=0, offset=None, **config):
    c = KafkaConsumer(**servers, consumer_timeout_ms=10_000, auto_offset_reset="earliest", enable_auto_commit=False, **config)
    try:
        c.assign([TopicPartition(topic, partition)])
        if offset is not None:
            c.seek(TopicPartition(topic, partition), offset)
        return [record for _, record in zip(range(count), c)]
    finally:
        c.close()


def values(records):
    return [r.value.decode() for r in records]


# The cluster and its topics.
step("the cluster is described", True, lambda: (lambda c: bool(c["cluster_id"]) and len(c["brokers"]) > 0)(admin.describe_cluster()))
step("a topic is created", True, lambda: bool(admin.create_topics({t: {"num_partitions": 3, "replication_factor": 1, "configs": {"retention.ms": "3600000"}}},
                                                                 wait_for_metadata=True)))
step("a topic that is there", "TopicAlreadyExistsError", lambda: error_of(lambda: admin.create_topics({t: {"num_partitions": 3}}), "TopicAlreadyExistsError"))
step("a name that cannot be", "InvalidTopicError", lambda: error_of(lambda: admin.create_topics({"no/good": {}}), "InvalidTopicError"))
step("the topic is listed", True, lambda: t in admin.list_topics())
step("the topic is described", 3, lambda: len(admin.describe_topics([t])[0]["partitions"]))


def config_of(key):
    told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, t)], config_filter="all")
    return next(iter(told.values()))[t][key]["value"]


step("a configuration that was given, and a default", ["3600000", "delete"], lambda: [config_of("retention.ms"), config_of("cleanup.policy")])
step("a configuration is changed", "7200000", lambda: admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, t, {"retention.ms": "7200000"})])
     and eventually(lambda: config_of("retention.ms") == "7200000") and config_of("retention.ms"))
step("partitions are added", 5, lambda: admin.create_partitions({t: 5}) and eventually(lambda: len(admin.describe_topics([t])[0]["partitions"]) == 5) and 5)

# Producing and reading.
for codec in [None, "gzip", "snappy", "lz4", "zstd"]:
    lines = [f"{codec} line {n} of some length to compress" for n in range(500)]
    step(f"reads back what was written with {codec or 'none'}", lines, lambda: produce(
        f"{t}-{codec or 'none'}", [x.encode() for x in lines], compression_type=codec) and values(read(f"{t}-{codec or 'none'}", 500)))
step("an idempotent producer counts offsets without a gap", list(range(1000)), lambda: produce(
    t + "-idem", [str(n).encode() for n in range(1000)], enable_idempotence=True))
step("a producer that is not idempotent", list(range(10)), lambda: produce(t + "-plain", [b"x"] * 10, enable_idempotence=False, acks=1))


def whole_record():
    producer = KafkaProducer(**servers)
    producer.send(t, b"v", key=b"k", partition=1, headers=[("a", b"1"), ("a", b"2")], timestamp_ms=1_700_000_000_123)
    producer.send(t, None, key=b"k", partition=1)
    producer.close()
    first, second = read(t, 2, partition=1)
    return [first.key, first.value, list(first.headers), first.timestamp, second.value]


step("key, headers, timestamp and a tombstone", [b"k", b"v", [("a", b"1"), ("a", b"2")], 1_700_000_000_123, None], whole_record)
step("from an offset on", ["998", "999"], lambda: values(read(t + "-idem", 2, offset=998)))


def positions():
    c = KafkaConsumer(**servers)
    p = TopicPartition(t + "-idem", 0)
    try:
        return [c.beginning_offsets([p])[p], c.end_offsets([p])[p], c.partitions_for_topic(t)]
    finally:
        c.close()


step("the first and the next offset, and the partitions", [0, 1000, {0, 1, 2, 3, 4}], positions)


def by_time():
    producer = KafkaProducer(**servers)
    for n in range(5):
        producer.send(t + "-time", str(n).encode(), partition=0, timestamp_ms=1_700_000_000_000 + n * 1000).get(20)
    producer.close()
    c = KafkaConsumer(**servers)
    p = TopicPartition(t + "-time", 0)
    try:
        found, none = c.offsets_for_times({p: 1_700_000_002_500})[p], c.offsets_for_times({p: 1_800_000_000_000_0})[p]
        return [found.offset, found.timestamp, none]
    finally:
        c.close()


step("offsets by time", [3, 1_700_000_003_000, None], by_time)


def wakes():
    """A reader that waits at the end of a topic gets what is written then."""
    c = KafkaConsumer(**servers, consumer_timeout_ms=15_000, fetch_max_wait_ms=10_000)
    p = TopicPartition(t + "-idem", 0)
    try:
        c.assign([p])
        c.seek_to_end(p)
        c.position(p)
        threading.Timer(1, lambda: produce(t + "-idem", [b"live"])).start()
        started = time.monotonic()
        return [next(c).value, time.monotonic() - started < 8]
    finally:
        c.close()


step("a reader that waits is woken", [b"live", True], wakes)

# Groups.


def member(group, topic=None, **config):
    c = KafkaConsumer(**{**servers, "group_id": group, "auto_offset_reset": "earliest", "enable_auto_commit": False, "session_timeout_ms": 6000,
                         "heartbeat_interval_ms": 500, **config})
    c.subscribe([topic or t])
    return c


class Polled:
    """A member with a thread of its own, which alone touches its consumer: it is not made for several."""

    def __init__(self, group, **config):
        self.parts, self.ends = set(), False
        self.thread = threading.Thread(target=self.run, args=(t + group, config), daemon=True)
        self.thread.start()

    def run(self, group, config):
        consumer = member(group, **config)
        try:
            while not self.ends:
                consumer.poll(200)
                self.parts = set(consumer.assignment())
        finally:
            consumer.close()

    def has(self):
        return self.parts

    def close(self):
        self.ends = True
        self.thread.join(20)


def rebalance(group, **config):
    one = Polled(group, **config)
    eventually(lambda: len(one.has()) == 5, 30)
    two = Polled(group, **config)
    try:
        eventually(lambda: one.has() and two.has() and len(one.has()) + len(two.has()) == 5, 30)
        seen = [sorted([len(one.has()), len(two.has())])]
        two.close()
        eventually(lambda: len(one.has()) == 5, 30)
        return seen + [len(one.has())]
    finally:
        one.close()
        two.close()


step("two members share the partitions; when one leaves the other has all", [[2, 3], 5], lambda: rebalance("-range"))
step("the same with the cooperative assignor", [[2, 3], 5], lambda: rebalance("-coop", partition_assignment_strategy=[CooperativeStickyAssignor]))


def static():
    members = [Polled("-static", group_instance_id=f"i{n}") for n in range(2)]
    try:
        eventually(lambda: all(m.has() for m in members) and sum(len(m.has()) for m in members) == 5, 30)
        had = [m.has() for m in members]
        members[1].close()
        members[1] = Polled("-static", group_instance_id="i1")
        eventually(members[1].has, 20)
        return [m.has() for m in members] == had
    finally:
        for m in members:
            m.close()


step("a static member that comes back has what it had", True, static)


def commit_and_resume():
    p = TopicPartition(t + "-idem", 0)
    c = member(t + "-commit", t + "-idem")
    first = [r.value for _, r in zip(range(10), c)]
    c.commit({p: OffsetAndMetadata(10, "note", -1)})
    told = c.committed(p, metadata=True)
    c.close()
    c = member(t + "-commit", t + "-idem")
    then = next(c).value
    c.close()
    return [first[-1], told.offset, told.metadata, then]


step("commits, and resumes where it was", [b"9", 10, "note", b"10"], commit_and_resume)
step("groups are listed", True, lambda: t + "-commit" in {g["group_id"] for g in admin.list_groups()})
step("a group is described", "Empty", lambda: admin.describe_groups([t + "-commit"])[t + "-commit"]["group_state"])
step("a group's offsets", 10, lambda: next(iter(admin.list_group_offsets([t + "-commit"])[t + "-commit"].values())).offset)


def living_group():
    c = Polled("-living", client_id="somebody")
    try:
        eventually(lambda: len(c.has()) == 5, 30)
        g = admin.describe_groups([t + "-living"])[t + "-living"]
        return [g["group_state"], g["protocol_type"], g["protocol_data"], [m["client_id"] for m in g["members"]]]
    finally:
        c.close()


step("a living group is described with its members", ["Stable", "consumer", "range", ["somebody"]], living_group)
step("a group is deleted", False, lambda: admin.delete_groups([t + "-commit"]) and t + "-commit" in {g["group_id"] for g in admin.list_groups()})

# What cannot be.
step("a message that is too large", "MessageSizeTooLargeError", lambda: error_of(
    lambda: produce(t, [b"x" * 2_000_000], max_request_size=5_000_000), "TooLarge").replace("TooLarge", "MessageSizeTooLargeError"))
step("an offset that is out of range starts where the policy says", ["0"], lambda: values(read(t + "-idem", 1, offset=50_000)))
step("a topic that there is not", "UnknownTopicOrPartitionError", lambda: error_of(lambda: admin.delete_topics([t + "-missing"]), "UnknownTopicOrPartitionError"))


def transaction():
    producer = KafkaProducer(**servers, transactional_id=t, max_block_ms=15_000)
    try:
        producer.init_transactions()
        for texts, commit in [(["a", "b"], True), (["never"], False), (["c"], True)]:
            producer.begin_transaction()
            for text in texts:
                producer.send(t + "-tx", text.encode(), partition=0)
            producer.commit_transaction() if commit else producer.abort_transaction()
    finally:
        producer.close(timeout=5)
    return values(read(t + "-tx", 3, isolation_level="read_committed"))


step("transactions commit and abort", ["a", "b", "c"], transaction)
step("topics are deleted", True, lambda: bool(admin.delete_topics([t])) and eventually(lambda: t not in admin.list_topics()))
end()
