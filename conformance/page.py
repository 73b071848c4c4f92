#!/usr/bin/env python3
"""Presses every button of the demo's live page in a real browser and looks at what it shows.

usage: page.py BUTTRESS

Starts `BUTTRESS demo --no-chaos`, opens its page in Chromium (headless, driven through chromedriver's WebDriver API with
nothing but the standard library), and checks that live values move, that each button does what it says, that the page fits
its window, and that the browser's console has no error. Every wait has an end, and a failure says what was expected.

Environment:
  PAGE_SCREENSHOT     where to save a picture of the page in mid-run
  PAGE_REPORT_SCREENSHOT  where to save a picture of the final report
  CHROMEDRIVER, CHROMIUM  other programs than those on the PATH

Needs Debian's chromium and chromium-driver.
"""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

DURATION_S = 40
"""The fleet plays this long; all buttons have to be done within it."""
START_WAIT_S = 90
"""From the demo's start to its first verdicts: three nodes start and a component is compiled."""
ELEMENT_KEY = "element-6066-11e4-a52e-4f735466cecf"


class Failed(Exception):
    """A check that did not hold; the text says what was expected."""


class Browser:
    """A session of a headless Chromium."""

    def __init__(self, width=1280, height=800, dark=True):
        self.profile = tempfile.mkdtemp(prefix="page-profile-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.session = None
        driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
        if driver is None:
            raise Failed("chromedriver was expected on the PATH: apt-get install chromium chromium-driver")
        self.driver = subprocess.Popen(
            [driver, f"--port={port}", "--silent"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            wait_for("chromedriver to be ready", 20, self._ready)
            options = {
                "args": [
                    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                    "--no-proxy-server", "--hide-scrollbars", f"--user-data-dir={self.profile}",
                    f"--window-size={width},{height}",
                ],
            }
            if os.environ.get("CHROMIUM"):
                options["binary"] = os.environ["CHROMIUM"]
            capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}, timeout_s=60)
            self.session = answer["sessionId"]
            self.resize(width, height)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            self.devtools("Emulation.setEmulatedMedia", features=scheme)
        except BaseException:
            self.close()
            raise

    def _ready(self):
        try:
            return self._ask("GET", "/status")["ready"]
        except (OSError, Failed):
            return False

    def _ask(self, method, path, body=None, timeout_s=20):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise Failed(f"the browser refused {method} {path}: {value['error']}: {value['message'].splitlines()[0]}") from None

    def _in_session(self, method, path, body=None):
        return self._ask(method, f"/session/{self.session}{path}", body)

    def devtools(self, command, **params):
        return self._in_session("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def resize(self, width, height):
        """The page's own size, whatever the window adds to it."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url):
        self._in_session("POST", "/url", {"url": url})

    def run(self, script, *args):
        return self._in_session("POST", "/execute/sync", {"script": script, "args": list(args)})

    def text(self, selector):
        """The text of the first element that fits, or None."""
        return self.run("return document.querySelector(arguments[0])?.textContent ?? null", selector)

    def click(self, selector):
        """As a person clicks: the element has to be there, visible and not covered."""
        element = self._in_session("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT_KEY]
        self._in_session("POST", f"/element/{element}/click", {})

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._in_session("GET", "/screenshot")))

    def console(self):
        """What the console got since the last call."""
        return self._in_session("POST", "/se/log", {"type": "browser"})

    def close(self):
        if self.session is not None:
            try:
                self._in_session("DELETE", "")
            except (OSError, Failed):
                pass
        self.driver.terminate()
        try:
            self.driver.wait(10)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


def wait_for(what, limit_s, condition, describe=None):
    """Asks until the condition gives something; fails after the limit, saying what was expected and what was there."""
    until = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            seen = f"; instead: {describe()}" if describe else ""
            raise Failed(f"expected within {limit_s} s: {what}{seen}")
        time.sleep(0.1)


class Demo:
    """The demo as a process, with what it printed."""

    def __init__(self, program, *args):
        self.lines = []
        self.page = None
        self.process = subprocess.Popen(
            [program, "demo", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            found = re.match(r"page: (http://\S+)", line)
            if found:
                self.page = found.group(1)

    def address(self):
        if self.page is None and self.process.poll() is not None:
            raise Failed(f"the demo was expected to print its page's address, but ended with {self.process.returncode}")
        return self.page

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def number(text):
    digits = re.sub(r"[^0-9]", "", text or "")
    return int(digits) if digits else None


class Page:
    """What the checks read of the page."""

    def __init__(self, browser):
        self.browser = browser

    def nodes(self):
        """Role by name: leader, follower or dead."""
        script = "return Object.fromEntries([...document.querySelectorAll('.node')].map(n => [n.dataset.node, n.dataset.role]))"
        return self.browser.run(script)

    def leader(self):
        return next((name for name, role in self.nodes().items() if role == "leader"), None)

    def term(self):
        """The highest term on a living node's card."""
        text = "return [...document.querySelectorAll('.node:not([data-role=dead]) small')].map(n => n.textContent)"
        return max((number(t.split(",")[0]) or 0 for t in self.browser.run(text)), default=0)

    def generation(self):
        found = re.search(r"generation (\d+)", self.browser.text("#facts") or "")
        return int(found.group(1)) if found else 0

    def count(self, selector):
        return number(self.browser.text(selector).split(" ")[0])

    def press(self, button):
        """Presses a button as soon as it can be pressed, and returns the answer that the page shows."""
        enabled = f"return !document.querySelector('#{button}').disabled"
        reason = lambda: self.browser.text(f"#{button} small")
        wait_for(f"the button '{button}' to be enabled", 15, lambda: self.browser.run(enabled), reason)
        self.browser.run("document.querySelector('#toasts').replaceChildren()")
        self.browser.click(f"#{button}")
        answer = wait_for(f"an answer to '{button}'", 20, lambda: self.browser.text("#toasts .toast"))
        if self.browser.run("return document.querySelector('#toasts .toast').classList.contains('refused')"):
            raise Failed(f"'{button}' was expected to be carried out; instead: {answer}")
        return answer


def check_fit(browser, width, height):
    """Nothing of the page is wider than the window, and on a screen of a talk nothing is below its edge."""
    browser.resize(width, height)
    time.sleep(0.3)
    fit = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth, e.scrollHeight, e.clientHeight]")
    if fit[0] > fit[1]:
        raise Failed(f"the page was expected to be {fit[1]} px wide at {width}x{height}, and is {fit[0]} px wide")
    if width >= 1280 and fit[2] > fit[3]:
        raise Failed(f"the page was expected to show everything at {width}x{height}, and is {fit[2]} px high")


def errors_of(browser, at_end=False):
    """Errors in the console. After the demo's end the refused reconnections are the browser's own notes."""
    errors = [entry for entry in browser.console() if entry["level"] in ("SEVERE", "WARNING")]
    if at_end:
        errors = [entry for entry in errors if "/feed" not in entry["message"]]
    return [entry["message"] for entry in errors]


def check(demo, browser, say):
    page = Page(browser)
    browser.open(wait_for("the demo to print 'page: http://…'", 30, demo.address))
    wait_for("the first verdicts", START_WAIT_S, lambda: (page.count("#verdicts-total") or 0) > 0,
             lambda: f"phase '{browser.text('#phase')}', demo says {demo.lines[-1:]}")

    for selector in ("#readings-total", "#verdicts-total", "#elapsed"):
        before = number(browser.text(selector).split(" ")[0])
        wait_for(f"{selector} to grow beyond {before}", 5,
                 lambda: number(browser.text(selector).split(" ")[0]) > before, lambda: browser.text(selector))
    colors = """const map = document.querySelector('#map'); const c = map.getContext('2d');
                return new Set(new Uint32Array(c.getImageData(0, 0, map.width, map.height).data.buffer)).size"""
    wait_for("the heat map to show at least 10 colours", 10, lambda: browser.run(colors) >= 10, lambda: browser.run(colors))
    say("live values move")

    for size in ((390, 844), (1920, 1080), (1280, 800)):
        check_fit(browser, *size)
    say("the page fits 1920x1080 and 1280x800, and 390 px of width")

    disabled = browser.run("return [document.querySelector('#restart').disabled, document.querySelector('#restart small').textContent]")
    if disabled != [True, "every node is up"]:
        raise Failed(f"'restart' was expected to be disabled because every node is up; instead: {disabled}")

    browser.click("#map")
    machine = browser.text("#machine-name")
    if not re.search(r"\d", machine):
        raise Failed(f"a click on the map was expected to select a machine; instead: '{machine}'")
    page.press("wear-out")
    wait_for(f"{machine} to alert", 20, lambda: "alert" in browser.text("#machine-state"), lambda: browser.text("#machine-state"))
    say(f"worn out: {machine} alerts")

    killed, term = page.leader(), page.term()
    page.press("kill-leader")
    wait_for(f"{killed} to be shown dead", 10, lambda: page.nodes()[killed] == "dead", page.nodes)
    wait_for(f"another leader than {killed} in a higher term than {term}", 20,
             lambda: page.leader() not in (None, killed) and page.term() > term, lambda: (page.nodes(), page.term()))
    verdicts = page.count("#verdicts-total")
    wait_for("verdicts to go on after the failover", 20, lambda: page.count("#verdicts-total") > verdicts)
    say(f"killed: {killed} is dead, {page.leader()} leads term {page.term()} after {term}")

    page.press("restart")
    wait_for(f"{killed} to be alive again", 20, lambda: page.nodes()[killed] in ("follower", "leader"), page.nodes)
    say(f"restarted: {killed} is {page.nodes()[killed]}")

    before = page.generation()
    page.press("swap-model")
    wait_for(f"a generation after {before}", 20, lambda: page.generation() > before, lambda: browser.text("#facts"))
    say(f"swapped: generation {before} to {page.generation()}")

    wait_for("the story of an anomaly", 20, lambda: browser.run("return document.querySelectorAll('#story .step').length") == 5)
    if not re.search(r"telemetry\[\d+\] @ [\d,]+", browser.text("#story")):
        raise Failed(f"the story was expected to name partition and offset; instead: {browser.text('#story')}")
    say("an anomaly's story is told")

    if os.environ.get("PAGE_SCREENSHOT"):
        late = DURATION_S * 0.75
        wait_for(f"the play to be at {late} s", DURATION_S, lambda: float(browser.text("#elapsed").split()[0]) >= late)
        browser.run("document.querySelector('#toasts').replaceChildren()")
        browser.screenshot(os.environ["PAGE_SCREENSHOT"])
    errors = errors_of(browser)
    if errors:
        raise Failed(f"no error was expected in the console; instead: {errors}")
    say("the console has no error")

    wait_for("the final report", DURATION_S + 60, lambda: browser.run("return document.querySelector('#report').open"),
             lambda: f"phase '{browser.text('#phase')}', demo says {demo.lines[-3:]}")
    title = browser.text("#report-title")
    if os.environ.get("PAGE_REPORT_SCREENSHOT"):
        browser.screenshot(os.environ["PAGE_REPORT_SCREENSHOT"])
    if "Every promise held" not in title:
        promises = browser.run("return [...document.querySelectorAll('#report-promises [data-state=broken]')].map(p => p.textContent)")
        raise Failed(f"every promise was expected to be held; instead: '{title}' {promises}")
    say(f"the report is shown: {title}")

    wait_for("the page to say that the demo has ended", 30, lambda: "has ended" in (browser.text("#banner") or ""))
    errors = errors_of(browser, at_end=True)
    if errors:
        raise Failed(f"no error was expected in the console at the end; instead: {errors}")
    say("the page says that the demo has ended")


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    demo = browser = None
    try:
        browser = Browser()
        demo = Demo(sys.argv[1], "--duration", f"{DURATION_S}s", "--no-chaos")
        check(demo, browser, lambda text: print(f"ok: {text}", flush=True))
        return 0
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        if demo is not None:
            print("the demo's last lines:", *demo.lines[-15:], sep="\n  ", file=sys.stderr)
        if browser is not None and os.environ.get("PAGE_SCREENSHOT"):
            try:
                browser.screenshot(os.environ["PAGE_SCREENSHOT"])
            except (OSError, Failed):
                pass
        return 1
    finally:
        if demo is not None:
            demo.stop()
        if browser is not None:
            browser.close()


if __name__ == "__main__":
    sys.exit(main())
