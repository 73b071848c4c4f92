"""How a step is told: one JSON object per line on the standard output, as lib.sh describes it."""

import json
import sys
import time
import traceback

count = 0


def begin(client, version):
    print(json.dumps({"client": client, "version": version}), flush=True)


def end():
    print(json.dumps({"end": count}), flush=True)


def check(name, wanted, got):
    """Tells whether what came back is what must come back; values are compared, and shown as text."""
    global count
    count += 1
    if wanted == got:
        print(json.dumps({"check": name, "ok": True}), flush=True)
    else:
        print(json.dumps({"check": name, "ok": False, "wanted": str(wanted), "got": str(got)[:2000]}), flush=True)
    return wanted == got


def step(name, wanted, action):
    """Runs one step; an exception counts as what came back, and the run goes on."""
    try:
        got = action()
    except Exception as error:  # whatever a client throws is a finding, not the end of the run
        traceback.print_exc(file=sys.stderr)
        got = raised(error)
    return check(name, wanted, got)


def raised(error):
    return f"{type(error).__name__}: {error}"


def error_of(action, part):
    """The part if the exception that the action raises holds it, otherwise what was raised or returned."""
    try:
        return f"no error, but {action()!r}"
    except Exception as error:
        text = raised(error)
        return part if part in text else text


def eventually(condition, seconds=10.0):
    """Waits until the condition is true; what it returned last."""
    end = time.monotonic() + seconds
    while True:
        got = condition()
        if got or time.monotonic() > end:
            return got
        time.sleep(0.05)
