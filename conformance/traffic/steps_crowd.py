"""Ten thousand idle connections of clients, in clear and within TLS: others are served, memory is bounded, and what is held goes with them."""

import pathlib
import resource
import socket
import ssl
import sys

from common import Mock, Proxy, certificates, eventually
from checks import begin, check, end

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
COUNT = 10_000 if HARD == resource.RLIM_INFINITY else min(10_000, HARD - 500)
# What one costs at most: measured are 13 KiB in clear and 20 within TLS, where half have only come and some have begun a head.
KIB_EACH_MAX = 32
resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 500, HARD))
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

begin("crowd", str(COUNT))
at = certificates()
trust = ssl.create_default_context(cafile=at("ca.pem"))


def rss_kib(proxy):
    status = pathlib.Path(f"/proc/{proxy.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def connection(proxy, secure):
    stream = socket.create_connection((proxy.host, proxy.port))
    return trust.wrap_socket(stream, server_hostname="localhost") if secure else stream


def ask(stream):
    stream.sendall(ASK)
    return stream.recv(4096)[:12]


with Mock() as to:
    for name, more, count in [("clear", [], COUNT), ("TLS", ["--tls-cert", at("server.pem"), "--tls-key", at("server.key")], COUNT // 5)]:
        with Proxy("--to", to, "--threads", "1", *more) as proxy:
            first = connection(proxy, bool(more))
            check(f"{name}: one is served", b"HTTP/1.1 200", ask(first))
            before, held, answers = rss_kib(proxy), [], set()
            for number in range(count):
                held.append(connection(proxy, bool(more)))
                # Every second one has asked once, the others only came; some stopped in the middle of a head.
                if number % 2:
                    answers.add(ask(held[-1]))
                elif number % 10 == 0:
                    held[-1].sendall(b"GET / HTTP/1.1\r\nHo")
            check(f"{name}: all who asked were answered", {b"HTTP/1.1 200"}, answers)
            # Heads that do not come whole end after 10 s, idle ones after 75: on a slow machine some are gone before the last has come.
            now = proxy.metric("buttress_traffic_connections ")
            check(f"{name}: they are held", True, now >= count * 0.5)
            each = (rss_kib(proxy) - before) / count
            check(f"{name}: one costs less than {KIB_EACH_MAX} KiB", True, each < KIB_EACH_MAX)
            print(f"{name}: {count} came, {now:.0f} are held, {each:.1f} KiB each", file=sys.stderr)
            check(f"{name}: somebody who was there before is served", b"HTTP/1.1 200", ask(first))
            served = set()
            for _ in range(200):
                with connection(proxy, bool(more)) as other:
                    served.add(ask(other))
            check(f"{name}: so is whoever comes now", {b"HTTP/1.1 200"}, served)
            for stream in held:
                stream.close()
            first.close()
            check(f"{name}: nothing is held for who has left", 0.0, eventually(lambda: proxy.metric("buttress_traffic_connections ") == 0.0) and 0.0)
end()
