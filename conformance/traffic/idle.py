#!/usr/bin/env python3
"""How much memory ten thousand idle connections cost `buttress proxy`, in clear and with TLS.

usage: BUTTRESS_BINARY=target/release/buttress conformance/traffic/idle.py [CONNECTIONS]

Each connection has asked once, so it has been through everything, and then says nothing.
"""

import json
import pathlib
import resource
import socket
import ssl
import sys

from common import Mock, Proxy, certificates

count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
at = certificates()
trust = ssl.create_default_context(cafile=at("ca.pem"))
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def rss_kib(proxy):
    status = pathlib.Path(f"/proc/{proxy.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def connection(proxy, secure):
    stream = socket.create_connection((proxy.host, proxy.port))
    if secure:
        stream = trust.wrap_socket(stream, server_hostname="localhost")
    stream.sendall(ASK)
    answer = stream.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"it was answered with {answer}")
    return stream


with Mock() as to:
    for name, more in [("clear", []), ("tls", ["--tls-cert", at("server.pem"), "--tls-key", at("server.key")])]:
        with Proxy("--to", to, "--threads", "1", *more) as proxy:
            connection(proxy, bool(more)).close()
            before = rss_kib(proxy)
            held = [connection(proxy, bool(more)) for _ in range(count)]
            after = rss_kib(proxy)
            open_now = proxy.metric("buttress_traffic_connections ")
            # Those that have been idle for 75 s are closed: on a slow machine the first go before the last has come.
            each = (after - before) / open_now
            print(json.dumps({"way": name, "open": open_now, "before_kib": before, "after_kib": after, "kib_each": round(each, 2)}), flush=True)
            for stream in held:
                stream.close()
