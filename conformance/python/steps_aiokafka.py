"""The steps of an ordinary user of aiokafka."""

import asyncio
import os
import sys
import time
import traceback

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from checks import begin, check, end, raised

begin("aiokafka", aiokafka.__version__)
bootstrap = os.environ["KAFKA_BOOTSTRAP"]
t = f"conformance-aiokafka-{time.time_ns()}"


async def step(name, wanted, action):
    """Runs one step of at most 40 s; an exception counts as what came back, and the run goes on."""
    try:
        got = await asyncio.wait_for(action, 40)
    except Exception as error:  # whatever a client throws is a finding
        traceback.print_exc(file=sys.stderr)
        got = raised(error)
    check(name, wanted, got)


async def error_of(action, part):
    try:
        return f"no error, but {await action!r}"
    except Exception as error:
        return part if part in raised(error) else raised(error)


async def eventually(condition, seconds=10):
    end_at = time.monotonic() + seconds
    while not (got := await condition()) and time.monotonic() < end_at:
        await asyncio.sleep(0.05)
    return got


async def produce(topic, values, partition=0, **config):
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, **config) as producer:
        waiting = [await producer.send(topic, v, partition=partition) for v in values]
        return [(await w).offset for w in waiting]


async def read(topic, count, partition=0, offset=None, **config):
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", **config) as c:
        p = TopicPartition(topic, partition)
        c.assign([p])
        if offset is not None:
            c.seek(p, offset)
        return [await asyncio.wait_for(c.getone(), 15) for _ in range(count)]


def values(records):
    return [r.value.decode() for r in records]


async def member(group, topic=None, **config):
    c = AIOKafkaConsumer(topic or t, **{"bootstrap_servers": bootstrap, "group_id": group, "auto_offset_reset": "earliest", "enable_auto_commit": False,
                                        "session_timeout_ms": 6000, "heartbeat_interval_ms": 500, **config})
    await c.start()
    return c


async def main():
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()

    # The cluster and its topics.
    async def described():
        return len((await admin.describe_cluster())["brokers"]) > 0

    await step("the cluster is described", True, described())

    async def created(name, partitions=3):
        answer = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs={"retention.ms": "3600000"})])
        return [error[1] for error in answer.topic_errors]

    await step("a topic is created", [0], created(t))
    await step("a topic that is there", [36], created(t))
    await step("a name that cannot be", [17], created("no/good"))
    await step("no partitions", [37], created(t + "-0", 0))

    async def partitions():
        return len((await admin.describe_topics([t]))[0]["partitions"])

    async def listed():
        return t in await admin.list_topics()

    await step("the topic is listed", True, listed())
    await step("the topic is described", 3, partitions())

    async def configs():
        answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, t)])
        told = {entry[0]: entry[1] for entry in answer[0].resources[0][4]}
        return [told["retention.ms"], told["cleanup.policy"], told["max.message.bytes"]]

    await step("configurations are told, given ones and defaults", ["3600000", "delete", "1048588"], configs())

    async def altered():
        answer = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, t, {"retention.ms": "7200000"})])
        return [answer[0].resources[0][0], await eventually(lambda: changed())]

    async def changed():
        return (await configs())[0] == "7200000"

    await step("a configuration is changed", [0, True], altered())

    async def added():
        answer = await admin.create_partitions({t: NewPartitions(total_count=5)})

        async def five():
            return await partitions() == 5
        return [answer.topic_errors[0][1], await eventually(five)]

    await step("partitions are added", [0, True], added())

    # Producing and reading.
    for codec in [None, "gzip", "snappy", "lz4", "zstd"]:
        lines = [f"{codec} line {n} of some length to compress" for n in range(500)]

        async def there_and_back():
            topic = f"{t}-{codec or 'none'}"
            await produce(topic, [x.encode() for x in lines], compression_type=codec)
            return values(await read(topic, 500))

        await step(f"reads back what was written with {codec or 'none'}", lines, there_and_back())
    await step("an idempotent producer counts offsets without a gap", list(range(1000)), produce(
        t + "-idem", [str(n).encode() for n in range(1000)], enable_idempotence=True))

    async def whole_record():
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            await producer.send_and_wait(t, b"v", key=b"k", partition=1, headers=[("a", b"1"), ("a", b"2")], timestamp_ms=1_700_000_000_123)
            await producer.send_and_wait(t, None, key=b"k", partition=1)
        first, second = await read(t, 2, partition=1)
        return [first.key, first.value, list(first.headers), first.timestamp, second.value]

    await step("key, headers, timestamp and a tombstone", [b"k", b"v", [("a", b"1"), ("a", b"2")], 1_700_000_000_123, None], whole_record())

    async def from_offset():
        return values(await read(t + "-idem", 2, offset=998))

    await step("from an offset on", ["998", "999"], from_offset())

    async def positions():
        async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as c:
            p = TopicPartition(t + "-idem", 0)
            return [(await c.beginning_offsets([p]))[p], (await c.end_offsets([p]))[p]]

    await step("the first and the next offset", [0, 1000], positions())

    async def by_time():
        for n in range(5):
            async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
                await producer.send_and_wait(t + "-time", str(n).encode(), partition=0, timestamp_ms=1_700_000_000_000 + n * 1000)
        async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as c:
            p = TopicPartition(t + "-time", 0)
            found, none = (await c.offsets_for_times({p: 1_700_000_002_500}))[p], (await c.offsets_for_times({p: 1_800_000_000_000_0}))[p]
            return [found.offset, found.timestamp, none]

    await step("offsets by time", [3, 1_700_000_003_000, None], by_time())

    # Groups.
    async def settle(some, condition, seconds=30):
        end_at = time.monotonic() + seconds
        while not condition() and time.monotonic() < end_at:
            for c in some:
                await c.getmany(timeout_ms=100)

    async def rebalance():
        one, two = await member(t + "-group"), await member(t + "-group")
        try:
            await settle([one, two], lambda: one.assignment() and two.assignment() and len(one.assignment()) + len(two.assignment()) == 5)
            seen = [sorted([len(one.assignment()), len(two.assignment())])]
            await two.stop()
            await settle([one], lambda: len(one.assignment()) == 5)
            return seen + [len(one.assignment())]
        finally:
            await one.stop()

    await step("two members share the partitions; when one leaves the other has all", [[2, 3], 5], rebalance())

    async def static():
        one = await member(t + "-static", group_instance_id="i1")
        had = set(one.assignment())
        await one.stop()
        again = await member(t + "-static", group_instance_id="i1")
        has = set(again.assignment())
        await again.stop()
        return [len(had), has == had]

    await step("a static member that comes back has what it had", [5, True], static())

    async def commit_and_resume():
        p = TopicPartition(t + "-idem", 0)
        c = await member(t + "-commit", t + "-idem")
        first = [await asyncio.wait_for(c.getone(), 15) for _ in range(10)]
        await c.commit({p: (10, "note")})
        told = await c.committed(p)
        await c.stop()
        c = await member(t + "-commit", t + "-idem")
        then = await asyncio.wait_for(c.getone(), 15)
        await c.stop()
        return [first[-1].value, told, then.value]

    await step("commits, and resumes where it was", [b"9", 10, b"10"], commit_and_resume())

    async def groups():
        listed = {g[0] for g in await admin.list_consumer_groups()}
        described = (await admin.describe_consumer_groups([t + "-commit"]))[0].groups[0]
        offsets = await admin.list_consumer_group_offsets(t + "-commit")
        p = TopicPartition(t + "-idem", 0)
        return [t + "-commit" in listed, described[1], described[2], offsets[p].offset, offsets[p].metadata]

    await step("groups are listed and described, with their offsets", [True, t + "-commit", "Empty", 10, "note"], groups())

    # What cannot be.
    await step("a message that is too large", "MessageSizeTooLargeError", error_of(
        produce(t, [b"x" * 2_000_000], max_request_size=5_000_000), "MessageSizeTooLargeError"))

    async def out_of_range():
        return values(await read(t + "-idem", 1, offset=50_000))

    await step("an offset that is out of range starts where the policy says", ["0"], out_of_range())

    async def transaction():
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=t)
        await asyncio.wait_for(producer.start(), 15)
        try:
            for texts, commit in [(["a", "b"], True), (["never"], False), (["c"], True)]:
                await producer.begin_transaction()
                for text in texts:
                    await producer.send_and_wait(t + "-tx", text.encode(), partition=0)
                await (producer.commit_transaction() if commit else producer.abort_transaction())
        finally:
            await producer.stop()
        return values(await read(t + "-tx", 3, isolation_level="read_committed"))

    await step("transactions commit and abort", ["a", "b", "c"], transaction())

    async def deleted():
        answer = await admin.delete_topics([t, t + "-missing"])

        async def gone():
            return not await listed()
        return [sorted(code for _, code in answer.topic_error_codes), await eventually(gone)]

    await step("a topic is deleted, and one that there is not", [[0, 3], True], deleted())
    await admin.close()


asyncio.run(main())
end()
