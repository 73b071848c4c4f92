#!/usr/bin/env python3
"""How much memory ten thousand idle connections cost `buttress proxy`, in clear and with TLS, and what a client beside them notices.

usage: BUTTRESS_BINARY=target/release/buttress conformance/traffic/idle.py [CONNECTIONS]

Each connection has asked once, so it has been through everything, and then says nothing. At the end every hundredth of them asks
again. The client beside them asks one request after the other on a connection of its own.
"""

import json
import pathlib
import resource
import socket
import ssl
import sys
import time

from common import Mock, Proxy, certificates

count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
at = certificates()
trust = ssl.create_default_context(cafile=at("ca.pem"))
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def rss_kib(proxy):
    status = pathlib.Path(f"/proc/{proxy.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def ask(stream):
    stream.sendall(ASK)
    answer = stream.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"it was answered with {answer}")


def connection(proxy, secure):
    stream = socket.create_connection((proxy.host, proxy.port))
    if secure:
        stream = trust.wrap_socket(stream, server_hostname="localhost")
    ask(stream)
    return stream


def latency_ms(proxy, secure, requests=4000):
    """Median and 99th percentile of a client that asks one request after the other."""
    stream, took = connection(proxy, secure), []
    for _ in range(requests):
        begin = time.perf_counter()
        ask(stream)
        took.append((time.perf_counter() - begin) * 1000)
    stream.close()
    took.sort()
    return {"p50_ms": round(took[requests // 2], 3), "p99_ms": round(took[requests * 99 // 100], 3)}


with Mock() as to:
    for name, more in [("clear", []), ("tls", ["--tls-cert", at("server.pem"), "--tls-key", at("server.key")])]:
        with Proxy("--to", to, "--threads", "1", *more) as proxy:
            alone = latency_ms(proxy, bool(more))
            before = rss_kib(proxy)
            held = [connection(proxy, bool(more)) for _ in range(count)]
            after = rss_kib(proxy)
            open_now = proxy.metric("buttress_traffic_connections ")
            beside = latency_ms(proxy, bool(more))
            # Those that have been idle for 75 s are closed: on a slow machine the first go before the last has come.
            for stream in held[-1 : -int(open_now) : -100]:
                ask(stream)
            figures = {
                "way": name,
                "open": open_now,
                "before_kib": before,
                "after_kib": after,
                "kib_each": round((after - before) / open_now, 2),
                "alone": alone,
                "beside": beside,
            }
            print(json.dumps(figures), flush=True)
            for stream in held:
                stream.close()
