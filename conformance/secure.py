"""Drives conformance/secure.sh: certificates, the engines, their users, and what the binary says and does."""

import base64
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
BUTTRESS = sys.argv[1]
started, failures = [], []


def check(what, holds, said=""):
    print("held  " if holds else "BROKEN", what, flush=True)
    if not holds:
        failures.append(what)
        print(f"       {said}", flush=True)


def free_ports(count):
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            base = first.getsockname()[1]
        try:
            held = [socket.create_server(("127.0.0.1", base + n)) for n in range(count)]
        except (OSError, OverflowError):
            continue
        for one in held:
            one.close()
        return list(range(base, base + count))


def until(seconds, wanted, what):
    end = time.monotonic() + seconds
    while True:
        try:
            if found := wanted():
                return found
        except (OSError, urllib.error.URLError, ValueError, KeyError, IndexError):
            pass
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.2)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def authority(folder):
    """An authority, and a server of 127.0.0.1 that it has signed: ca.pem, server.key, server.crt, and both in server.pem."""
    folder.mkdir()
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    ca = ["-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", f"/CN={folder.name}"]
    openssl("req", "-x509", *curve, *ca, "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE")
    server = ["-keyout", folder / "server.key", "-out", folder / "server.crt", "-subj", "/CN=server"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    openssl("req", "-x509", *curve, *server, *names, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-days", "2")
    (folder / "server.pem").write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())
    return folder


def start(*command, log, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BUTTRESS_") or "CACHE" in name}
    process = subprocess.Popen(
        [str(part) for part in command],
        env=environment | {name: str(value) for name, value in more.items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=open(work / log, "a"),
        text=True,
    )
    started.append(process)
    return process


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(*arguments, seconds=90, stdin=None):
    """The exit code, and everything that was said."""
    try:
        told = subprocess.run([BUTTRESS, *map(str, arguments)], capture_output=True, text=True, timeout=seconds, input=stdin or "")
    except subprocess.TimeoutExpired as late:
        text = b"".join(part for part in (late.stdout, late.stderr) if part).decode()
        return None, f"nothing in {seconds} s, but: {text}"
    return told.returncode, told.stdout + told.stderr


def ok(*arguments, stdin=None):
    code, said = run(*arguments, stdin=stdin)
    assert code == 0, f"{arguments}: {said}"
    return said


def refused(what, code, answer):
    exit_code, said = answer
    check(f"{what}: {code} with a hint", exit_code == 2 and f"[{code}]" in said and "hint: " in said, f"exit {exit_code}: {said}")
    check(f"{what}: no password is told", not any(secret in said for secret in SECRETS), "one is")


def password(name, text):
    SECRETS.add(text)
    (work / name).write_text(text + "\n")
    return work / name


def etcd_users(endpoint, ca):
    """root, app with a role for app/, and poor without any."""
    context, token = ssl.create_default_context(cafile=ca), None

    def ask(path, body):
        headers = {"content-type": "application/json"} | ({"authorization": token} if token else {})
        request = urllib.request.Request(f"https://{endpoint}/v3/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)

    until(60, lambda: ask("maintenance/status", {}).get("leader"), "the etcd has a leader")
    for user in ("root", "app", "poor"):
        ask("auth/user/add", {"name": user, "password": f"{user}-secret"})
    for role in ("root", "app"):
        ask("auth/role/add", {"name": role})
        ask("auth/user/grant", {"user": role, "role": role})
    key = lambda text: base64.b64encode(text.encode()).decode()
    ask("auth/role/grant", {"name": "app", "perm": {"permType": "READWRITE", "key": key("app/"), "range_end": key("app0")}})
    ask("auth/enable", {})


def alerts(bootstrap, topic):
    command = ["kcat", "-b", bootstrap, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-X", "isolation.level=read_committed"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [json.loads(line) for line in told.stdout.splitlines()]


def host(name, kafka, etcd, port):
    return ["host", "--kafka", kafka, "--etcd", etcd, "--name", name, "--http", f"127.0.0.1:{port}", "--hold-ttl", "3s"]


def function_host():
    http = f"http://127.0.0.1:{http_port}"
    process = start(BUTTRESS, *host("one", alice, app, http_port), "--with-parent", log="host.log")
    until(60, lambda: urllib.request.urlopen(f"{http}/healthz", timeout=2).status == 200, "the host serves")
    root = HERE.parent
    ok("topic", "create", "telemetry", "--partitions", "2", "--sequence", "machine,seq", "--server", http)
    ok("model", "push", "anomaly", root / "examples/fleet-model/anomaly-v1.json", "--server", http)
    deploy = ["--topic", "telemetry", "--output-topic", "machine-anomalies", "--model", "anomaly", "--state"]
    ok("fn", "deploy", "anomaly", root / "guests/built/anomaly.wasm", *deploy, "--server", http)
    reading = {"ts": 1, "temperature": 99.0, "vibration": 9.5, "speed": 1500, "torque": 60, "wear": 230}
    lines = "".join(json.dumps(reading | {"machine": f"m-{m}", "seq": seq}) + "\n" for seq in range(1, 4) for m in range(4))
    until(60, lambda: run("produce", "telemetry", "--server", http, stdin=lines)[0] == 0, "readings are taken")
    until(90, lambda: len(alerts(plain, "machine-anomalies")) >= 12, "an alert for every reading")
    seen = sorted((alert["machine"], alert["seq"]) for alert in alerts(plain, "machine-anomalies"))
    check("a host judges every reading once, over TLS and with users", len(seen) == len(set(seen)) == 12, seen)
    stop(process)
    said = (work / "host.log").read_text()
    check("a host's log has no error and no password", " ERROR " not in said and not any(s in said for s in SECRETS), said[-2000:])

    refused("a host, a Kafka's password is wrong", "BT0707", run(*host("two", address("alice", "wrong"), app, 0)))
    refused("a host, an etcd's password is wrong", "BT0707", run(*host("two", alice, etcd_address("app", "wrong"), 0)))
    refused("a host, a Kafka of another authority", "BT0706", run(*host("two", address("alice", "alice", ca=other), app, 0)))
    refused("a host, an etcd of another authority", "BT0706", run(*host("two", alice, etcd_address("app", "app", ca=other), 0)))
    refused("a host, an etcd's user without rights", "BT0708", run(*host("two", alice, etcd_address("poor", "poor"), 0)))
    refused("a host, a password in the address", "BT0701", run(*host("two", f"kafka://alice:alice-secret@{secure}", app, 0)))


def uplinks():
    dev = start(BUTTRESS, "dev", "--output", "json", "--nodes", "1", "--data-dir", work / "dev", log="dev.log")
    http = "http://" + json.loads(dev.stdout.readline())["nodes"][0]["http"]
    ok("topic", "create", "readings", "--partitions", "2", "--server", http)
    ok("produce", "readings", "--server", http, stdin="".join(f'{{"n":{n}}}\n' for n in range(200)))

    # An uplink names secrets of the node's own folder, by their names there.
    own = work / "dev" / "node-1" / "secrets"
    own.mkdir(mode=0o700)
    for user in ("alice", "mallory"):
        shutil.copy(work / user, own)

    def to_kafka(user, secret, ca=None):
        return f"kafka://{user}@{secure}?tls={(ca or ours) / 'ca.pem'}&password-file={secret}"

    def create(name, to, *more):
        return ["uplink", "create", name, "--topic", "readings", "--bound", "1GiB", "--to", to, "--edge", name, *more, "--server", http]

    def status(name):
        with urllib.request.urlopen(f"{http}/v1/uplinks/{name}", timeout=10) as answer:
            return json.load(answer)

    refused("an uplink, a password in the address", "BT0803", run(*create("in", f"kafka://alice:alice-secret@{secure}")))
    refused("an uplink, a value that there is not", "BT0803", run(*create("in", f"kafka://alice@{secure}?ssl=yes")))
    refused("an uplink, a file that is not for uplinks", "BT0806", run(*create("in", address("alice", "alice"))))
    refused("an uplink, a variable that is not for uplinks", "BT0806", run(*create("in", f"kafka://alice@{secure}?tls=system&password-env=PATH")))
    (own / "link").symlink_to(work / "alice")
    ok(*create("good", to_kafka("alice", "alice"), "--create-topics"))
    done = lambda name: all(lane["state"] == "following" and lane["next"] == lane["end"] for lane in status(name)["lanes"])
    until(60, lambda: done("good"), "the uplink has sent everything")
    seen = sorted(record["n"] for record in alerts(plain, "readings"))
    check("an uplink sends each record once, over TLS and with SCRAM", seen == list(range(200)), seen)

    def troubled(name, code, to):
        ok(*create(name, to))
        until(60, lambda: any((lane["error"] or {}).get("code") == code for lane in status(name)["lanes"]), f"{name}: {code}")
        said = run("uplink", "status", name, "--server", http)[1]
        check(f"an uplink, {name}: status has {code} and a hint", f"[{code}]" in said and "hint: " in said, said)
        check(f"an uplink, {name}: no password is told", not any(secret in said for secret in SECRETS), "one is")

    SECRETS.add("guessed")
    changing = own / "changing"
    changing.write_text("guessed\n")
    troubled("wrong-password", "BT0707", to_kafka("alice", "changing"))
    troubled("wrong-authority", "BT0706", to_kafka("alice", "alice", ca=other))
    troubled("no-rights", "BT0708", to_kafka("mallory", "mallory"))
    troubled("a-link-that-leads-out", "BT0806", to_kafka("alice", "link"))
    changing.write_text("alice-secret\n")
    until(90, lambda: done("wrong-password"), "the uplink gets on once the password is right")
    check("an uplink gets on by itself once the password is right", len(alerts(plain, "readings")) == 400)
    # `dev` is asked to stop, and its node's log is read then.
    stop(dev)
    logs = "".join(path.read_text(errors="replace") for path in (work / "dev").glob("*.log")) + (work / "dev.log").read_text()
    check("no password is in a node's log", not any(secret in logs for secret in SECRETS), "one is")
    lines = logs.count("an uplink does not get on")
    # Four uplinks of two lanes; a code is told once.
    check("a lane's trouble is told once", 8 <= lines <= 16, f"{lines} lines")


def locks():
    lock = lambda etcd, name="app/deploy": run("lock", "run", name, "--etcd", etcd, "--wait", "10s", "--", "echo", "held it")
    # Locks have no namespace: it stands before their names.
    at = lambda user, secret, ca=None: etcd_address(user, secret, ca, namespace="")
    code, said = lock(at("app", "app"))
    check("a lock of an etcd with TLS and a user is taken", code == 0 and "held it" in said, f"exit {code}: {said}")
    refused("a lock, a wrong password", "BT0707", lock(at("app", "wrong")))
    refused("a lock, another authority", "BT0706", lock(at("app", "app", other)))
    refused("a lock, a user without rights", "BT0708", lock(at("poor", "poor")))
    refused("a lock, a name that the role does not have", "BT0708", lock(at("app", "app"), "elsewhere/deploy"))


SECRETS = set()
work = pathlib.Path(tempfile.mkdtemp(prefix="secure-"))
try:
    ours, other = authority(work / "ours"), authority(work / "other")
    kafka_port, *_, etcd_port, _, http_port = free_ports(7)
    plain, secure, etcd_at = f"127.0.0.1:{kafka_port}", f"127.0.0.1:{kafka_port + 2}", f"127.0.0.1:{etcd_port}"
    kafka = start(HERE / "originals/kafka.sh", work / "kafka", kafka_port, log="kafka.err", KAFKA_SECURE=ours)
    etcd = start(HERE / "originals/etcd.sh", "--node", "0", work / "etcd", etcd_port, log="etcd.err", ETCD_SECURE=ours)
    assert "pid" in etcd.stdout.readline(), "the etcd does not come up"
    assert "bootstrap" in kafka.stdout.readline(), "the Kafka does not come up"
    etcd_users(etcd_at, ours / "ca.pem")
    for user in ("alice", "mallory", "app", "poor"):
        password(user, f"{user}-secret")
    password("wrong", "guessed")

    def address(user, secret, ca=None):
        return f"kafka://{user}@{secure}?tls={(ca or ours) / 'ca.pem'}&password-file={work / secret}"

    def etcd_address(user, secret, ca=None, namespace="&namespace=app/"):
        return f"etcd://{user}@{etcd_at}?tls={(ca or ours) / 'ca.pem'}&password-file={work / secret}{namespace}"

    alice, app = address("alice", "alice"), etcd_address("app", "app")
    locks()
    uplinks()
    function_host()
finally:
    for process in reversed(started):
        stop(process)
    if failures or sys.exc_info()[0]:
        print(f"data and logs are in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
sys.exit(1 if failures else 0)
