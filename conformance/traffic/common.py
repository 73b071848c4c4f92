"""What the steps of `buttress proxy` share: proxies, an upstream that answers in every way, certificates."""

import hashlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "python"))

BINARY = os.environ["BUTTRESS_BINARY"]
WORK = tempfile.TemporaryDirectory(prefix="buttress-traffic-")
WORK_DIR = pathlib.Path(WORK.name)
# Nothing here takes that long unless it hangs.
SECONDS_MAX = 60


class Proxy:
    """A proxy of its own; `url` is where it listens, `admin` where its page is."""

    def __init__(self, *arguments):
        command = [BINARY, "proxy", "--output", "json", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy does not come up: {arguments}")
        try:
            said = json.loads(line)
            self.address, self.admin, self.tcp = said["listen"], said["admin"], [one["listen"] for one in said["tcp"]]
            self.host, port = self.address.rsplit(":", 1)
            self.port = int(port)
        except Exception:
            # Nobody else stops it, and whoever reads what this writes would wait for it.
            self.process.kill()
            raise

    def metrics(self):
        return run("curl", "-s", f"http://{self.admin}/metrics").out

    def metric(self, begin):
        """The value of the first line that begins so."""
        lines = (line for line in self.metrics().splitlines() if line.startswith(begin))
        return float(next(lines, "nothing nan").rsplit(" ", 1)[1])

    def hangup(self):
        self.process.send_signal(signal.SIGHUP)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Done:
    def __init__(self, done):
        self.code, self.bytes = done.returncode, done.stdout
        self.out, self.err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def run(*command, input=b""):
    return Done(subprocess.run(command, input=input, capture_output=True, timeout=SECONDS_MAX))


def version(*command):
    """The first word with a digit of what a command says about itself."""
    said = run(*command)
    return next(word.strip(",") for word in (said.out + said.err).split() if any(c.isdigit() for c in word))


def eventually(condition):
    end = time.monotonic() + SECONDS_MAX
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


class Handler(http.server.BaseHTTPRequestHandler):
    """An upstream: what it was asked, sums of bodies, ranges, chunks, early hints."""

    protocol_version = "HTTP/1.1"
    PATTERN = bytes(range(251)) * 4200

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, data, status=200, **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        body = self.body()
        if self.path == "/asked":
            fields = {name.lower(): value for name, value in self.headers.items()}
            return self.reply(json.dumps({"method": self.command, "path": self.path, "fields": fields}).encode())
        if self.path == "/sum":
            return self.reply(f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode())
        if self.path == "/range":
            if not (asked := self.headers.get("Range", "").removeprefix("bytes=")):
                return self.reply(self.PATTERN, Accept_Ranges="bytes")
            first, last = (int(number) for number in asked.split("-"))
            where = f"bytes {first}-{last}/{len(self.PATTERN)}"
            return self.reply(self.PATTERN[first : last + 1], 206, Content_Range=where)
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(self.PATTERN), 100_000):
                piece = self.PATTERN[at : at + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            return self.wfile.write(b"0\r\n\r\n")
        if self.path == "/early":
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
            return self.reply(b"late")
        if self.path == "/none":
            self.send_response(204)
            return self.end_headers()
        return self.reply(b"hello")

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        """A proxy that closes a kept connection is no error."""


class Mock:
    """`buttress mock`, for more requests than Python answers."""

    def __init__(self, *arguments):
        command = [BINARY, "mock", "--output", "json", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
        self.address = json.loads(self.process.stdout.readline())["listen"]

    def __enter__(self):
        return self.address

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(SECONDS_MAX)


def upstream():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def certificates():
    """An authority, a certificate for localhost, one of a client, one that has expired, one of somebody else."""

    def openssl(*words):
        done = run("openssl", *words)
        if done.code:
            raise RuntimeError(f"openssl {words}: {done.err}")

    def at(name):
        return str(WORK_DIR / name)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for ca in ["ca", "other-ca"]:
        openssl("req", "-x509", *curve, "-keyout", at(f"{ca}.key"), "-out", at(f"{ca}.pem"), "-subj", f"/CN={ca}", "-days", "30")

    def sign(name, ca, names, days="30"):
        openssl("req", *curve, "-keyout", at(f"{name}.key"), "-out", at(f"{name}.csr"), "-subj", f"/CN={name}")
        (WORK_DIR / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        signed = ["-CA", at(f"{ca}.pem"), "-CAkey", at(f"{ca}.key"), "-CAcreateserial", "-extfile", at(f"{name}.ext")]
        openssl("x509", "-req", "-in", at(f"{name}.csr"), "-out", at(f"{name}.pem"), *signed, "-days", days)

    sign("server", "ca", "DNS:localhost,IP:127.0.0.1")
    sign("second", "ca", "DNS:*.second.example")
    sign("client", "ca", "URI:spiffe://example.org/curl,DNS:curl.example")
    sign("stranger", "other-ca", "DNS:stranger.example")
    sign("foreign", "other-ca", "DNS:localhost,IP:127.0.0.1")
    return at
