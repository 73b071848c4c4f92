"""grpcio, client and server, with `buttress proxy` between them: calls and streams, deadlines, metadata, retries by status."""

import socket
import threading
import time
from concurrent import futures
from importlib.metadata import version

import grpc
from common import Mock, Proxy, certificates
from checks import begin, check, end

begin("grpcio", version("grpcio"))
at = certificates()
same = {"request_serializer": None, "response_deserializer": None}
LARGE = bytes(range(256)) * 16 * 1024  # 4 MiB, more than any window
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Service(grpc.GenericRpcHandler):
    """Its state is what the steps look at."""

    def __init__(self):
        self.flaky, self.seen, self.cancelled, self.lock = 0, 0, threading.Event(), threading.Lock()

    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        kind = {
            "echo": grpc.unary_unary_rpc_method_handler,
            "flaky": grpc.unary_unary_rpc_method_handler,
            "slow": grpc.unary_unary_rpc_method_handler,
            "refuse": grpc.unary_unary_rpc_method_handler,
            "metadata": grpc.unary_unary_rpc_method_handler,
            "count": grpc.unary_stream_rpc_method_handler,
            "sum": grpc.stream_unary_rpc_method_handler,
            "chat": grpc.stream_stream_rpc_method_handler,
        }.get(name)
        return kind(getattr(self, f"on_{name}")) if kind else None

    def on_echo(self, request, context):
        return request

    def on_flaky(self, request, context):
        with self.lock:
            self.seen += 1
            if self.flaky:
                self.flaky -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return request

    def on_slow(self, request, context):
        context.add_callback(self.cancelled.set)
        left = context.time_remaining()
        self.cancelled.wait(30)
        return str(left).encode()

    def on_refuse(self, request, context):
        context.set_trailing_metadata([("why-bin", b"\0\1\2"), ("why", "because")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "käse % not allowed")

    def on_metadata(self, request, context):
        known = dict(context.invocation_metadata())
        context.send_initial_metadata([("said", known.get("ask", "")), ("said-bin", known.get("ask-bin", b""))])
        context.set_trailing_metadata([("end", "of it")])
        return str("te" not in known and "x-request-id" in known).encode()

    def on_count(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def on_sum(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def on_chat(self, requests, context):
        for request in requests:
            yield b"you said " + request


def code(call):
    try:
        call()
        return "no error"
    except grpc.RpcError as error:
        return error.code().name


def steps(way, channel, service):
    unary = lambda name: channel.unary_unary(f"/test.Service/{name}")
    check(f"{way}: a call", b"hello", unary("echo")(b"hello", timeout=20))
    check(f"{way}: an empty message", b"", unary("echo")(b"", timeout=20))
    check(f"{way}: four mebibytes each way", True, unary("echo")(LARGE, timeout=40) == LARGE)
    answers = [answer for answer in channel.unary_stream("/test.Service/count")(b"1000", timeout=20)]
    check(f"{way}: a thousand answers in order", [str(number).encode() for number in range(1000)], answers)
    pieces = (LARGE[at : at + 65536] for at in range(0, len(LARGE), 65536))
    check(f"{way}: a stream of requests", str(len(LARGE)).encode(), channel.stream_unary("/test.Service/sum")(pieces, timeout=40))
    # Each is said when the one before was answered, so that nothing may be held back.
    turn, heard = threading.Semaphore(1), []

    def say():
        for number in range(50):
            turn.acquire()
            yield str(number).encode()

    for answer in channel.stream_stream("/test.Service/chat")(say(), timeout=40):
        heard.append(answer)
        turn.release()
    check(f"{way}: both ways, turn by turn", [b"you said %d" % number for number in range(50)], heard)
    reply, call = unary("metadata").with_call(b"", timeout=20, metadata=[("ask", "me"), ("ask-bin", b"\xff\0")])
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    check(f"{way}: metadata before and behind", (b"True", "me", b"\xff\0", "of it"), (reply, initial.get("said"), initial.get("said-bin"), trailing.get("end")))
    try:
        unary("refuse")(b"", timeout=20)
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata())
        said = (error.code().name, error.details(), trailing.get("why-bin"), trailing.get("why"))
        check(f"{way}: a status with its words and trailers", ("FAILED_PRECONDITION", "käse % not allowed", b"\0\1\2", "because"), said)
    check(f"{way}: a method that is not there", "UNIMPLEMENTED", code(lambda: unary("nothing")(b"", timeout=20)))
    service.cancelled.clear()
    check(f"{way}: a deadline that passes", "DEADLINE_EXCEEDED", code(lambda: unary("slow")(b"", timeout=1)))
    check(f"{way}: and the server hears of it", True, service.cancelled.wait(20))
    service.cancelled.clear()
    future = unary("slow").future(b"", timeout=30)
    time.sleep(0.3)
    future.cancel()
    check(f"{way}: so does it of a client that cancels", True, service.cancelled.wait(20))
    service.cancelled.set()


service = Service()
server = grpc.server(futures.ThreadPoolExecutor(32), handlers=[service], options=OPTIONS)
to = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
key, certificate = ((open(at(f"server.{end}"), "rb").read()) for end in ("key", "pem"))
secure_to = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
credentials = grpc.ssl_channel_credentials(open(at("ca.pem"), "rb").read())
with (
    Proxy("--to", to) as clear,
    Proxy("--to", f"https://127.0.0.1:{secure_to}", "--upstream-ca", at("ca.pem"), "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as secure,
):
    with grpc.insecure_channel(clear.address, options=OPTIONS) as channel:
        steps("in clear", channel, service)
        # A status that says that nothing was done is no reason to send a call again that may have an effect; a key says it has none.
        call = channel.unary_unary("/test.Service/flaky")
        service.flaky, service.seen = 1, 0
        again = call(b"x", timeout=20, metadata=[("idempotency-key", "k-1")])
        check("UNAVAILABLE is retried by its status where that is safe", (b"x", 2), (again, service.seen))
        service.flaky, service.seen = 1, 0
        check("and is not where it may not be", ("UNAVAILABLE", 1), (code(lambda: call(b"x", timeout=20)), service.seen))
    with grpc.secure_channel(secure.address, credentials, options=OPTIONS) as channel:
        steps("in TLS on both sides", channel, service)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()[1]
    with Proxy("--to", f"127.0.0.1:{nobody}") as alone, grpc.insecure_channel(alone.address) as channel:
        check("no upstream is UNAVAILABLE", "UNAVAILABLE", code(lambda: channel.unary_unary("/test.Service/echo")(b"", timeout=20)))
server.stop(None)


# `buttress mock` as the upstream of somebody's CI, and grpcio as its client: alone, and with the proxy between.
def asked(address, count, method="echo", timeout=20):
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        call = channel.unary_unary(f"/test.Service/{method}")
        return [code(lambda: call(b"x" * 100, timeout=timeout)) for _ in range(count)]


with Mock() as mock, grpc.insecure_channel(mock, options=OPTIONS) as channel:
    check("mock: an empty message is an answer", b"", channel.unary_unary("/any.Service/Any")(b"hello", timeout=20))
    check("mock: four mebibytes are read", b"", channel.unary_unary("/any.Service/Any")(LARGE, timeout=40))
    check("mock: a stream of answers is one", [b""], list(channel.unary_stream("/any.Service/Any")(b"", timeout=20)))
    check("mock: a stream of requests", b"", channel.stream_unary("/any.Service/Any")(iter([b"a", b"b"]), timeout=20))
    answer, call = channel.unary_unary("/any.Service/Any").with_call(b"", timeout=20)
    check("mock: its status is OK", grpc.StatusCode.OK, call.code())
with Mock("--fail", "100%") as mock, grpc.insecure_channel(mock) as channel:
    try:
        channel.unary_unary("/any.Service/Any")(b"", timeout=20)
    except grpc.RpcError as error:
        check("mock: a failure says so", ("UNAVAILABLE", "failed on purpose"), (error.code().name, error.details()))
with Mock("--fail", "40%", "--seed", "7") as one, Mock("--fail", "40%", "--seed", "7") as other:
    fates = asked(one, 30)
    check("mock: some fail and some do not", {"no error", "UNAVAILABLE"}, set(fates))
    check("mock: the same fates by seed", fates, asked(other, 30))
with Mock("--fail", "100%", "--fail-with", "reset") as mock:
    check("mock: a reset is UNAVAILABLE or INTERNAL to the client", True, set(asked(mock, 3)) <= {"UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"})
with Mock("--latency", "p50=3s,p99=3s") as mock:
    check("mock: slower than the deadline", ["DEADLINE_EXCEEDED"], asked(mock, 1, timeout=0.5))
with Mock("--fail", "30%", "--seed", "3") as mock, Proxy("--to", f"h2c://{mock}") as between, grpc.insecure_channel(between.address) as channel:
    call = channel.unary_unary("/any.Service/Any")
    again = [code(lambda: call(b"", timeout=20, metadata=[("idempotency-key", f"k-{n}")])) for n in range(20)]
    check("mock: failures are hidden by retries where calls may be repeated", ["no error"] * 20, again)
end()
