"""Drives conformance/uplink.sh: a Kafka behind a proxy that can be cut, an edge node, producers, and the comparison."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
BUTTRESS, SECONDS = sys.argv[1], float(sys.argv[2])
PARTITIONS = 3
started = []


def say(text):
    print(f"{time.monotonic() - BEGAN:7.1f}  {text}", file=sys.stderr, flush=True)


def free_ports(count):
    # Consecutive ones, for the broker and its controller.
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            base = first.getsockname()[1]
        try:
            held = [socket.create_server(("127.0.0.1", base + n)) for n in range(count)]
        except OSError:
            continue
        for one in held:
            one.close()
        return list(range(base, base + count))


class Proxy:
    """Carries bytes; while it is cut they stay where they are, and connections lead nowhere, as on a cut cable."""

    def __init__(self, port, target):
        self.target, self.whole = target, threading.Event()
        self.whole.set()
        self.server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.server.accept()
            threading.Thread(target=self.carry, args=(near,), daemon=True).start()

    def carry(self, near):
        self.whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self.target), 5)
            far.settimeout(None)
        except OSError:
            near.close()
            return
        for a, b in ((near, far), (far, near)):
            threading.Thread(target=self.pump, args=(a, b), daemon=True).start()

    def pump(self, a, b):
        try:
            while data := a.recv(65536):
                self.whole.wait()
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def start(*command, log, **more):
    process = subprocess.Popen(command, env=os.environ | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "a"), text=True)
    started.append(process)
    return process


def start_kafka(work, port, advertised):
    kafka = start(f"{HERE}/originals/kafka.sh", f"{work}/kafka", str(port), log=f"{work}/kafka.err", KAFKA_ADVERTISE=f"127.0.0.1:{advertised}")
    assert "bootstrap" in kafka.stdout.readline(), "Kafka does not come up"
    return kafka


def start_edge(work, http):
    edge = start(BUTTRESS, "serve", "--config", f"{work}/edge.toml", "--with-parent", "--log", "json", log=f"{work}/edge.log")
    threading.Thread(target=lambda: [None for _ in edge.stdout], daemon=True).start()
    until(60, lambda: urllib.request.urlopen(f"{http}/readyz", timeout=2).status == 200, "the edge is ready")
    return edge


def until(seconds, wanted, what):
    end = time.monotonic() + seconds
    while True:
        try:
            if wanted():
                return
        except (OSError, urllib.error.URLError, ValueError, KeyError):
            pass
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.2)


def ask(url, body=None, content="application/json"):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": content} if data else {})
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)


def produce(http, topic, batches, per_batch, size, pause, counter, stop):
    """Sends until it is acknowledged; what is sent again may be twice in the edge's log, and is then twice in both."""
    number = 0
    while not stop.is_set() and (batches is None or number < batches):
        records = [{"key": f"k{n % 17}", "value": {"n": number * per_batch + n, "pad": "x" * size}} for n in range(per_batch)]
        while True:
            try:
                ask(f"{http}/topics/{topic}", {"records": records}, "application/vnd.kafka.json.v2+json")
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        number += 1
        counter[topic] += per_batch
        time.sleep(pause)


def read(bootstrap, topic, committed):
    """Every partition's (offset, value), by kcat."""
    command = ["kcat", "-b", bootstrap, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%p %o %s\n"]
    if committed:
        command += ["-X", "isolation.level=read_committed"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    logs = collections.defaultdict(list)
    for line in told.stdout.splitlines():
        partition, offset, value = line.split(" ", 2)
        logs[int(partition)].append((int(offset), value))
    return logs


def compare(edge, target, gaps):
    """Per partition: what the edge has from its first offset on must be the end of what the target has, and all that is before
    it at the target or in a gap record."""
    told = {"edge": 0, "target": 0, "lost": 0, "duplicates": 0, "out_of_order": 0, "gap_records": 0}
    for partition in sorted(set(edge) | set(target)):
        here, there = edge[partition], [value for _, value in target[partition]]
        told["edge"] += len(here)
        told["target"] += len(there)
        skipped = [gap for gap in gaps if gap["partition"] == partition]
        told["gap_records"] += sum(gap["count"] for gap in skipped)
        # Walk the local offsets: a gap, or the next record of the target.
        known, at, next_offset = dict(here), 0, 0
        end = here[-1][0] + 1 if here else next_offset
        while next_offset < end:
            gap = next((gap for gap in skipped if gap["from"] == next_offset), None)
            if gap:
                next_offset = gap["to"]
                continue
            if at >= len(there):
                told["lost"] += end - next_offset
                break
            if next_offset in known and known[next_offset] != there[at]:
                told["out_of_order"] += 1
            at += 1
            next_offset += 1
        told["duplicates"] += len(there) - at
    return told


BEGAN = time.monotonic()
work = tempfile.mkdtemp(prefix="uplink-")
try:
    broker, controller, link, *ports = free_ports(8)
    proxy = Proxy(link, broker)
    say("start    the original Kafka behind a proxy")
    kafka = start_kafka(work, broker, link)
    names = ["peer", "kafka", "mqtt", "http", "etcd"]
    with open(f"{work}/edge.toml", "w") as file:
        file.write(f'[node]\nid = 1\ndata_dir = "{work}/edge"\n[cluster]\nid = "press-7"\n[[members]]\nid = 1\nname = "node-1"\n')
        file.writelines(f'{name} = "127.0.0.1:{port}"\n' for name, port in zip(names, ports))
    os.makedirs(f"{work}/edge", exist_ok=True)
    http, edge_kafka = f"http://127.0.0.1:{ports[3]}", f"127.0.0.1:{ports[1]}"
    edge = start_edge(work, http)
    for topic in ("telemetry", "alerts", "burst"):
        ask(f"{http}/v1/topics", {"name": topic, "partitions": PARTITIONS if topic != "burst" else 1})
    make = [BUTTRESS, "uplink", "create", "--server", http, "--create-topics", "--to", f"kafka://127.0.0.1:{link}"]
    subprocess.run(make + ["main", "--topic", "alerts:high", "--topic", "telemetry:low", "--bound", "1GiB"], check=True)
    subprocess.run(make + ["small", "--topic", "burst", "--bound", "1MiB"], check=True)

    counter, stop = collections.Counter(), threading.Event()
    players = [
        threading.Thread(target=produce, args=(http, "telemetry", None, 50, 150, 0.02, counter, stop)),
        threading.Thread(target=produce, args=(http, "alerts", None, 2, 50, 0.05, counter, stop)),
    ]
    for player in players:
        player.start()

    def at(share):
        time.sleep(max(0, BEGAN_PLAY + SECONDS * share - time.monotonic()))

    BEGAN_PLAY = time.monotonic()
    at(0.15)
    proxy.whole.clear()
    say("cut      the link, for 10 s")
    time.sleep(5)
    status = ask(f"{http}/v1/uplinks/main")
    say(f"status   {status['lanes'][0]['state']}, {sum(lane['lag_records'] for lane in status['lanes'])} records wait")
    edge.kill()
    edge.wait()
    say("kill     the edge, with SIGKILL, while the link is cut")
    edge = start_edge(work, http)
    time.sleep(5)
    proxy.whole.set()
    say("heal     the link")
    at(0.5)
    edge.kill()
    edge.wait()
    say("kill     the edge, with SIGKILL, while it sends")
    edge = start_edge(work, http)
    at(0.65)
    say("restart  the broker")
    kafka.send_signal(signal.SIGTERM)
    kafka.wait()
    kafka = start_kafka(work, broker, link)
    say("restart  the broker serves again")
    at(0.8)
    subprocess.run([BUTTRESS, "uplink", "pause", "small", "--server", http], check=True)
    say("gap      8 MiB into a topic that may take 1 MiB, while its uplink is paused")
    produce(http, "burst", 80, 100, 1000, 0, counter, stop)
    until(60, lambda: ask(f"{http}/v1/topics/burst")["partitions"][0]["start"] > 0, "retention overtakes the uplink")
    subprocess.run([BUTTRESS, "uplink", "resume", "small", "--server", http], check=True)
    at(1.0)
    stop.set()
    for player in players:
        player.join()

    def drained():
        lanes = [lane for name in ("main", "small") for lane in ask(f"{http}/v1/uplinks/{name}")["lanes"]]
        return all(lane["state"] == "following" and lane["lag_records"] == 0 for lane in lanes)

    played = time.monotonic()
    # The monitor looks once a second.
    time.sleep(2)
    until(120, drained, "the uplinks have nothing left")
    say(f"drained  {time.monotonic() - played:.1f} s after the last record")

    kafka_at = f"127.0.0.1:{link}"
    gaps = [json.loads(value) for log in read(kafka_at, "buttress.uplink.gaps", True).values() for _, value in log]
    report = {"seconds": SECONDS, "topics": {}}
    for topic in ("telemetry", "alerts", "burst"):
        mine = [gap for gap in gaps if gap["topic"] == topic]
        report["topics"][topic] = compare(read(edge_kafka, topic, False), read(kafka_at, topic, True), mine)
        report["topics"][topic]["acknowledged"] = counter[topic]
    lanes = [lane for name in ("main", "small") for lane in ask(f"{http}/v1/uplinks/{name}")["lanes"]]
    report["sent_since_last_start"] = {key: sum(lane["sent"][key] for lane in lanes) for key in ("records", "bytes", "parcels")}
    told = report["topics"].values()
    report["ok"] = (
        all(one["lost"] + one["duplicates"] + one["out_of_order"] == 0 and one["edge"] > 0 for one in told)
        and all(report["topics"][topic]["gap_records"] == 0 for topic in ("telemetry", "alerts"))
        and report["topics"]["burst"]["gap_records"] > 0
        and all(report["topics"][topic]["edge"] >= counter[topic] for topic in ("telemetry", "alerts"))
    )
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)
finally:
    proxy_whole = globals().get("proxy")
    if proxy_whole:
        proxy_whole.whole.set()
    for process in reversed(started):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
    if globals().get("report", {}).get("ok"):
        subprocess.run(["rm", "-rf", work])
    else:
        say(f"data and logs are in {work}")
