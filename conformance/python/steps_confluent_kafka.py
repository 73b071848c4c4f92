"""The steps of an ordinary user of confluent-kafka (librdkafka)."""

import os
import time

import confluent_kafka as ck
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic,
                                   OffsetSpec, ResourceType)

from checks import begin, end, error_of, eventually, step

begin("confluent-kafka-python", f"{ck.__version__} (librdkafka {ck.libversion()[0]})")
servers = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"]}
t = f"conformance-confluent-{time.time_ns()}"
admin = AdminClient(servers)


def results(futures):
    """The results of an admin call, by name."""
    return {key if isinstance(key, str) else getattr(key, "name", str(key)): future.result(20) for key, future in futures.items()}


def produce(topic, values, partition=None, **config):
    """Produces and waits; the (partition, offset) of every record."""
    reports = []

    def report(error, message):
        if error:
            raise KafkaException(error)
        reports.append((message.partition(), message.offset()))

    producer = Producer({**servers, "linger.ms": 5, **config})
    for value in values:
        producer.produce(topic, value, on_delivery=report, **({} if partition is None else {"partition": partition}))
    if producer.flush(20):
        raise TimeoutError("records were not acknowledged within 20 s")
    return reports


def consumer(**config):
    return Consumer({**servers, "group.id": t + "-direct", "enable.auto.commit": False, "auto.offset.reset": "earliest", "session.timeout.ms": 6000,
                     "heartbeat.interval.ms": 500, **config})


def poll(c, count, seconds=20):
    """Polls until so many records have come."""
    got, end_at = [], time.monotonic() + seconds
    while len(got) < count and time.monotonic() < end_at:
        message = c.poll(0.2)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        got.append(message)
    return got


def read(topic, count, partition=0, offset=ck.OFFSET_BEGINNING, **config):
    c = consumer(**config)
    try:
        c.assign([TopicPartition(topic, partition, offset)])
        return poll(c, count)
    finally:
        c.close()


# The cluster and its topics.
step("brokers are listed", True, lambda: len(admin.list_topics(timeout=20).brokers) > 0)
step("the cluster is described", True, lambda: (lambda c: bool(c.cluster_id) and len(c.nodes) > 0 and c.controller is not None)(admin.describe_cluster().result(20)))
step("a topic is created", {t: None}, lambda: results(admin.create_topics([NewTopic(t, 3, 1, config={"retention.ms": "3600000"})])))
step("a topic that is there", "TOPIC_ALREADY_EXISTS", lambda: error_of(lambda: results(admin.create_topics([NewTopic(t, 3, 1)])), "TOPIC_ALREADY_EXISTS"))
step("a name that cannot be", "INVALID_TOPIC", lambda: error_of(lambda: results(admin.create_topics([NewTopic("no/good", 1, 1)])), "TOPIC_EXCEPTION").replace("TOPIC_EXCEPTION", "INVALID_TOPIC"))
step("no partitions", "INVALID_PARTITIONS", lambda: error_of(lambda: results(admin.create_topics([NewTopic(t + "-0", 0, 1)])), "INVALID_PARTITIONS"))
step("more replicas than brokers", "INVALID_REPLICATION_FACTOR",
     lambda: error_of(lambda: results(admin.create_topics([NewTopic(t + "-r", 1, 99)])), "INVALID_REPLICATION_FACTOR"))
step("only asking whether it could be created", [{t + "-dry": None}, False], lambda: [
    results(admin.create_topics([NewTopic(t + "-dry", 1, 1)], validate_only=True)), t + "-dry" in admin.list_topics(timeout=20).topics])
step("the topic is listed", True, lambda: t in admin.list_topics(timeout=20).topics)
step("the topic is described", [3, True], lambda: (lambda d: [len(d.partitions), bool(d.topic_id)])(
    results(admin.describe_topics(ck.TopicCollection([t])))[t]))


def config_of(name, key):
    resource = ConfigResource(ResourceType.TOPIC, name)
    return list(admin.describe_configs([resource]).values())[0].result(20)[key]


def alter(key, value, operation=AlterConfigOpType.SET):
    resource = ConfigResource(ResourceType.TOPIC, t, incremental_configs=[ConfigEntry(key, value, incremental_operation=operation)])
    list(admin.incremental_alter_configs([resource]).values())[0].result(20)
    return eventually(lambda: config_of(t, key).value == value or config_of(t, key).is_default) and config_of(t, key).value


step("a configuration that was given is told", "3600000", lambda: config_of(t, "retention.ms").value)
step("a default is told as one", ["delete", True], lambda: (lambda c: [c.value, c.is_default])(config_of(t, "cleanup.policy")))
step("the largest message is told", "1048588", lambda: config_of(t, "max.message.bytes").value)
step("a configuration is changed", "7200000", lambda: alter("retention.ms", "7200000"))
step("and set back to its default", "604800000", lambda: alter("retention.ms", None, AlterConfigOpType.DELETE))
step("a configuration that there is not", "INVALID_CONFIG", lambda: error_of(lambda: alter("no.such", "1"), "INVALID_CONFIG"))
step("partitions are added", [{t: None}, 5], lambda: [results(admin.create_partitions([NewPartitions(t, 5)])),
     eventually(lambda: len(admin.list_topics(t, timeout=20).topics[t].partitions) == 5) and 5])
step("partitions are never taken away", "INVALID_PARTITIONS", lambda: error_of(lambda: results(admin.create_partitions([NewPartitions(t, 2)])), "INVALID_PARTITIONS"))
step("the broker's configuration is told", True, lambda: len(list(admin.describe_configs(
    [ConfigResource(ResourceType.BROKER, str(next(iter(admin.list_topics(timeout=20).brokers))))]).values())[0].result(20)) > 0)

# Producing and reading.
for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
    lines = [f"{codec} line {n} of some length to compress" for n in range(500)]
    step(f"reads back what was written with {codec}", lines, lambda: produce(f"{t}-{codec}", lines, partition=0, **{"compression.type": codec})
         and [m.value().decode() for m in read(f"{t}-{codec}", 500)])
step("an idempotent producer counts offsets without a gap", list(range(1000)), lambda: [
    offset for _, offset in produce(f"{t}-idem", [str(n) for n in range(1000)], partition=0, **{"enable.idempotence": True})])


def whole_record():
    producer = Producer(servers)
    producer.produce(t, b"v", key=b"k", partition=1, headers=[("a", b"1"), ("a", b"2"), ("empty", None)], timestamp=1_700_000_000_123)
    producer.produce(t, None, key=b"k", partition=1)
    producer.flush(20)
    first, second = read(t, 2, partition=1)
    return [first.key(), first.value(), first.headers(), first.timestamp(), second.value()]


step("key, headers, timestamp and a tombstone", [b"k", b"v", [("a", b"1"), ("a", b"2"), ("empty", None)], (ck.TIMESTAMP_CREATE_TIME, 1_700_000_000_123), None],
     whole_record)
step("without acknowledgement", True, lambda: produce(t, ["x"], partition=2, acks=0) and len(read(t, 1, partition=2)) == 1)
step("from an offset on", ["998", "999"], lambda: [m.value().decode() for m in read(f"{t}-idem", 2, offset=998)])


def watermarks():
    c = consumer()
    try:
        return c.get_watermark_offsets(TopicPartition(f"{t}-idem", 0), timeout=20)
    finally:
        c.close()


step("the first and the next offset", (0, 1000), watermarks)


def by_time():
    producer = Producer(servers)
    for n in range(5):
        producer.produce(t + "-time", str(n), partition=0, timestamp=1_700_000_000_000 + n * 1000)
        producer.flush(20)
    c = consumer()
    try:
        at = c.offsets_for_times([TopicPartition(t + "-time", 0, 1_700_000_000_000 + ms) for ms in [2500]], timeout=20)[0].offset
        after = c.offsets_for_times([TopicPartition(t + "-time", 0, 1_800_000_000_000_0)], timeout=20)[0].offset
    finally:
        c.close()
    listed = list(admin.list_offsets({TopicPartition(t + "-time", 0): OffsetSpec.max_timestamp()}).values())[0].result(20).offset
    return [at, after, listed]


step("offsets by time", [3, ck.OFFSET_END, 4], by_time)


def delete_records():
    list(admin.delete_records([TopicPartition(t + "-time", 0, 2)]).values())[0].result(20)
    return [m.value().decode() for m in read(t + "-time", 3)]


step("records are deleted up to an offset", ["2", "3", "4"], delete_records)

# Groups.


def member(group, **config):
    """A member of a group, and the partitions that it has."""
    has = set()
    c = consumer(**{"group.id": group, **config})
    adds = config.get("partition.assignment.strategy", "").startswith("cooperative")

    def assigned(_, partitions):
        if not adds:
            has.clear()
        has.update(p.partition for p in partitions)

    def revoked(_, partitions):
        has.difference_update(p.partition for p in partitions)

    c.subscribe([t], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
    return c, has


def poll_all(some, condition, seconds=30):
    """Polls all members until the condition holds; the records that came meanwhile."""
    got, end_at = [], time.monotonic() + seconds
    while not condition() and time.monotonic() < end_at:
        for c, _ in some:
            message = c.poll(0.05)
            if message is not None and not message.error():
                got.append(message)
    return got


def shared(some):
    return sum(len(has) for _, has in some) == 5 and all(has for _, has in some)


def rebalance(**config):
    group = f"{t}-group-{config.get('partition.assignment.strategy', 'default')}"
    some = [member(group, **config) for _ in range(2)]
    try:
        poll_all(some, lambda: shared(some))
        seen = [sorted(len(has) for _, has in some)]
        some[1][0].close()
        poll_all(some[:1], lambda: len(some[0][1]) == 5)
        return seen + [len(some[0][1])]
    finally:
        some[0][0].close()


step("two members share the partitions; when one leaves the other has all", [[2, 3], 5], rebalance)
step("the same with round robin", [[2, 3], 5], lambda: rebalance(**{"partition.assignment.strategy": "roundrobin"}))
step("the same with the cooperative assignor", [[2, 3], 5], lambda: rebalance(**{"partition.assignment.strategy": "cooperative-sticky"}))


def static():
    """A static member that comes back within its session has the partitions it had, and the other one keeps its own."""
    group = t + "-static"
    some = [member(group, **{"group.instance.id": f"i{n}"}) for n in range(2)]
    try:
        poll_all(some, lambda: shared(some))
        had = [set(has) for _, has in some]
        some[1][0].close()
        some[1] = member(group, **{"group.instance.id": "i1"})
        poll_all(some, lambda: shared(some))
        return [bool(had[1]), [has for _, has in some] == had]
    finally:
        for c, _ in some:
            c.close()


step("a static member that comes back has what it had", [True, True], static)


def fenced():
    """The later of two members with the same instance id wins."""
    first = member(t + "-fenced", **{"group.instance.id": "same"})
    poll_all([first], lambda: bool(first[1]))
    second = member(t + "-fenced", **{"group.instance.id": "same"})
    try:
        poll_all([second], lambda: bool(second[1]))
        for _ in range(100):
            message = first[0].poll(0.1)
            if message is not None and message.error():
                return message.error().name()
        return "no error"
    finally:
        second[0].close()


step("an instance id that is used twice fences the older member", "_FATAL", fenced)


def commit_and_resume():
    group, topic = t + "-commit", t + "-idem"
    c = consumer(**{"group.id": group})
    c.subscribe([topic])
    first = [m.value().decode() for m in poll(c, 10)]
    c.commit(offsets=[TopicPartition(topic, 0, 10, metadata="note")], asynchronous=False)
    told = c.committed([TopicPartition(topic, 0)], timeout=20)[0]
    c.close()
    c = consumer(**{"group.id": group})
    c.subscribe([topic])
    then = poll(c, 1)[0].value().decode()
    c.close()
    return [first[-1], told.offset, told.metadata, then]


step("commits, and resumes where it was", ["9", 10, "note", "10"], commit_and_resume)


def groups():
    group = t + "-commit"
    listed = {g.group_id for g in admin.list_consumer_groups().result(20).valid}
    described = list(admin.describe_consumer_groups([group]).values())[0].result(20)
    offsets = list(admin.list_consumer_group_offsets([ck.ConsumerGroupTopicPartitions(group)]).values())[0].result(20)
    return [group in listed, described.state.name, described.group_id == group, offsets.topic_partitions[0].offset]


step("groups are listed and described, with their offsets", [True, "EMPTY", True, 10], groups)


def living_group():
    c = consumer(**{"group.id": t + "-living", "client.id": "somebody"})
    c.subscribe([t])
    try:
        poll_all([(c, set())], lambda: len(c.assignment()) == 5)
        described = list(admin.describe_consumer_groups([t + "-living"]).values())[0].result(20)
        m = described.members[0]
        return [described.state.name, described.partition_assignor, len(described.members), m.client_id, len(m.assignment.topic_partitions)]
    finally:
        c.close()


step("a living group is described with its members", ["STABLE", "range", 1, "somebody", 5], living_group)


def alter_offsets():
    altered = ck.ConsumerGroupTopicPartitions(t + "-commit", [TopicPartition(t + "-idem", 0, 500)])
    list(admin.alter_consumer_group_offsets([altered]).values())[0].result(20)
    c = consumer(**{"group.id": t + "-commit"})
    try:
        return c.committed([TopicPartition(t + "-idem", 0)], timeout=20)[0].offset
    finally:
        c.close()


step("a group's offsets are set from outside", 500, alter_offsets)
step("a group is deleted", [{t + "-commit": None}, False], lambda: [
    results(admin.delete_consumer_groups([t + "-commit"])), t + "-commit" in {g.group_id for g in admin.list_consumer_groups().result(20).valid}])
step("a group that there is not", "GROUP_ID_NOT_FOUND", lambda: error_of(lambda: results(admin.delete_consumer_groups([t + "-none"])), "GROUP_ID_NOT_FOUND"))


def auto_commit():
    seen = []
    for _ in range(2):
        c = consumer(**{"group.id": t + "-auto", "enable.auto.commit": True})
        c.subscribe([t + "-gzip"])
        seen.append(int(poll(c, 200)[0].value().split()[2]))
        c.close()
    return [seen[0], seen[1] > 0]


step("commits by itself when it closes", [0, True], auto_commit)

# What cannot be.
step("a message that is too large", "MSG_SIZE_TOO_LARGE", lambda: error_of(
    lambda: produce(t, [b"x" * 2_000_000], partition=0, **{"message.max.bytes": 5_000_000}), "MSG_SIZE_TOO_LARGE"))


def unknown_topic():
    c = consumer(**{"allow.auto.create.topics": False})
    c.subscribe([t + "-missing"])
    try:
        return poll(c, 1, seconds=10)
    finally:
        c.close()


step("reading a topic that there is not", "UNKNOWN_TOPIC_OR_PART", lambda: error_of(unknown_topic, "UNKNOWN_TOPIC_OR_PART"))
step("an offset that is out of range starts where the policy says", ["0"], lambda: [m.value().decode() for m in read(f"{t}-idem", 1, offset=50_000)])


def transaction():
    producer = Producer({**servers, "transactional.id": t, "transaction.timeout.ms": 10_000})
    producer.init_transactions(15)
    for values, commit in [(["a", "b"], True), (["never"], False), (["c"], True)]:
        producer.begin_transaction()
        for value in values:
            producer.produce(t + "-tx", value, partition=0)
        producer.commit_transaction(15) if commit else producer.abort_transaction(15)
    return [m.value().decode() for m in read(t + "-tx", 3, **{"isolation.level": "read_committed"})]


step("transactions commit and abort", ["a", "b", "c"], transaction)
step("topics are deleted", [{t: None}, False], lambda: [results(admin.delete_topics([t])), t in admin.list_topics(timeout=20).topics])
step("a topic that is gone", "UNKNOWN_TOPIC_OR_PART", lambda: error_of(lambda: results(admin.delete_topics([t])), "UNKNOWN_TOPIC_OR_PART"))
end()
