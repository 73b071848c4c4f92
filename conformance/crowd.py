#!/usr/bin/env python3
"""Thousands of idle connections on the etcd and the Kafka edge: what each costs, and whether others are served meanwhile.

usage: crowd.py --pid PID [--etcd HOST:PORT] [--kafka HOST:PORT] [--count 10000] [--limit 12288]

Each connection speaks once, so that the server has set it up whole, and then does nothing. With --limit the crowd goes on
growing until connections are refused. Both processes need as many open files as there are connections: ulimit -n.
"""
import argparse, json, resource, socket, struct, sys, time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def speak_etcd(sock):
    sock.sendall(PREFACE)
    return bool(sock.recv(9))


def speak_kafka(sock):
    sock.sendall(VERSIONS)
    return bool(sock.recv(4))


def join(to, speak):
    """A connection that the server has answered; None where it was closed instead."""
    sock = socket.create_connection(to, timeout=30)
    try:
        return sock if speak(sock) else None
    except ConnectionError:
        return None


def crowd(name, to, speak, args):
    before = resident(args.pid)
    kept = []
    while len(kept) < args.count:
        sock = join(to, speak)
        if sock is None:
            sys.exit(f"{name}: connection {len(kept) + 1} was refused")
        kept.append(sock)
    time.sleep(1)
    after = resident(args.pid)
    began = time.monotonic()
    fresh = join(to, speak)
    answered = time.monotonic() - began
    result = {"edge": name, "idle": args.count, "kib_per_connection": round((after - before) / args.count, 2),
              "another_is_served": fresh is not None, "after_ms": round(answered * 1000, 1)}
    if args.limit:
        while len(kept) <= args.limit:
            sock = join(to, speak)
            if sock is None:
                break
            kept.append(sock)
        result["refused_at"] = len(kept) + 1
    for sock in kept:
        sock.close()
    time.sleep(2)
    again = join(to, speak)
    result["served_afterwards"] = again is not None
    result["kib_after"] = resident(args.pid) - before
    print(json.dumps(result), flush=True)
    return result["another_is_served"] and result["served_afterwards"]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--etcd")
    parser.add_argument("--kafka")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--limit", type=int, default=0)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [crowd(name, address(to), speak, args)
            for name, to, speak in [("etcd", args.etcd, speak_etcd), ("kafka", args.kafka, speak_kafka)] if to]
    sys.exit(0 if all(held) else 1)


main()
