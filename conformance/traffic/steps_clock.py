"""The wall clock under `buttress proxy` is set by an hour, ahead and back, while requests run: what is of the wall follows it, nothing else does."""

import base64
import calendar
import http.client
import http.server
import json
import os
import subprocess
import threading
import time

from common import BINARY, SECONDS_MAX, WORK_DIR, Handler, Proxy, Server, eventually, run
from checks import begin, check, end

HOUR = 3600
begin("libfaketime", "of this machine")


class Clock:
    """A wall clock of one's own for a process, and the real monotonic one."""

    def __init__(self, name):
        self.file = WORK_DIR / f"clock-{name}"
        self.set(0)

    def set(self, seconds):
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(self.file)

    def proxy(self, *arguments):
        """Proxies are started one after the other, so the environment is a good place."""
        told = {"LD_PRELOAD": os.environ["LIBFAKETIME"], "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        os.environ.update(told)
        try:
            return Proxy(*arguments)
        finally:
            for name in told:
                del os.environ[name]


class Upstream(Handler):
    broken, waits = threading.Event(), threading.Event()

    def do_GET(self):
        if self.path.startswith("/slow"):
            self.waits.set()
            time.sleep(2.5)
        if self.path == "/hang":
            self.waits.set()
            time.sleep(30)
        if self.broken.is_set() and self.path in ("/stale", "/breaker"):
            return self.reply(b"broken", 500)
        super().do_GET()


class Collector(http.server.BaseHTTPRequestHandler):
    spans = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.spans.extend(span for resource in told["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"])
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


def serve(handler):
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(lifetime_s):
    """Made with openssl, as the guide does."""
    head = b64(b'{"alg":"EdDSA","kid":"k"}')
    claims = b64(json.dumps({"sub": "alice", "exp": int(time.time()) + lifetime_s}).encode())
    (WORK_DIR / "signed").write_text(f"{head}.{claims}")
    made = run("openssl", "pkeyutl", "-sign", "-inkey", str(WORK_DIR / "issuer.pem"), "-rawin", "-in", str(WORK_DIR / "signed"))
    return f"{head}.{claims}.{b64(made.bytes)}"


run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(WORK_DIR / "issuer.pem"))
public = run("openssl", "pkey", "-in", str(WORK_DIR / "issuer.pem"), "-pubout", "-outform", "DER").bytes[-32:]
(WORK_DIR / "jwks.json").write_text(json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": b64(public)}]}))
to, collector = serve(Upstream), serve(Collector)


def route(path, **rest):
    return {"kind": "Route", "name": path.strip("/*") or "rest", "spec": {"match": [{"path": path}], "to": [{"endpoints": to}], **rest}}


routes = [
    route("/asked", auth={"jwt": {"jwks": str(WORK_DIR / "jwks.json")}}),
    # So slow that nothing comes back while this runs, were it not for a clock that jumps.
    route("/rate", rate=[{"per_second": 0.001, "burst": 5}]),
    route("/stale", fallback={"stale": "10m"}, retry="off", breaker="off", outlier="off"),
    route("/breaker", retry="off", outlier="off", breaker={"consecutive": 3, "open_for": "1s"}),
    route("/hang", deadline="4s", retry="off"),
    route("/*"),
]
(WORK_DIR / "routes.yaml").write_text("\n---\n".join(json.dumps(one) for one in routes))
clock, log = Clock("one"), WORK_DIR / "access.log"


def status(proxy, path, *more):
    return int(run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *more, f"http://{proxy.address}{path}").out)


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def ahead(log):
    """By how many hours the last line of a log is ahead of the real time."""
    if not (all_lines := lines(log)):
        return None
    at = time.strptime(all_lines[-1]["time"][:19], "%Y-%m-%dT%H:%M:%S")
    return round((calendar.timegm(at) - time.time()) / HOUR)


def jump(proxy, hours, clock=clock, log=log):
    """Sets the clock, and waits until the log is written by it."""
    clock.set(hours * HOUR)
    return bool(eventually(lambda: status(proxy, "/tick") and eventually(lambda: lines(log)) and ahead(log) == hours))


with clock.proxy("--config", str(WORK_DIR / "routes.yaml"), "--access-log", str(log), "--otlp", f"http://{collector}", "--trace-sample", "100%") as proxy:
    # One client that never stops, on one connection.
    seen, stop = [], threading.Event()

    def load():
        connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=SECONDS_MAX)
        local = None
        while not stop.is_set():
            try:
                connection.request("GET", "/load")
                answer = connection.getresponse()
                answer.read()
                # Reopened by http.client where the proxy has closed it.
                port = connection.sock.getsockname()[1] if connection.sock else 0
                seen.append((answer.status, local in (None, port)))
                local = port
            except OSError as error:
                seen.append((repr(error), False))
                connection.close()
            time.sleep(0.005)

    loading = threading.Thread(target=load)
    loading.start()
    good = token(600)
    bearer = ("-H", f"Authorization: Bearer {good}")
    check("a token that is good for ten minutes passes", 200, status(proxy, "/asked", *bearer))
    check("the burst passes, and no more", [200] * 5 + [429], [status(proxy, "/rate") for _ in range(6)])
    check("an answer is kept", 200, status(proxy, "/stale"))
    Upstream.broken.set()
    check("a breaker opens", 503, eventually(lambda: status(proxy, "/breaker") == 503) and 503)

    # An hour ahead while a request waits for its answer.
    Upstream.waits.clear()
    waiting = subprocess.Popen(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{proxy.address}/slow"], stdout=subprocess.PIPE, text=True)
    Upstream.waits.wait(SECONDS_MAX)
    check("the log is an hour ahead", True, jump(proxy, 1))
    check("the request that waited meanwhile is answered", "200", waiting.communicate(timeout=SECONDS_MAX)[0])
    check("the token has expired", 401, status(proxy, "/asked", *bearer))
    check("a rate gives nothing for an hour that nobody waited", 429, status(proxy, "/rate"))
    check("the kept answer is not an hour old", 200, status(proxy, "/stale"))
    Upstream.broken.clear()
    check("the breaker closes after its time", 200, eventually(lambda: status(proxy, "/breaker") == 200) and 200)
    check("a breaker opens again", 503, Upstream.broken.set() or eventually(lambda: status(proxy, "/breaker") == 503) and 503)

    # And two back, while one waits for an answer that does not come.
    Upstream.waits.clear()
    waiting = subprocess.Popen(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{proxy.address}/hang"], stdout=subprocess.PIPE, text=True)
    Upstream.waits.wait(SECONDS_MAX)
    check("the log is an hour behind", True, jump(proxy, -1))
    check("a deadline passes all the same", "504", waiting.communicate(timeout=SECONDS_MAX)[0])
    check("the old token is good again", 200, status(proxy, "/asked", *bearer))
    check("a rate owes nothing for it", 429, status(proxy, "/rate"))
    check("the kept answer is there", 200, status(proxy, "/stale"))
    Upstream.broken.clear()
    check("a breaker does not stay open for an hour", 200, eventually(lambda: status(proxy, "/breaker") == 200) and 200)
    check("the log is right again", True, jump(proxy, 0))
    stop.set()
    loading.join()
    check("no request of a client that never stopped failed, and its connection was kept", {(200, True)}, set(seen))
    check("no request took an hour by the log", [], [line for line in lines(log) if not 0 <= line["head_ms"] <= line["whole_ms"] < 60_000])
    check("spans came", True, bool(eventually(lambda: len(Collector.spans) > 100)))
    odd = [span for span in Collector.spans if not 0 <= int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) < 60 * 10**9]
    check("no span took an hour, or ended before it began", [], odd)
    check("it still runs", None, proxy.process.poll())

# A limit of a cluster, whose pool has a time of its own: one gateway's clock jumps, the other one must not be starved.
node = subprocess.Popen([BINARY, "dev", "--nodes", "1", "--output", "json", "--data-dir", str(WORK_DIR / "data")], stdout=subprocess.PIPE, text=True)
try:
    store = json.loads(node.stdout.readline())["nodes"][0]["etcd"]
    shared = route("/*", rate=[{"per_second": 20, "burst": 20, "cluster": {}}])
    shared["name"] = "shared"
    resource = WORK_DIR / "shared.yaml"
    resource.write_text(json.dumps(shared))
    applied = run(BINARY, "apply", "--etcd", f"http://{store}", "-f", str(resource))
    if applied.code:
        raise RuntimeError(applied.err)
    jumpy, log_of_one = Clock("two"), WORK_DIR / "one.log"
    with jumpy.proxy("--store", f"http://{store}", "--name", "jumpy", "--access-log", str(log_of_one)) as one, Proxy("--store", f"http://{store}", "--name", "steady") as other:

        def passed(proxy, seconds):
            """How many of requests without end pass in a while."""
            connection, count, until = http.client.HTTPConnection(proxy.host, proxy.port, timeout=SECONDS_MAX), 0, time.monotonic() + seconds
            while time.monotonic() < until:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                count += answer.status == 200
                time.sleep(0.002)
            return count

        check("tokens come", True, bool(eventually(lambda: passed(one, 0.5)) and eventually(lambda: passed(other, 0.5))))
        check("one clock is an hour ahead", True, jump(one, 1, jumpy, log_of_one))
        check("tokens are taken there", True, bool(eventually(lambda: passed(one, 0.5))))
        check("and is right again", True, jump(one, 0, jumpy, log_of_one))
        # A pool that thinks that it lies an hour ahead would give nothing for that hour.
        got, began = 0, time.monotonic()
        while got < 60 and time.monotonic() - began < SECONDS_MAX:
            got += passed(other, 0.5)
        check("an hour there and back starves nobody", True, got >= 60)
        # The burst, the rate, and what two gateways may hold: a slice and a half of two tokens each.
        check("and gives no more than the limit", True, got <= 20 + 20 * (time.monotonic() - began) + 2 * 3)
finally:
    node.terminate()
    node.wait(SECONDS_MAX)
end()
