"""What people do with curl, through `buttress proxy`: in clear and with TLS, HTTP/1.1 and HTTP/2."""

import hashlib
import json
import re

from common import WORK_DIR, Handler, Proxy, certificates, eventually, run, upstream, version
from checks import begin, check, end

begin("curl", version("curl", "--version"))
at = certificates()
to = upstream()
large = WORK_DIR / "large"
large.write_bytes(Handler.PATTERN)
summed = f"{len(Handler.PATTERN)} {hashlib.sha256(Handler.PATTERN).hexdigest()}"


def curl(url, *arguments):
    return run("curl", "-sS", "--max-time", "50", *arguments, url)


def fields(done):
    return json.loads(done.out)["fields"]


with (
    Proxy("--to", to) as clear,
    Proxy("--to", to, "--tls-cert", at("server.pem"), "--tls-key", at("server.key"), "--tls-cert", at("second.pem"), "--tls-key", at("second.key")) as secure,
):
    trust = ["--cacert", at("ca.pem")]
    ways = {
        "HTTP/1.1 in clear": (f"http://{clear.address}", ["--http1.1"], "1.1", "http"),
        "HTTP/2 in clear": (f"http://{clear.address}", ["--http2-prior-knowledge"], "2", "http"),
        "HTTP/1.1 in TLS": (f"https://{secure.address}", ["--http1.1", *trust], "1.1", "https"),
        "HTTP/2 in TLS": (f"https://{secure.address}", ["--http2", *trust], "2", "https"),
    }
    for way, (url, how, spoken, scheme) in ways.items():
        get = curl(f"{url}/asked", *how, "-w", "\n%{http_version} %{http_code}")
        asked, said = get.out.rsplit("\n", 1)
        check(f"{way}: a GET is answered", f"{spoken} 200", said)
        check(f"{way}: the upstream hears of the scheme", scheme, json.loads(asked)["fields"].get("x-forwarded-proto"))
        check(f"{way}: an upload arrives whole", summed, curl(f"{url}/sum", *how, "-T", str(large)).out)
        check(f"{way}: so does one that asks first", summed, curl(f"{url}/sum", *how, "-H", "Expect: 100-continue", "--data-binary", f"@{large}").out)
        check(f"{way}: so does one in chunks", summed, curl(f"{url}/sum", *how, "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{large}").out)
        check(f"{way}: a download in chunks is whole", Handler.PATTERN, curl(f"{url}/chunked", *how).bytes)
        head = curl(f"{url}/range", *how, "-I")
        check(f"{way}: HEAD has the length and no body", str(len(Handler.PATTERN)), re.search(r"(?i)content-length: (\d+)", head.out)[1])
        part = curl(f"{url}/range", *how, "-r", "1000-1999", "-w", "%{http_code}")
        check(f"{way}: a range is a range", Handler.PATTERN[1000:2000] + b"206", part.bytes)
        check(f"{way}: an answer without a body", "204", curl(f"{url}/none", *how, "-w", "%{http_code}").out)
        again = curl(f"{url}/", *how, f"{url}/", f"{url}/", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ")
        check(f"{way}: the connection is kept", ["1", "0"], again.out.split()[:2])
    early = curl(f"http://{clear.address}/early", "-i", "--http1.1").out
    check("early hints come before the answer", [103, 200], [int(code) for code in re.findall(r"HTTP/1.1 (\d+)", early)])
    check("an HTTP/1.0 client is answered", "hello", curl(f"http://{clear.address}/", "--http1.0").out)
    wrong = curl(f"http://{secure.address}/", "-w", "%{http_code}")
    check("HTTP in clear on the port of TLS gets 400 and a code", (True, True), ("BT0932" in wrong.out, wrong.out.endswith("400")))
    check("a certificate of an unknown authority is refused by curl", 60, curl(f"https://{secure.address}/").code)
    resolve = ["--resolve", f"a.second.example:{secure.port}:127.0.0.1", *trust]
    check("SNI picks the second certificate", "hello", curl(f"https://a.second.example:{secure.port}/", *resolve).out)
    # Renewed in place, while a connection could be open; SIGHUP asks for it at once.
    before = run("openssl", "s_client", "-connect", secure.address, "-servername", "localhost").out.split("-----BEGIN CERTIFICATE-----")[1]
    certificates()
    secure.hangup()
    shown = lambda: run("openssl", "s_client", "-connect", secure.address, "-servername", "localhost").out.split("-----BEGIN CERTIFICATE-----")[1]
    check("a renewed certificate is shown without a restart", True, eventually(lambda: shown() != before))

client = ["--cert", at("client.pem"), "--key", at("client.key")]
with Proxy("--to", to, "--tls-cert", at("server.pem"), "--tls-key", at("server.key"), "--tls-client-ca", at("ca.pem")) as mutual:
    url = f"https://{mutual.address}/asked"
    trust = ["--cacert", at("ca.pem")]
    forwarded = fields(curl(url, *trust, *client, "-H", "X-Forwarded-Client-Cert: URI=spiffe://forged"))["x-forwarded-client-cert"]
    hashed = run("openssl", "x509", "-in", at("client.pem"), "-outform", "DER").bytes
    wanted = f'Hash={hashlib.sha256(hashed).hexdigest()};Subject="CN=client";URI=spiffe://example.org/curl;DNS=curl.example'
    check("a client's certificate is forwarded in Envoy's form, and nobody forges it", wanted, forwarded)
    check("a client without a certificate is refused", True, curl(url, *trust).code != 0)
    stranger = ["--cert", at("stranger.pem"), "--key", at("stranger.key")]
    check("so is one of another authority", True, curl(url, *trust, *stranger).code != 0)
    # Through a second proxy that shows its own certificate.
    with Proxy("--to", f"https://{mutual.address}", "--upstream-ca", at("ca.pem"), "--upstream-cert", at("client.pem"), "--upstream-key", at("client.key")) as outer:
        got = fields(curl(f"http://{outer.address}/asked"))
        check("an upstream with TLS sees the proxy's certificate", wanted, got["x-forwarded-client-cert"])
    with Proxy("--to", f"https://{mutual.address}", "--upstream-ca", at("other-ca.pem")) as outer:
        answer = curl(f"http://{outer.address}/", "-i").out
        check("an upstream of another authority is told in a sentence", True, "BT0930" in answer and "not trusted" in answer)

with Proxy("--tcp", f"127.0.0.1:0={to}") as passing:
    check("a TCP port passes connections as they are", "hello", curl(f"http://{passing.tcp[0]}/").out)
end()
