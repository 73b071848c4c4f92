#!/usr/bin/env python3
"""A service that knows nothing of proxies: stock by article, and every so often it cannot say.

    python3 service.py --port 3000 --fail-every 3
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen = 0
lock = threading.Lock()


class Stock(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        global seen
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        with lock:
            seen += 1
            number = seen
        every = self.server.fail_every
        if every and number % every == 0:
            return self.send(503, {"error": "the database did not answer"})
        # What whoever called has left, in milliseconds: a service that takes longer works for nobody.
        left = self.headers.get("buttress-timeout-ms")
        self.send(200, {"article": self.path.rsplit("/", 1)[-1], "left": 7, "request": number, "time_left_ms": left and int(left)})

    do_GET = do_POST = answer

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # the sidecar ended and took its kept connections along

    def log_message(self, *_):
        pass


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--port", type=int, default=3000, help="0 takes a free one")
    arguments.add_argument("--fail-every", type=int, default=0, metavar="N", help="every Nth request is answered 503")
    told = arguments.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", told.port), Stock)
    server.fail_every = told.fail_every
    print(f"service: 127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
