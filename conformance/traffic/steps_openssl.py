"""Versions, ciphers and garbage, said by openssl s_client to `buttress proxy`."""

import socket

from common import Proxy, certificates, run, upstream, version
from checks import begin, check, end

begin("openssl", version("openssl", "version"))
at = certificates()


def client(address, *arguments):
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return run("openssl", "s_client", "-connect", address, "-CAfile", at("ca.pem"), "-ign_eof", *arguments, input=ask)


def line(done, begin):
    return next((line.strip() for line in done.out.splitlines() if line.strip().startswith(begin)), None)


with Proxy("--to", upstream(), "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as proxy:
    for flag, says in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")]:
        done = client(proxy.address, flag, "-servername", "localhost")
        check(f"{says} is spoken", True, f"New, {says}" in done.out and done.out.count("\nhello") == 1)
        check(f"{says}: the chain is right", "Verify return code: 0 (ok)", line(done, "Verify return code"))
    for flag in ["-tls1", "-tls1_1"]:
        # openssl itself offers them only at level 0.
        done = client(proxy.address, flag, "-cipher", "ALL:@SECLEVEL=0")
        check(f"{flag} is refused", True, done.code != 0 and "alert" in done.err)
    done = client(proxy.address, "-tls1_2", "-cipher", "AES128-SHA")
    check("a cipher without forward secrecy is refused", True, done.code != 0)
    for protocol in ["h2", "http/1.1"]:
        done = run("openssl", "s_client", "-connect", proxy.address, "-alpn", protocol)
        check(f"ALPN {protocol} is agreed on", f"ALPN protocol: {protocol}", line(done, "ALPN protocol"))
    done = run("openssl", "s_client", "-connect", proxy.address, "-alpn", "gopher")
    check("what nobody speaks is refused", True, "no application protocol" in done.err)
    done = run("openssl", "s_client", "-connect", proxy.address, "-tls1_3", "-sess_out", at("session"), "-ign_eof", input=b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    again = run("openssl", "s_client", "-connect", proxy.address, "-tls1_3", "-sess_in", at("session"))
    check("a session is resumed", True, "Reused, TLSv1.3" in again.out)
    # Whatever comes, nothing falls over.
    for garbage in [b"\0" * 64, b"\x16\x03\x01\xff\xff" + b"A" * 70_000, b"\x80\x2e\x01\0\x02", b"SSH-2.0-x\r\n", b"\x16\x03\x01\0\0"]:
        with socket.create_connection((proxy.host, proxy.port), 60) as stream:
            try:
                stream.sendall(garbage)
                stream.shutdown(socket.SHUT_WR)
                while stream.recv(4096):
                    pass
            except OSError:
                pass
    check("after garbage it still serves", True, client(proxy.address).out.count("\nhello") == 1)
    check("and has counted it", True, proxy.metric('buttress_traffic_handshakes_total{outcome="garbage"}') >= 2)

with Proxy("--to", upstream(), "--tls-cert", at("server.pem"), "--tls-key", at("server.key"), "--tls-client-ca", at("ca.pem"), "--tls-client-optional") as proxy:
    check("a certificate that is optional may be missing", True, client(proxy.address).out.count("\nhello") == 1)
    shown = ["-cert", at("client.pem"), "-key", at("client.key")]
    for flag in ["-tls1_2", "-tls1_3"]:
        check(f"{flag}: one that is right is taken", True, client(proxy.address, flag, *shown).out.count("\nhello") == 1)
        wrong = client(proxy.address, flag, "-cert", at("stranger.pem"), "-key", at("stranger.key"))
        check(f"{flag}: one that is wrong is refused", 0, wrong.out.count("\nhello"))
end()
