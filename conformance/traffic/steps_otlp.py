"""OpenTelemetry's own collector takes the proxy's spans and log records: in clear, within TLS, with a token, when it was away, and when it refuses."""

import contextlib
import json
import os
import socket
import subprocess
import threading

from common import WORK_DIR, Handler, Mock, Proxy, Server, certificates, eventually, run, version
from checks import begin, check, end

COLLECTOR = os.environ["COLLECTOR"]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# As OTLP numbers them; the collector writes them so.
SERVER, CLIENT, ERROR = 2, 3, 2

begin("opentelemetry-collector", version(COLLECTOR, "--version"))
at = certificates()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Collector:
    """A collector of its own; `spans` and `logs` are what its receiver has read, as it holds it."""

    def __init__(self, name, port, tls=False, token=None, logs=True):
        self.path, self.port = WORK_DIR / f"{name}.jsonl", port
        protocol = {"endpoint": f"127.0.0.1:{port}"}
        if tls:
            protocol["tls"] = {"cert_file": at("server.pem"), "key_file": at("server.key")}
        config = {
            "receivers": {"otlp": {"protocols": {"http": protocol}}},
            "exporters": {"lines": {"path": str(self.path)}},
            "service": {
                "pipelines": {kind: {"receivers": ["otlp"], "exporters": ["lines"]} for kind in (["traces", "logs"] if logs else ["traces"])},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            },
        }
        if token:
            protocol["auth"] = {"authenticator": "bearertokenauth"}
            config["extensions"] = {"bearertokenauth": {"token": token}}
            config["service"]["extensions"] = ["bearertokenauth"]
        (WORK_DIR / f"{name}.yaml").write_text(json.dumps(config))
        self.process = subprocess.Popen([COLLECTOR, f"--config={WORK_DIR}/{name}.yaml"])

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def spans(self):
        return self.read("resourceSpans", "scopeSpans", "spans")

    def logs(self):
        return self.read("resourceLogs", "scopeLogs", "logRecords")

    def read(self, resources, scopes, kind):
        if not self.path.exists():
            return []
        found = []
        # The last line may be half written.
        for line in self.path.read_text().rpartition("\n")[0].splitlines():
            for resource in json.loads(line).get(resources, []):
                about = attributes(resource["resource"])
                for scope in resource[scopes]:
                    found += [{**one, "of": about, "scope": scope["scope"]["name"], "says": attributes(one)} for one in scope[kind]]
        return found

    def of_path(self, path, kind):
        return [span for span in self.spans() if span["kind"] == kind and path in (span["says"].get("url.path"), span["says"].get("url.full"))]

    def __enter__(self):
        eventually(self.listens)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def attributes(of):
    """With the type that each value has on the wire: a number as text would be a finding."""
    found = {}
    for one in of.get("attributes", []):
        ((kind, value),) = one["value"].items()
        found[one["key"]] = int(value) if kind == "intValue" else value
    return found


class Flaky(Handler):
    """Fails each path once that asks for it, with what it was sent on which attempt."""

    seen, lock = {}, threading.Lock()

    def do_GET(self):
        with self.lock:
            before = self.seen.setdefault(self.path, [])
            before.append(self.headers.get("traceparent"))
        if self.path.startswith("/flaky") and len(before) == 1:
            return self.reply(b"not now", 503)
        if self.path.startswith("/broken"):
            return self.reply(b"broken", 500)
        return super().do_GET()


upstream = Server(("127.0.0.1", 0), Flaky)
threading.Thread(target=upstream.serve_forever, daemon=True).start()
port = upstream.server_address[1]
to = f"127.0.0.1:{port}"


def ask(proxy, path, *more, scheme="http"):
    return run("curl", "-s", "--cacert", at("ca.pem"), "-o", "/dev/null", "-w", "%{http_code}", *more, f"{scheme}://{proxy.address}{path}").out


@contextlib.contextmanager
def environment(**variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def exported(proxy, what="spans"):
    return proxy.metric(f"buttress_traffic_{what}_exported_total")


# In clear: what a request and its attempts are to the collector.
sampled = ("-H", f"traceparent: 00-{TRACE}-{PARENT}-01", "-A", "curl/otlp")
with Collector("clear", free_port()) as collector, environment(OTEL_SERVICE_NAME="shop"):
    with Proxy("--to", to, "--otlp", f"http://127.0.0.1:{collector.port}", "--trace-sample", "0%") as proxy:
        check("a request that fails once is answered", "200", ask(proxy, "/flaky?id=7", *sampled))
        # Not sampled, but failed: the proxy says so itself.
        check("a request that fails is answered", "500", ask(proxy, "/broken"))
        check("one that nobody samples is answered", "200", ask(proxy, "/quiet"))
        check("the collector has all spans", True, bool(eventually(lambda: len(collector.spans()) >= 5)))
        spans = collector.spans()
        check("and no more", 5, len(spans))
        check("as many as the proxy says", 5.0, eventually(lambda: exported(proxy) == 5.0) and exported(proxy))
        servers = [span for span in spans if span["kind"] == SERVER and span["traceId"] == TRACE]
        check("one span is the request", 1, len(servers))
        request = servers[0]
        check("below the caller's", PARENT, request["parentSpanId"])
        check("its name", "GET everything", request["name"])
        check("it is no error", {}, request.get("status", {}))
        wanted = {
            "http.request.method": "GET",
            "url.scheme": "http",
            "url.path": "/flaky",
            "url.query": "id=7",
            "http.response.status_code": 200,
            "network.protocol.name": "http",
            "network.protocol.version": "1.1",
            "client.address": "127.0.0.1",
            "server.address": "127.0.0.1",
            "server.port": proxy.port,
            "user_agent.original": "curl/otlp",
            "http.response.body.size": 5,
            "buttress.route": "everything",
        }
        check("its attributes", wanted, {key: request["says"].get(key) for key in wanted})
        about = request["of"]
        check("the service", ("shop", proxy.process.pid), (about.get("service.name"), about.get("process.pid")))
        check("the scope", "buttress.gateway", request["scope"])
        attempts = sorted((span for span in spans if span["kind"] == CLIENT and span["traceId"] == TRACE), key=lambda span: int(span["startTimeUnixNano"]))
        check("a span for each attempt, below the request", [request["spanId"]] * 2, [span["parentSpanId"] for span in attempts])
        carried = [f"00-{TRACE}-{span['spanId']}-01" for span in attempts]
        check("the upstream was told of each attempt", carried, Flaky.seen["/flaky?id=7"])
        check("the first is an error", (ERROR, "503", 503), (attempts[0]["status"].get("code"), attempts[0]["says"].get("error.type"), attempts[0]["says"].get("http.response.status_code")))
        check("the second is not", (None, 1, 200), (attempts[1].get("status", {}).get("code"), attempts[1]["says"].get("http.request.resend_count"), attempts[1]["says"].get("http.response.status_code")))
        check("where they went", {f"http://{to}/flaky?id=7"}, {span["says"].get("url.full") for span in attempts})
        check("and which port", {port}, {span["says"].get("server.port") for span in attempts})
        times = [int(span[key]) for span in (request, *attempts) for key in ("startTimeUnixNano", "endTimeUnixNano")]
        order = times[0] <= times[2] <= times[3] <= times[4] <= times[5] <= times[1]
        check("attempts lie in the request, one after the other", True, order)
        failed = [span for span in spans if span["traceId"] != TRACE]
        check("what failed is there though nobody samples it", [SERVER, CLIENT], sorted(span["kind"] for span in failed))
        check("as errors", {ERROR}, {span["status"].get("code") for span in failed})
        check("of one trace", 1, len({span["traceId"] for span in failed}))
        root = next(span for span in failed if span["kind"] == SERVER)
        check("which begins here", ("", "BT0911"), (root.get("parentSpanId", ""), root["says"].get("buttress.code")))
        # What clients write is not always text.
        odd = run("curl", "-s", "-o", "/dev/null", "-H", f"traceparent: 00-{TRACE}-{PARENT}-01", "-H", b"user-agent: \xff\xfe \"\\\t".decode("latin-1"), f"http://{proxy.address}/odd/%00%ff?%22")
        check("odd bytes are answered", 0, odd.code)
        check("and come to the collector", True, bool(eventually(lambda: collector.of_path("/odd/%00%ff", SERVER))))
        ask(proxy, "/last", *sampled)
    check("what is there when the proxy ends is sent", 1, len(collector.of_path("/last", SERVER)))
    # Many at once: several requests to the collector, none lost.
    with Mock() as many, Proxy("--to", many, "--otlp", f"http://127.0.0.1:{collector.port}") as proxy:
        before = len(collector.spans())
        urls = [f"http://{proxy.address}/many/{number}" for number in range(1500)]
        (WORK_DIR / "urls").write_text("".join(f"url = {url}\noutput = /dev/null\n" for url in urls))
        run("curl", "-s", *sampled, "-K", str(WORK_DIR / "urls"))
        check("1500 requests give 3000 spans", True, bool(eventually(lambda: len(collector.spans()) - before == 3000)))
        check("with ids of their own", 3000 + before, len({span["spanId"] for span in collector.spans()}))
        check("none was dropped", 0.0, proxy.metric("buttress_traffic_spans_dropped_total"))

# Log records: what failed or was tried again, where its spans are.
with Collector("logs", free_port()) as collector, environment(OTEL_SERVICE_NAME="shop"):
    with Proxy("--to", to, "--otlp", f"http://127.0.0.1:{collector.port}", "--otlp-logs", "--trace-sample", "0%") as proxy:
        check("with log records: one that is tried again", "200", ask(proxy, "/flaky-logs", *sampled))
        check("one that fails", "500", ask(proxy, "/broken-logs?id=7", "-A", "curl/otlp"))
        check("one that fails in a trace that nobody samples", "500", ask(proxy, "/broken-quiet", "-H", f"traceparent: 00-{TRACE}-{PARENT}-00"))
        check("one that simply succeeds", "200", ask(proxy, "/well"))
        check("the collector has all log records", True, bool(eventually(lambda: len(collector.logs()) >= 3)))
        logs = {log["says"]["url.path"]: log for log in collector.logs()}
        check("and no more", ["/broken-logs", "/broken-quiet", "/flaky-logs"], sorted(logs))
        check("as many as the proxy says", 3.0, eventually(lambda: exported(proxy, "logs") == 3.0) and exported(proxy, "logs"))
        failed = logs["/broken-logs"]
        wanted = {
            "http.request.method": "GET",
            "url.query": "id=7",
            "http.response.status_code": 500,
            "client.address": "127.0.0.1",
            "server.address": "127.0.0.1",
            "server.port": proxy.port,
            "buttress.route": "everything",
            "buttress.code": "BT0911",
            "error.type": "BT0911",
        }
        check("its attributes", wanted, {key: failed["says"].get(key) for key in wanted})
        check("its severity", (17, "ERROR"), (failed["severityNumber"], failed["severityText"]))
        body = failed["body"]["stringValue"]
        check("its body is the code and the sentence", f"BT0911: {to} answered 500 itself", body)
        explained = run(os.environ["BUTTRESS_BINARY"], "explain", failed["says"]["buttress.request_id"], "--admin", proxy.admin).out
        check("as explain prints it", True, body.partition(": ")[2] in explained)
        attempts = [one["stringValue"] for one in failed["says"]["buttress.attempts"]["values"]]
        check("who was asked", [f"{to}: 500"], attempts)
        check("the service and the scope", ("shop", "buttress.gateway"), (failed["of"].get("service.name"), failed["scope"]))
        check("its event", "buttress.decision", failed.get("eventName"))
        check("its span is there", True, bool(eventually(lambda: any(span["traceId"] == failed["traceId"] and span["spanId"] == failed["spanId"] for span in collector.of_path("/broken-logs", SERVER)))))
        again = logs["/flaky-logs"]
        check("what was served in the end is no error", (9, "INFO", TRACE, 1, None), (again["severityNumber"], again["severityText"], again["traceId"], again.get("flags", 0), again["says"].get("error.type")))
        check("and below its span", True, bool(eventually(lambda: any(span["spanId"] == again["spanId"] for span in collector.of_path("/flaky-logs", SERVER)))))
        quiet = logs["/broken-quiet"]
        check("a caller's trace that is not sampled has the record alone", (TRACE, "", 0), (quiet["traceId"], quiet.get("spanId", ""), quiet.get("flags", 0)))
        check("and no span", [], collector.of_path("/broken-quiet", SERVER))

# A collector that takes no log records.
with Collector("no-logs", free_port(), logs=False) as collector, Proxy("--to", to, "--otlp", f"http://127.0.0.1:{collector.port}", "--otlp-logs", "--trace-sample", "100%") as proxy:
    ask(proxy, "/broken-alone")
    check("what it takes comes", True, bool(eventually(lambda: len(collector.of_path("/broken-alone", SERVER)) == 1)))
    check("what it does not is counted", (1.0, 1.0, 0.0), eventually(lambda: proxy.metric("buttress_traffic_logs_dropped_total") == 1.0) and (1.0, proxy.metric("buttress_traffic_logs_failures_total"), proxy.metric("buttress_traffic_spans_dropped_total")))

# A collector that comes later than the proxy.
later = free_port()
with Proxy("--to", to, "--otlp", f"http://127.0.0.1:{later}", "--trace-sample", "100%") as proxy:
    ask(proxy, "/early")
    check("a collector that is away is a failure", True, bool(eventually(lambda: proxy.metric("buttress_traffic_spans_failures_total") >= 1)))
    with Collector("later", later) as collector:
        check("its spans come when it is there", True, bool(eventually(lambda: collector.of_path("/early", SERVER))))
        check("nothing was dropped", 0.0, proxy.metric("buttress_traffic_spans_dropped_total"))

# Within TLS, with a token, as a hosted collector wants it; and a proxy that speaks TLS itself, on both sides.
token = WORK_DIR / "token"
token.write_text("Bearer s3cret\n")
with Collector("secure", free_port(), tls=True, token="s3cret") as collector:
    where = ("--otlp", f"https://localhost:{collector.port}", "--trace-sample", "100%")
    named = ("--otlp-ca", at("ca.pem"))
    with Proxy("--to", to, "--tls-cert", at("server.pem"), "--tls-key", at("server.key"), *where, *named, "--otlp-header", f"authorization=@{token}") as proxy:
        check("over TLS it is answered", "200", ask(proxy, "/by-file", scheme="https"))
        check("within TLS, with a token of a file", True, bool(eventually(lambda: collector.of_path("/by-file", SERVER))))
        check("the request was within TLS", "https", collector.of_path("/by-file", SERVER)[0]["says"]["url.scheme"])
        onward = ("--to", f"https://localhost:{proxy.port}", "--upstream-ca", at("ca.pem"))
        with environment(OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret", OTEL_EXPORTER_OTLP_CERTIFICATE=at("ca.pem")), Proxy(*onward, *where) as front:
            ask(front, "/by-environment")
            full = f"https://localhost:{proxy.port}/by-environment"
            check("with what OpenTelemetry's variables say", True, bool(eventually(lambda: collector.of_path(full, CLIENT))))
            check("two proxies make one trace", 1, len({span["traceId"] for span in collector.of_path("/by-environment", SERVER)}) if eventually(lambda: len(collector.of_path("/by-environment", SERVER)) == 2) else 0)
    with environment(OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret"), Proxy("--to", to, *where, *named, "--otlp-header", "authorization=Bearer wrong") as proxy:
        ask(proxy, "/wrong-token")
        check("a wrong token is given up at once", 2.0, eventually(lambda: proxy.metric("buttress_traffic_spans_dropped_total") == 2.0) and 2.0)
        check("and counted", 1.0, proxy.metric("buttress_traffic_spans_failures_total"))
    with Proxy("--to", to, *where, "--otlp-ca", at("other-ca.pem"), "--otlp-header", f"authorization=@{token}") as proxy:
        ask(proxy, "/not-believed")
        check("a collector that is not believed is a failure", True, bool(eventually(lambda: proxy.metric("buttress_traffic_spans_failures_total") >= 1)))
        check("requests go on", "200", ask(proxy, "/meanwhile"))
    check("neither came to it", [], [path for path in ("/wrong-token", "/not-believed") if collector.of_path(path, SERVER)])

# A path that the collector has not.
with Collector("path", free_port()) as collector, Proxy("--to", to, "--otlp", f"http://127.0.0.1:{collector.port}/nowhere", "--trace-sample", "100%") as proxy:
    ask(proxy, "/lost")
    check("404 is given up at once", (2.0, 1.0), eventually(lambda: proxy.metric("buttress_traffic_spans_dropped_total") == 2.0) and (2.0, proxy.metric("buttress_traffic_spans_failures_total")))

refused = run(os.environ["BUTTRESS_BINARY"], "proxy", "--to", to, "--otlp", "http://127.0.0.1:4318", "--otlp-header", "authorization=s3cret\r\nx: y")
check("a field that cannot be sent is refused, and its value not shown", (2, True, False), (refused.code, "hint:" in refused.err, "s3cret" in refused.err))
end()
