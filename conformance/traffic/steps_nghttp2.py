"""nghttp and h2load, of nghttp2, against `buttress proxy` in clear and with TLS."""

import hashlib
import re

from common import WORK_DIR, Handler, Mock, Proxy, certificates, run, upstream, version
from checks import begin, check, end

begin("nghttp2", version("nghttp", "--version"))
at, to = certificates(), upstream()
large = WORK_DIR / "large"
large.write_bytes(Handler.PATTERN)
summed = f"{len(Handler.PATTERN)} {hashlib.sha256(Handler.PATTERN).hexdigest()}"
with (
    Proxy("--to", to) as clear,
    Proxy("--to", to, "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as secure,
):
    for way, url in [("in clear", f"http://{clear.address}"), ("in TLS", f"https://{secure.address}")]:
        check(f"{way}: a GET is answered", "hello", run("nghttp", f"{url}/").out)
        check(f"{way}: an upload arrives whole", summed, run("nghttp", "-d", str(large), f"{url}/sum").out)
        check(f"{way}: a download in chunks is whole", Handler.PATTERN, run("nghttp", f"{url}/chunked").bytes)
        many = run("nghttp", "-nv", "-m", "100", f"{url}/")
        check(f"{way}: a hundred streams at once are answered", 100, many.out.count(":status: 200"))
        padded = run("nghttp", "-b", "200", "-H", "x-large: " + "a" * 3000, f"{url}/")
        check(f"{way}: padding and a large field pass", "hello", padded.out)
# As many at once as the proxy lets in before it has learnt what the upstream bears.
with (
    Mock() as mock,
    Proxy("--to", mock) as clear,
    Proxy("--to", mock, "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as secure,
):
    for way, url in [("in clear", f"http://{clear.address}/"), ("in TLS", f"https://{secure.address}/")]:
        for spoken, how in [("HTTP/2", ["-m", "5"]), ("HTTP/1.1", ["--h1"])]:
            load = run("h2load", "-n", "2000", "-c", "10", *how, url)
            said = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", load.out)
            check(f"{way}: h2load's two thousand requests over {spoken} succeed", ("2000", "0", "0"), said.groups() if said else load.out)
            answered = re.search(r"status codes: (\d+) 2xx", load.out)
            check(f"{way}: and are answered with 200", "2000", answered[1] if answered else load.out)
end()
