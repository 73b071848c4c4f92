"""Runs the ```console blocks of a page against a fresh cluster and compares what comes out.

usage: docs.py BUTTRESS PAGE...      (from the root of the repository)

Addresses on the page are those of its author's cluster: the first block with `buttress dev` says which, and they are
replaced by this run's. Numbers, digests and who leads differ from run to run and are not compared; "…" on the page stands
for anything. Blocks that start processes of their own (dev, demo, serve), and the page from "## Break it" on, are not run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time


def plain(text):
    text = re.sub(r"sha256:[0-9a-f]+", "DIGEST", text)
    text = re.sub(r"node-\d", "NODE", text)
    text = re.sub(r"\b(leader|follower) +", "ROLE ", text)
    text = re.sub(r"dev-[0-9a-f]{8}", "CLUSTER", text)
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def same(wanted, got):
    pattern = ".*".join(re.escape(part) for part in plain(wanted).split("…"))
    return re.fullmatch(pattern, plain(got), re.S) is not None


def blocks(page):
    text = open(page).read().split("## Break it")[0]
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        steps = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append([line[2:], []])
            else:
                steps[-1][1].append(line)
        yield [(command, "\n".join(lines)) for command, lines in steps]


def addresses(page):
    rows = re.findall(r"^node-\d +http://(\S+) +(\S+) +(\S+) +(\S+)$", open(page).read(), re.M)
    return [address for row in rows[:3] for address in row]


def main():
    buttress, pages = os.path.abspath(sys.argv[1]), sys.argv[2:]
    failed = ran = 0
    for page in pages:
        with tempfile.TemporaryDirectory() as bin_dir:
            os.symlink(buttress, os.path.join(bin_dir, "buttress"))
            cluster = subprocess.Popen([buttress, "dev", "--output", "json"], stdout=subprocess.PIPE, text=True)
            try:
                nodes = json.loads(cluster.stdout.readline())["nodes"]
                here = [node[edge] for node in nodes for edge in ("http", "kafka", "mqtt", "etcd")]
                swap = dict(zip(addresses(page), here))
                swap.update({f"-p {old.split(':')[1]}": f"-p {new.split(':')[1]}" for old, new in list(swap.items())})
                env = dict(os.environ, PATH=bin_dir + os.pathsep + os.environ["PATH"])
                env["BUTTRESS_SERVER"] = f"http://{nodes[0]['http']}"
                for block in blocks(page):
                    if re.match(r"buttress (dev|demo|serve)\b", block[0][0]):
                        continue
                    for command, wanted in block:
                        for old, new in swap.items():
                            command, wanted = command.replace(old, new), wanted.replace(old, new)
                        if command.startswith("export "):
                            continue
                        deadline = time.monotonic() + 5
                        while True:
                            run = subprocess.run(command, shell=True, env=env, text=True, timeout=60,
                                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                            # What a function gives comes a moment after its input, what a leader knows one after its election.
                            reads = command.startswith(("buttress consume", "buttress cluster status"))
                            if same(wanted, run.stdout) or not reads or time.monotonic() > deadline:
                                break
                            time.sleep(0.2)
                        ran += 1
                        if same(wanted, run.stdout):
                            print("ok  ", command[:100])
                        else:
                            failed += 1
                            print(f"FAIL {command}\n--- the page says\n{wanted}\n--- it is\n{run.stdout}")
            finally:
                cluster.terminate()
                cluster.wait()
    print(f"{ran} commands, {failed} differ")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
