#!/usr/bin/env python3
"""Calls the service through its sidecar, and says what became of the calls. There is no policy in here, and no library.

    python3 client.py --to 127.0.0.1:8080 --calls 30
"""

import argparse
import collections
import http.client
import json
import sys
import uuid

# What one call may take, all attempts of the sidecar together.
DEADLINE_MS = 2000


def ask(to, method, path, fields):
    connection = http.client.HTTPConnection(to, timeout=DEADLINE_MS / 1000 + 1)
    try:
        connection.request(method, path, headers={"buttress-timeout-ms": str(DEADLINE_MS), **fields})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--to", default="127.0.0.1:8080", help="where the sidecar listens")
    arguments.add_argument("--calls", type=int, default=30)
    arguments.add_argument("--post", action="store_true", help="POST, which is not sent twice")
    arguments.add_argument("--key", action="store_true", help="with an Idempotency-Key, so that it may be")
    told = arguments.parse_args()
    good, failed, last = 0, collections.Counter(), None
    for number in range(told.calls):
        fields = {"idempotency-key": str(uuid.uuid4())} if told.key else {}
        status, headers, body = ask(told.to, "POST" if told.post else "GET", f"/stock/{number}", fields)
        if status == 200:
            good += 1
            continue
        # The sidecar's own answers carry a code; the service's go through as they are.
        code = headers.get("buttress-code")
        failed[code or f"{status} of the service"] += 1
        last = headers.get("x-request-id")
        if code:
            problem = json.loads(body)
            reason = f"{problem['detail']}; what would pass: {problem.get('would_pass', 'nothing')}"
    print(f"{told.calls} calls: {good} answered well, {failed.total()} failed")
    for code, count in failed.items():
        print(f"  {count} {code}")
    if any(code.startswith("BT") for code in failed):
        print(f"the last reason: {reason}")
    if last:
        print(f"next: buttress explain {last}")
    return 0 if not failed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"error: the sidecar cannot be reached: {error}\n\nhint: start it first: buttress proxy --to 127.0.0.1:3000")
