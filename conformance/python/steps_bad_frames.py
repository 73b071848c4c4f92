"""Frames of Kafka's protocol that are wrong, byte by byte, with nothing but sockets.

What is wanted is what Kafka 4.3 answers. Where it closes the connection, so must Buttress; where a code comes back, it is the
same one, because clients decide by it whether they send again. After all of it the partition holds what was acknowledged, in
whole batches with right checksums, and nothing else.
"""

import os
import random
import socket
import struct
import time

from checks import begin, check, end, eventually, step

PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, JOIN_GROUP, HEARTBEAT = 0, 1, 2, 3, 8, 11, 12
FIND_COORDINATOR, API_VERSIONS, CREATE_TOPICS = 10, 18, 19
NONE, OUT_OF_RANGE, CORRUPT, UNKNOWN_PARTITION, TOO_LARGE = 0, 1, 2, 3, 10
INVALID_ACKS, ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, UNKNOWN_MEMBER, BAD_SESSION = 21, 22, 23, 25, 26
UNKNOWN_ERROR, INVALID_TIMESTAMP, UNSUPPORTED_VERSION, INVALID_REQUEST, INVALID_RECORD = -1, 32, 35, 42, 87
NOT_READY = (14, 15, 16)
TOPIC = f"conformance-bad-frames-{time.time_ns()}"
GROUP = f"{TOPIC}-group"
WAIT_S = 20
"""A server that neither answers nor closes for so long does neither."""
CRC_AT, MAGIC_AT, ATTRIBUTES_AT, COUNT_AT, RECORDS_AT = 17, 16, 21, 57, 61
CLOSED = "closed"


def table():
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


TABLE = list(table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def text(value):
    return struct.pack(">h", -1) if value is None else struct.pack(">h", len(value)) + value.encode()


def data(value):
    return struct.pack(">i", len(value)) + value


def array(items):
    return struct.pack(">i", len(items)) + b"".join(items)


def varint(value):
    value = (value << 1) ^ (value >> 63)
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def record(value, delta=0):
    body = b"\0" + varint(0) + varint(delta) + varint(-1) + varint(len(value)) + value + varint(0)
    return varint(len(body)) + body


def sealed(batch):
    """The same batch with the checksum that it has now."""
    return batch[:CRC_AT] + struct.pack(">I", crc32c(batch[ATTRIBUTES_AT:])) + batch[ATTRIBUTES_AT:]


def batch(*values, count=None, after_ms=0):
    records = b"".join(record(value, delta) for delta, value in enumerate(values))
    now = int(time.time() * 1000) + after_ms
    last = len(values) - 1
    head = struct.pack(">hiqqqhii", 0, last, now, now, -1, -1, -1, len(values) if count is None else count)
    body = struct.pack(">ibI", -1, 2, 0) + head + records
    return sealed(struct.pack(">qi", 0, len(body)) + body)


def changed(good, at, new, seal=True):
    bad = good[:at] + new + good[at + len(new):]
    return sealed(bad) if seal else bad


def frame(key, version, body, correlation=7):
    return data(struct.pack(">hhi", key, version, correlation) + text("bad-frames") + body)


def flexible(key, version, body):
    """With tagged fields in its header, as newer versions have them."""
    return data(struct.pack(">hhi", key, version, 7) + text("bad-frames") + b"\0" + body)


def produce(records, topic=TOPIC, partition=0, acks=-1):
    parts = array([struct.pack(">i", partition) + data(records)])
    return frame(PRODUCE, 3, text(None) + struct.pack(">hi", acks, 10_000) + array([text(topic) + parts]))


def fetch(offset, partition=0):
    part = struct.pack(">iqi", partition, offset, 1 << 20)
    head = struct.pack(">iiiib", -1, 100, 1, 1 << 20, 0)
    return frame(FETCH, 4, head + array([text(TOPIC) + array([part])]))


class Reader:
    def __init__(self, taken):
        self.taken, self.at = taken, 0

    def take(self, form):
        values = struct.unpack_from(">" + form, self.taken, self.at)
        self.at += struct.calcsize(">" + form)
        return values[0] if len(values) == 1 else values

    def text(self):
        size = self.take("h")
        self.at += max(size, 0)
        return self.taken[self.at - max(size, 0):self.at].decode()

    def data(self):
        size = max(self.take("i"), 0)
        self.at += size
        return self.taken[self.at - size:self.at]


class Connection:
    def __init__(self, to):
        self.socket = socket.create_connection(to, timeout=WAIT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def exactly(self, size):
        out = b""
        while len(out) < size:
            more = self.socket.recv(size - len(out))
            if not more:
                raise ConnectionError(CLOSED)
            out += more
        return out

    def answer(self):
        reader = Reader(self.exactly(*struct.unpack(">i", self.exactly(4))))
        reader.take("i")
        return reader

    def ask(self, request):
        self.socket.sendall(request)
        return self.answer()


def ask(to, request):
    with Connection(to) as one:
        return one.ask(request)


def fate(to, raw):
    """What becomes of these bytes: "closed", "answered", or "neither"."""
    with Connection(to) as one:
        try:
            one.socket.sendall(raw)
            one.exactly(4)
            return "answered"
        except ConnectionError:
            return CLOSED
        except TimeoutError:
            return "neither"


def cluster(bootstrap):
    """The brokers and the controller."""
    reader = ask(bootstrap, frame(METADATA, 1, array([])))
    brokers = {}
    for _ in range(reader.take("i")):
        number, host, port = reader.take("i"), reader.text(), reader.take("i")
        reader.text()
        brokers[number] = (host, port)
    return brokers, brokers[reader.take("i")]


def leader_of(bootstrap):
    brokers, _ = cluster(bootstrap)
    reader = ask(bootstrap, frame(METADATA, 1, array([text(TOPIC)])))
    for _ in range(reader.take("i")):
        reader.take("i"), reader.text(), reader.take("i"), reader.text()
    reader.take("ii"), reader.take("h"), reader.text(), reader.take("b")
    if reader.take("i") == 0:
        return None
    code, _, leader = reader.take("hii")
    return brokers.get(leader) if code == NONE else None


def created(controller):
    topic = text(TOPIC) + struct.pack(">ih", 1, 1) + array([]) + array([])
    reader = ask(controller, frame(CREATE_TOPICS, 2, array([topic]) + struct.pack(">ib", 10_000, 0)))
    reader.take("i"), reader.take("i"), reader.text()
    return reader.take("h")


def code_of_produce(reader):
    reader.take("i"), reader.text()
    _, _, code, _ = reader.take("iihq")
    return code


def produced(to, records, **more):
    return code_of_produce(ask(to, produce(records, **more)))


def end_of(to):
    part = array([struct.pack(">iq", 0, -1)])
    reader = ask(to, frame(LIST_OFFSETS, 1, struct.pack(">i", -1) + array([text(TOPIC) + part])))
    reader.take("i"), reader.text()
    return reader.take("iihqq")[4]


def fetched(to, offset, partition=0):
    reader = ask(to, fetch(offset, partition))
    reader.take("ii"), reader.text()
    _, _, code, _, _ = reader.take("iihqq")
    for _ in range(max(reader.take("i"), 0)):
        reader.take("qq")
    return code, reader.data()


def stored(to):
    """The offsets that are there, and how many of their batches are not whole."""
    offsets, broken, at = [], 0, 0
    last = end_of(to)
    while at < last:
        code, records = fetched(to, at)
        if code != NONE or not records:
            return offsets, f"code {code} at {at}"
        while len(records) >= RECORDS_AT:
            base, size = struct.unpack_from(">qi", records)
            one, records = records[:12 + size], records[12 + size:]
            if len(one) < 12 + size:
                break
            broken += crc32c(one[ATTRIBUTES_AT:]) != struct.unpack_from(">I", one, CRC_AT)[0]
            count = struct.unpack_from(">i", one, COUNT_AT)[0]
            offsets += [offset for offset in range(base, base + count) if offset >= at]
            at = base + count
    return offsets, broken


def group_codes(to):
    """Wrong requests of groups, each with the code that comes back."""
    def first(key, version, body, form="ih"):
        return ask(to, frame(key, version, body)).take(form)[1]

    def join(session_ms, protocols):
        body = text(GROUP) + struct.pack(">ii", session_ms, 1_000) + text("") + text("consumer") + array(protocols)
        return first(JOIN_GROUP, 3, body)

    range_protocol = text("range") + data(b"\0\0\0\0\0\0\0\0\0\0")
    part = array([struct.pack(">iq", 0, 1) + text("")])
    body = text(GROUP) + struct.pack(">i", 5) + text("nobody") + struct.pack(">q", -1) + array([text(TOPIC) + part])
    commit = ask(to, frame(OFFSET_COMMIT, 2, body))
    commit.take("i"), commit.text()
    return {
        "heartbeat of nobody": first(HEARTBEAT, 1, text(GROUP) + struct.pack(">i", 1) + text("nobody")),
        "a session of a millisecond": join(1, [range_protocol]),
        "a session of a day": join(86_400_000, [range_protocol]),
        "a member without protocols": join(10_000, []),
        "a commit of nobody": commit.take("iih")[2],
    }


def is_coordinator(to):
    reader = ask(to, frame(FIND_COORDINATOR, 1, text(GROUP) + b"\0"))
    code = reader.take("ih")[1]
    beat = ask(to, frame(HEARTBEAT, 1, text(GROUP) + struct.pack(">i", 1) + text("nobody"))).take("ih")[1]
    return code == NONE and beat not in NOT_READY


def flood(to, count):
    """Many requests before the first answer is read: all are answered, in their order."""
    with Connection(to) as one:
        one.socket.sendall(b"".join(frame(METADATA, 1, array([]), number) for number in range(count)))
        return [Reader(one.exactly(*struct.unpack(">i", one.exactly(4)))).take("i") for _ in range(count)] == list(range(count))


def software(to, name):
    """ApiVersions 3 of a client that calls itself so."""
    compact = lambda value: bytes([len(value) + 1]) + value.encode()
    return ask(to, flexible(API_VERSIONS, 3, compact(name) + compact("1") + b"\0")).take("h")


def mutated(to, count):
    """A good request with single bytes changed behind its header, over and over: which got neither an answer nor an end, and
    how many were acknowledged."""
    rng = random.Random(4711)
    records = batch(b"mutated")
    good = produce(records)
    start = 4 + 8 + 2 + len("bad-frames")
    # Without the two bytes of acks: what wants no answer gets none. And without the first of the records' length, which may become
    # negative: Kafka 4.3 then neither answers nor ends the connection (ours ends it).
    length_at = good.index(records) - 4
    places = [at for at in range(start, len(good)) if at not in (start + 2, start + 3, length_at)]
    acknowledged, silent = 0, []
    for _ in range(count):
        at = rng.choice(places)
        bad = good[:at] + bytes([good[at] ^ rng.randrange(1, 256)]) + good[at + 1:]
        with Connection(to) as one:
            try:
                acknowledged += code_of_produce(one.ask(bad)) == NONE
            except TimeoutError:
                silent.append((at, bad[at]))
            except (ConnectionError, struct.error, UnicodeDecodeError):
                pass
    return silent, acknowledged


def main():
    host, port = os.environ["KAFKA_BOOTSTRAP"].split(",")[0].rsplit(":", 1)
    bootstrap = (host, int(port))
    begin("bad-frames", "1")
    _, controller = cluster(bootstrap)
    step("a topic is made", NONE, lambda: created(controller))
    to = eventually(lambda: leader_of(bootstrap))
    good = batch(b"good")
    step("a good batch is taken", NONE, lambda: eventually(lambda: produced(to, good) == NONE) and NONE)
    before = end_of(to)

    # What is wrong with the records is told with a code.
    for name, wanted, records in [
        ("a wrong checksum", CORRUPT, changed(good, RECORDS_AT + 5, b"\x55", seal=False)),
        ("magic 1", INVALID_RECORD, changed(good, MAGIC_AT, b"\1")),
        ("no batch at all", INVALID_RECORD, b""),
        ("a batch that is cut", INVALID_RECORD, good[:-1]),
        ("two batches", INVALID_RECORD, good + good),
        ("more records stated than there are", INVALID_RECORD, changed(good, COUNT_AT, struct.pack(">i", 200))),
        ("a record with a length that lies", INVALID_RECORD, changed(good, RECORDS_AT, b"\x7e")),
        ("a control batch", INVALID_RECORD, changed(good, ATTRIBUTES_AT, b"\0\x20")),
        ("a codec that does not exist", UNKNOWN_ERROR, changed(good, ATTRIBUTES_AT, b"\0\7")),
        ("a batch above the limit", TOO_LARGE, batch(b"x" * 1_100_000)),
        ("a timestamp of tomorrow", INVALID_TIMESTAMP, batch(b"late", after_ms=86_400_000)),
    ]:
        step(f"{name} has its code", wanted, lambda: produced(to, records))
    step("a topic that is not there has its code", UNKNOWN_PARTITION, lambda: produced(to, good, topic=f"{TOPIC}-none", partition=9))
    step("a partition that is not there has its code", UNKNOWN_PARTITION, lambda: produced(to, good, partition=99))
    step("acks of 2 have their code", INVALID_ACKS, lambda: produced(to, good, acks=2))
    step("an offset before the log has its code", OUT_OF_RANGE, lambda: fetched(to, -5)[0])
    step("an offset behind the log has its code", OUT_OF_RANGE, lambda: fetched(to, 1 << 40)[0])
    step("a fetch of no partition has its code", UNKNOWN_PARTITION, lambda: fetched(to, 0, 99)[0])
    step("nothing of it was written", before, lambda: end_of(to))

    # What is no request closes the connection.
    whole = produce(good)
    fates = {size: fate(to, data(whole[4:size])) for size in range(5, len(whole))}
    check("a request that is cut anywhere closes the connection", [], [size for size, got in fates.items() if got != CLOSED])
    topics_at = 4 + 8 + 2 + len("bad-frames") + 2 + 2 + 4
    for name, raw in [
        ("a frame of 2 GiB", struct.pack(">I", 0x7FFFFFFF)),
        ("a frame of negative length", struct.pack(">i", -1)),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("2^31-1 topics", changed(whole, topics_at, struct.pack(">i", 0x7FFFFFFF), seal=False)),
        ("a name with a length that lies", changed(whole, topics_at + 4, struct.pack(">h", 0x7FFF), seal=False)),
        ("a name of negative length", changed(whole, topics_at + 4, struct.pack(">h", -7), seal=False)),
        ("an API that does not exist", frame(999, 0, b"")),
        ("a version that does not exist", frame(METADATA, 99, array([]))),
    ]:
        step(f"{name} closes the connection", CLOSED, lambda: fate(to, raw))
    step("ApiVersions of a version that does not exist is answered", UNSUPPORTED_VERSION, lambda: ask(to, flexible(API_VERSIONS, 99, b"")).take("h"))
    step("a client with a name that is none has its code", INVALID_REQUEST, lambda: software(to, "bad name!"))
    step("a client with a good name is served", NONE, lambda: software(to, "bad-frames"))

    # Peers that stop in the middle, and ones that do not read, hold nobody up.
    held = [Connection(to) for _ in range(50)]
    for number, one in enumerate(held):
        one.socket.sendall(whole[:1 + number * 2 % (len(whole) - 1)])
    step("with fifty peers that stopped in a frame others are served", NONE, lambda: produced(to, batch(b"beside them")))
    for one in held:
        one.socket.close()
    step("2,000 requests before the first answer is read are answered in order", True, lambda: flood(to, 2_000))

    eventually(lambda: is_coordinator(to), 60)
    step("groups tell what is wrong by code", {
        "heartbeat of nobody": UNKNOWN_MEMBER,
        "a session of a millisecond": BAD_SESSION,
        "a session of a day": BAD_SESSION,
        "a member without protocols": INCONSISTENT_PROTOCOL,
        "a commit of nobody": ILLEGAL_GENERATION,
    }, lambda: group_codes(to))

    silent, acknowledged = mutated(to, 300)
    check("each of 300 requests with a byte changed is answered or ends the connection", [], silent)
    offsets, broken = stored(to)
    check("what is stored is whole batches without a gap", (list(range(len(offsets))), 0), (offsets, broken))
    check("and exactly what was acknowledged", before + 1 + acknowledged, len(offsets))
    end()


main()
