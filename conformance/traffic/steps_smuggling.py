"""Requests that hide one in another, sent as they are to `buttress proxy`, HAProxy and nginx; what each made of them.

The bytes are those of the proxy's own tests (`crates/gateway/tests/it/corpus.rs`). The table stands in `smuggling.md`; `--record` writes it
anew. Buttress must do what the table says; the others are compared where they are of the version that the table names.
"""

import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

from common import WORK_DIR, Proxy, run
from checks import begin, check, end

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "smuggling.md"
BEGIN, END = "<!-- written by steps_smuggling.py --record -->\n", "<!-- end -->\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def corpus():
    text = (HERE / "../../crates/gateway/tests/it/corpus.rs").read_text()
    refused = text[text.index("const REFUSED") : text.index("const BROKEN_BODIES")]
    bodies = text[text.index("const BROKEN_BODIES") : text.index("const HIDDEN")]
    literal = lambda found: found.encode().decode("unicode_escape").encode("latin-1")
    for name, sent in re.findall(r'\(\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)",\s*\d+,?\s*\)', refused):
        yield name, literal(sent)
    for name, sent in re.findall(r'\(\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)"\s*\)', bodies):
        yield name, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + literal(sent)


class Recorder:
    """An upstream that keeps what it reads and answers 200 to whatever has a head."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.seen, self.lock = b"", threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            threading.Thread(target=self.serve, args=[self.listener.accept()[0]], daemon=True).start()

    def serve(self, stream):
        own = b""
        try:
            while piece := stream.recv(65536):
                own += piece
                with self.lock:
                    self.seen += piece
                if b"\r\n\r\n" in own:
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    # What is still coming is kept, but not waited for.
                    stream.settimeout(0.2)
                    try:
                        while piece := stream.recv(65536):
                            with self.lock:
                                self.seen += piece
                    except TimeoutError:
                        pass
                    return stream.close()
        except OSError:
            pass


def answer(host, port, sent):
    """The statuses of all answers."""
    with socket.create_connection((host, port), 10) as stream:
        got = b""
        try:
            stream.sendall(sent + HIDDEN)
            stream.settimeout(3)
            while piece := stream.recv(65536):
                got += piece
        except (TimeoutError, ConnectionError):
            pass
    return re.findall(rb"HTTP/1\.[01] (\d+)", got)


def made_of(recorder, host, port, sent):
    recorder.seen = b""
    statuses = answer(host, port, sent)
    # The upstream's thread may be a moment behind.
    for _ in range(20):
        if recorder.seen:
            break
        time.sleep(0.01)
    time.sleep(0.02)
    said = statuses[0].decode() if statuses else "closed"
    # What is before the hidden request in what reached the upstream.
    if b"GET /hidden" in recorder.seen:
        return f"{said}, both passed" if recorder.seen.count(b"HTTP/1.") > 1 else f"{said}, the hidden one passed"
    return f"{said}, passed" if recorder.seen else said


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def start(command, port):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    raise RuntimeError(f"{command} does not come up")


def versions():
    haproxy = re.search(r"version (\d+\.\d+)", run("haproxy", "-v").out)[1]
    nginx = re.search(r"nginx/(\d+\.\d+)", run("nginx", "-v").err)[1]
    return {"HAProxy": haproxy, "nginx": nginx}


def rows():
    recorder = Recorder()
    haproxy, nginx = free_port(), free_port()
    (WORK_DIR / "haproxy.cfg").write_text(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 2s\n  timeout server 2s\n  timeout http-request 2s\n"
        f"frontend f\n  bind 127.0.0.1:{haproxy}\n  default_backend b\nbackend b\n  server s {recorder.address}\n"
    )
    (WORK_DIR / "nginx.conf").write_text(
        f"daemon off; pid {WORK_DIR}/nginx.pid; error_log /dev/null; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {WORK_DIR}/body; proxy_temp_path {WORK_DIR}/proxy; fastcgi_temp_path {WORK_DIR}/f;\n"
        f"uwsgi_temp_path {WORK_DIR}/u; scgi_temp_path {WORK_DIR}/s; client_header_timeout 2s; client_body_timeout 2s; send_timeout 2s;\n"
        f"server {{ listen 127.0.0.1:{nginx}; location / {{ proxy_pass http://{recorder.address}; proxy_http_version 1.1; proxy_request_buffering off; }} }} }}\n"
    )
    others = [
        start(["haproxy", "-q", "-f", str(WORK_DIR / "haproxy.cfg")], haproxy),
        start(["nginx", "-p", str(WORK_DIR), "-c", str(WORK_DIR / "nginx.conf")], nginx),
    ]
    try:
        with Proxy("--to", recorder.address) as proxy:
            for name, sent in corpus():
                ours = made_of(recorder, proxy.host, proxy.port, sent)
                yield name, ours, made_of(recorder, "127.0.0.1", haproxy, sent), made_of(recorder, "127.0.0.1", nginx, sent)
    finally:
        for other in others:
            other.terminate()
            other.wait(30)


def record(found, known):
    lines = [f"| RFC 9112 | Buttress | HAProxy {known['HAProxy']} | nginx {known['nginx']} |\n|---|---|---|---|\n"]
    lines += [f"| {' | '.join(row)} |\n" for row in found]
    before, rest = TABLE.read_text().split(BEGIN)
    TABLE.write_text(before + BEGIN + "".join(lines) + END + rest.split(END)[1])


known = versions()
if sys.argv[1:] == ["--record"]:
    record(list(rows()), known)
    sys.exit()
begin("smuggling", ", ".join(f"{name} {number}" for name, number in known.items()))
table = TABLE.read_text().split(BEGIN)[1].split(END)[0].splitlines()
recorded = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in table[2:])}
same = [f"{name} {number}" in table[0] for name, number in known.items()]
count = 0
for name, ours, haproxy, nginx in rows():
    count += 1
    was = recorded.get(name, ["not in smuggling.md"] * 3)
    check(f"{name}: Buttress", was[0], ours)
    for proxy, is_same, wanted, got in zip(known, same, was[1:], [haproxy, nginx]):
        if is_same:
            check(f"{name}: {proxy}", wanted, got)
check("the table has every case and no other", len(recorded), count)
end()
