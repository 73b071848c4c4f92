"""nghttp and h2load, of nghttp2, against `buttress proxy` in clear and with TLS."""

import hashlib
import re

from common import WORK_DIR, Handler, Proxy, certificates, run, upstream, version
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
        load = run("h2load", "-n", "2000", "-c", "10", "-m", "20", f"{url}/")
        said = re.search(r"requests: 2000 total, .*? (\d+) succeeded, (\d+) failed, (\d+) errored", load.out)
        check(f"{way}: h2load's two thousand requests succeed", ("2000", "0", "0"), said.groups() if said else load.out)
        old = run("h2load", "--h1", "-n", "2000", "-c", "10", f"{url}/")
        said = re.search(r"requests: 2000 total, .*? (\d+) succeeded, (\d+) failed, (\d+) errored", old.out)
        check(f"{way}: so do those over HTTP/1.1", ("2000", "0", "0"), said.groups() if said else old.out)
end()
