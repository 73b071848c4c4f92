#!/usr/bin/env python3
"""The files of ops/ against a proxy that runs: conformance/ops.py target/release/buttress

Prometheus' own tool reads the rules, runs their tests and lints the metrics page; and every name that a rule or the
dashboard asks for has to be on the page. Needs promtool (Debian: prometheus).
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
OPS = HERE.parent / "ops"


def promtool(*args, given=None):
    done = subprocess.run(["promtool", *args], input=given, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"promtool {' '.join(args)} failed:\n{done.stdout}{done.stderr}")


def serving(command):
    """Starts what says a line of JSON once it serves."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, json.loads(process.stdout.readline())


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asked():
    """Names that rules and dashboard ask for, and who does."""
    expressions = []
    dashboard = json.loads((OPS / "grafana/traffic.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expressions.append((f"panel \"{panel['title']}\"", target["expr"]))
    for variable in dashboard["templating"]["list"]:
        expressions.append((f"variable {variable['name']}", variable.get("definition", "")))
    expressions.append(("alerts.yml", (OPS / "prometheus/alerts.yml").read_text()))
    for who, text in expressions:
        for name in re.findall(r"(?<![\w:])(?:buttress_[a-z_]+|process_[a-z_]+)\b(?!:)", text):
            yield who, name


def main(binary):
    promtool("check", "rules", str(OPS / "prometheus/alerts.yml"))
    promtool("test", "rules", str(OPS / "prometheus/alerts_test.yml"))
    print("ok: the rules are read, and their tests pass")
    with tempfile.TemporaryDirectory() as folder:
        mock, told = serving([binary, "mock", "--fail", "50%", "--seed", "1", "--output", "json"])
        log = pathlib.Path(folder) / "access.log"
        proxy, addresses = serving(
            [binary, "proxy", "--to", told["listen"], "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--output", "json"]
            + ["--access-log", str(log), "--otlp", "http://127.0.0.1:9", "--otlp-logs", "--drain", "1s"]
        )
        try:
            statuses = [get(f"http://{addresses['listen']}/orders/{n}")[0] for n in range(50)]
            page = get(f"http://{addresses['admin']}/metrics")[1]
        finally:
            for process in (proxy, mock):
                process.terminate()
                process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    promtool("check", "metrics", given=page)
    print(f"ok: promtool finds nothing to say about {len(page.splitlines())} lines of metrics")
    known = set(re.findall(r"^# TYPE (\S+)", page, re.M))
    known |= {f"{name}{end}" for name in known for end in ("_bucket", "_sum", "_count")}
    missing = sorted({f"{name} ({who})" for who, name in asked() if name not in known})
    if missing:
        sys.exit("not on the page: " + ", ".join(missing))
    print(f"ok: all {len({name for _, name in asked()})} names that the rules and the dashboard ask for are on the page")
    # Each core writes its own chunks, so lines are not quite in order.
    if sorted(line["status"] for line in lines) != sorted(statuses):
        sys.exit(f"the access log has {len(lines)} lines, and not the statuses of the {len(statuses)} answers")
    print(f"ok: the access log has a line for each of {len(lines)} requests, with its status")


if __name__ == "__main__":
    main(sys.argv[1])
