"""Writes kafka_golden.txt: random messages, encoded after Kafka's own message schemas.

    python3 kafka_golden.py DIRECTORY_OF_KAFKA_SCHEMAS > kafka_golden.txt

The schemas are the *.json of Kafka's clients/src/main/resources/common/message. This knows nothing of the Rust code, so
that the two can disagree: every line is decoded and must encode to the same bytes again.
"""

import json, random, re, struct, sys

SERVED = {  # name: versions; as in src/kafka/mod.rs
    "Produce": (0, 13), "Fetch": (4, 12), "ListOffsets": (1, 10), "Metadata": (0, 13), "FindCoordinator": (0, 6),
    "ApiVersions": (0, 4), "CreateTopics": (2, 7), "DeleteTopics": (1, 6), "InitProducerId": (0, 5),
    "OffsetCommit": (2, 9), "OffsetFetch": (1, 9), "JoinGroup": (0, 9), "Heartbeat": (0, 4), "LeaveGroup": (0, 5),
    "SyncGroup": (0, 5), "DescribeGroups": (0, 6), "ListGroups": (0, 5), "SaslHandshake": (0, 1),
    "DeleteRecords": (0, 2), "OffsetForLeaderEpoch": (2, 4), "DescribeConfigs": (1, 4), "AlterConfigs": (0, 2),
    "SaslAuthenticate": (0, 2), "CreatePartitions": (0, 3), "DeleteGroups": (0, 2), "IncrementalAlterConfigs": (0, 1),
    "OffsetDelete": (0, 0), "DescribeCluster": (0, 2),
}
# Tagged fields that the Rust code carries; the others it skips.
TAGS = {"CurrentLeader", "NodeEndpoints", "ClusterId"}
rng = random.Random(7)


def versions(text):
    if text == "none":
        return (1, 0)
    low, dash, high = text.partition("-")
    if text.endswith("+"):
        return (int(text[:-1]), 99)
    return (int(low), int(high if dash else low))


def within(version, text):
    low, high = versions(text)
    return low <= version <= high


def uvarint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytearray([value]))


def length(n, flexible, short):
    if flexible:
        return uvarint(n + 1)
    return struct.pack(">h" if short else ">i", n)


def value(field, version, flexible, common):
    kind = field["type"]
    null = within(version, field.get("nullableVersions", "none")) and rng.random() < 0.25
    if kind.startswith("[]"):
        if null:
            return length(-1, flexible, False)
        count = rng.randrange(3)
        element = {**field, "type": kind[2:], "nullableVersions": "none"}
        return length(count, flexible, False) + b"".join(value(element, version, flexible, common) for _ in range(count))
    if kind in ("int8", "int16", "int32", "int64"):
        bits = int(kind[3:])
        number = rng.choice([0, 1, -1, rng.getrandbits(bits - 1), -rng.getrandbits(bits - 1)])
        return struct.pack({8: ">b", 16: ">h", 32: ">i", 64: ">q"}[bits], number)
    if kind == "bool":
        return bytes([rng.randrange(2)])
    if kind == "uuid":
        return rng.randbytes(16)
    if kind == "string":
        if null:
            return length(-1, flexible, True)
        text = "".join(rng.choice("abcdeäπ-._") for _ in range(rng.randrange(12))).encode()
        return length(len(text), flexible, True) + text
    if kind in ("bytes", "records"):
        raw = rng.randbytes(rng.randrange(40))
        return length(len(raw), flexible, False) + raw
    fields = field.get("fields") or common[kind]
    return fields_bytes(fields, version, flexible, common)


def fields_bytes(fields, version, flexible, common):
    out, tagged = b"", []
    for field in fields:
        if not within(version, field["versions"]) :
            continue
        if "taggedVersions" in field and within(version, field["taggedVersions"]):
            # A tagged field with its default must not be sent, so only values that differ are.
            if field["name"] in TAGS and rng.random() < 0.7:
                raw = value({**field, "nullableVersions": "none"}, version, True, common)
                if raw not in (b"\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\x00"):
                    tagged.append((field["tag"], raw))
            continue
        out += value(field, version, flexible, common)
    if flexible:
        out += uvarint(len(tagged))
        for tag, raw in sorted(tagged):
            out += uvarint(tag) + uvarint(len(raw)) + raw
    return out


def main():
    print("# Random messages after the schemas of Kafka 4.3; written by kafka_golden.py.")
    for name, (low, high) in SERVED.items():
        for kind in ("Request", "Response"):
            with open(f"{sys.argv[1]}/{name}{kind}.json") as file:
                schema = json.loads(re.sub(r"^\s*//.*$", "", file.read(), flags=re.M))
            common = {struct["name"]: struct["fields"] for struct in schema.get("commonStructs", [])}
            for version in range(low, high + 1):
                flexible = within(version, schema["flexibleVersions"])
                for _ in range(3):
                    if kind == "Request":
                        header = struct.pack(">hhi", schema["apiKey"], version, 77) + struct.pack(">h", 4) + b"test"
                        header += b"\0" if flexible else b""
                    else:
                        header = struct.pack(">i", 77) + (b"\0" if flexible and name != "ApiVersions" else b"")
                    body = fields_bytes(schema["fields"], version, flexible, common)
                    print(name, kind, version, (header + body).hex())


main()
