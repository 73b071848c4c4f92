"""A name that flaps: the proxy has a hosts file of its own, in which addresses come, go and change while requests run."""

import http.client
import json
import random
import threading
import time

import common
from common import BINARY, SECONDS_MAX, WORK_DIR, Handler, Proxy, Server, eventually, run
from checks import begin, check, end

begin("hosts", "of a mount namespace")
hosts = WORK_DIR / "hosts"
A, B = "127.0.0.1", "127.0.0.2"


class Upstream(Handler):
    def do_GET(self):
        self.reply(self.server.server_address[0].encode())


def upstreams():
    """Two upstreams at one port of two addresses."""
    for _ in range(64):
        first = Server((A, 0), Upstream)
        try:
            return first, Server((B, first.server_address[1]), Upstream)
        except OSError:
            first.server_close()
    raise RuntimeError("there is no port that is free at both addresses")


def resolve(*addresses):
    """In place, because what is mounted is this file and not its name."""
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} shop.test\n" for address in addresses))


servers = upstreams()
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
port = servers[0].server_address[1]
resolve(A)
wrapper = WORK_DIR / "buttress"
wrapper.write_text(f"""#!/bin/sh
exec unshare --mount sh -c 'mount --bind {hosts} /etc/hosts && exec "$0" "$@"' {BINARY} "$@"
""")
wrapper.chmod(0o755)
common.BINARY = str(wrapper)
routes = WORK_DIR / "routes.yaml"
routes.write_text(f"""kind: Route
name: all-addresses
spec:
  match: [{{path: /all}}]
  to: [{{dns: "shop.test:{port}"}}]
---
kind: Route
name: one-name
spec:
  match: [{{path: /one}}]
  to: [{{endpoints: "shop.test:{port}"}}]
""")


def asked(proxy, path):
    connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=SECONDS_MAX)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def during(proxy, path, seconds, change=lambda: None):
    """What all requests of a while were answered, with a change every third of a second."""
    seen, until, due = [], time.monotonic() + seconds, 0
    while time.monotonic() < until:
        if time.monotonic() > due:
            change()
            due = time.monotonic() + 0.3
        seen.append(asked(proxy, path))
        time.sleep(0.01)
    return seen


def endpoints(proxy):
    """Of the route that goes to all addresses of the name."""
    seen = json.loads(run("curl", "-s", f"http://{proxy.admin}/v1/traffic").out)
    route = next(one for one in seen["routes"] if one["route"] == "all-addresses")
    return sorted(one["endpoint"] for backend in route["backends"] for one in backend["endpoints"])


with Proxy("--config", str(routes)) as proxy:
    check("a name is followed", (200, A), asked(proxy, "/all"))
    check("so is the name of an endpoint", (200, A), asked(proxy, "/one"))
    turn = random.Random(1)
    flap = lambda: resolve(*turn.choice([[A], [], [B], [A, B], []]))
    seen = during(proxy, "/all", 20, flap)
    check("a name that flaps costs no request", {200}, {status for status, _ in seen})
    check("a request to an endpoint whose name flaps is answered, well or with what is wrong", True, {status for status, _ in during(proxy, "/one", 5, flap)} <= {200, 502, 503})
    resolve(A)
    check("and is followed when it is there again", (200, A), eventually(lambda: asked(proxy, "/one") == (200, A)) and (200, A))
    # Four look-ups of five seconds bring nothing.
    resolve()
    seen = during(proxy, "/all", 21)
    check("while DNS knows nothing, the last addresses stay", {200}, {status for status, _ in seen})
    resolve(B)
    # By the proxy's own list: a balancer may have chosen one of two a hundred times.
    check("a name that moves is followed, and the old address goes", [f"{B}:{port}"], eventually(lambda: endpoints(proxy) == [f"{B}:{port}"]) and endpoints(proxy))
    check("and requests go to the new one", {(200, B)}, set(during(proxy, "/all", 1)))
    servers[0].shutdown()
    servers[0].server_close()
    check("nobody is sent there any more", {(200, B)}, set(during(proxy, "/all", 3)))
    check("it still runs", None, proxy.process.poll())
end()
