"""An OpenID provider that is not ours (zitadel's) makes the tokens: discovery, key rotation, and what forged, expired and foreign ones get."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import urllib.parse

from common import SECONDS_MAX, WORK_DIR, Proxy, certificates, eventually, run, upstream
from checks import begin, check, end

ISSUER = os.environ["ISSUER"]
module = os.path.join(os.path.dirname(__file__), "..", "go-issuer", "go.mod")
begin("zitadel-oidc", next(line.split()[-1] for line in open(module) if "zitadel/oidc" in line).lstrip("v"))
at, to = certificates(), upstream()


class Issuer:
    """A provider of its own; `name` is what its tokens have as `iss`."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([ISSUER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.name = json.loads(self.process.stdout.readline())["issuer"]
        self.origin = "/".join(self.name.split("/")[:3])

    def tell(self, **what):
        done = run("curl", "-s", "--cacert", at("ca.pem"), "-w", "%{http_code}", "-d", json.dumps(what), f"{self.origin}/control")
        if done.out != "200":
            raise RuntimeError(f"the issuer does not take {what}: {done.out}")

    def token(self, scope="openid"):
        asked = urllib.parse.urlencode({"grant_type": "client_credentials", "client_id": "sid1", "client_secret": "verysecret", "scope": scope})
        return json.loads(run("curl", "-s", "--cacert", at("ca.pem"), "-d", asked, f"{self.name}/oauth/token").out)["access_token"]

    def keys(self):
        return json.loads(run("curl", "-s", "--cacert", at("ca.pem"), f"{self.name}/keys").out)["keys"]

    def stop(self):
        self.process.terminate()
        self.process.wait(SECONDS_MAX)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def route(name, **jwt):
    allow = jwt.pop("allow", None)
    auth = {"jwt": {"audience": "orders", **jwt}, **({"allow": allow} if allow else {})}
    spec = {"match": [{"path": "/asked", "headers": {"x-route": name}}], "to": [{"endpoints": to}], "auth": auth}
    return {"kind": "Route", "name": name, "spec": spec}


def proxy(*routes):
    file = WORK_DIR / "routes.yaml"
    file.write_text("\n---\n".join(json.dumps(one) for one in routes))
    return Proxy("--config", str(file))


def ask(proxy, name, token=None):
    """The status, the code that says why, and who the upstream was told that calls."""
    field = ["-H", f"Authorization: Bearer {token}"] if token else []
    said = run("curl", "-s", "-i", *field, "-H", f"x-route: {name}", f"http://{proxy.address}/asked").out
    head, _, body = said.partition("\r\n\r\n")
    status = int(head.split()[1])
    code = next((line.split(": ")[1] for line in head.splitlines() if line.lower().startswith("buttress-code")), "").upper()
    return (status, json.loads(body)["fields"].get("buttress-caller")) if status == 200 else (status, code)


PASSES, REFUSED, FORBIDDEN, UNREAD = (200, "sid1"), (401, "BT0924"), (403, "BT0925"), (503, "BT0926")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(token):
    head, claims, made = token.split(".")
    read = lambda part: json.loads(base64.urlsafe_b64decode(part + "=="))
    return read(head), read(claims), made


def forged(head, claims, made):
    return ".".join([b64(json.dumps(head).encode()), b64(json.dumps(claims).encode()), made])


with Issuer("--path", "/realms/shop") as issuer, Issuer() as other:
    told = [
        route("found", issuer=issuer.name),
        route("named", jwks=f"{issuer.name}/keys", issuer=issuer.name),
        route("scoped", issuer=issuer.name, allow=[{"claims": {"scope": "custom_scope"}}]),
        # Its document names 127.0.0.1, so it is no document of this issuer.
        route("lying", issuer=issuer.name.replace("127.0.0.1", "localhost")),
    ]
    with proxy(*told) as gate:
        first = issuer.token()
        check("RS256, keys found by the issuer's document", PASSES, eventually(lambda: ask(gate, "found", first)[0] == 200) and ask(gate, "found", first))
        check("RS256, keys at an address", PASSES, eventually(lambda: ask(gate, "named", first)[0] == 200) and ask(gate, "named", first))
        check("nothing is nobody", (401, "BT0923"), ask(gate, "found"))
        check("a document of another issuer opens nothing", UNREAD, ask(gate, "lying", first))
        check("a scope that is asked for and not there", FORBIDDEN, ask(gate, "scoped", first))
        check("and that is there", PASSES, ask(gate, "scoped", issuer.token("openid custom_scope")))
        check("a token of another issuer", REFUSED, ask(gate, "found", other.token()))

        # Keys are exchanged: new ones count as soon as a token names one, old ones until the issuer takes them back.
        made = {}
        for algorithm in ["ES256", "PS256", "ES384", "EdDSA"]:
            issuer.tell(sign=algorithm)
            made[algorithm] = issuer.token()
        check("the issuer signs as it was told", list(made), [parts(token)[0]["alg"] for token in made.values()])
        for algorithm, token in made.items():
            check(f"{algorithm}, by a key that was new", PASSES, eventually(lambda: ask(gate, "found", token)[0] == 200) and ask(gate, "found", token))
        check("the key before it counts on", PASSES, ask(gate, "found", first))

        head, claims, signature = parts(first)
        key = next(key for key in issuer.keys() if key["kid"] == head["kid"])
        public = json.dumps(key).encode()
        begun = first.rsplit(".", 1)[0]

        def by_secret(secret):
            body = ".".join([b64(json.dumps({**head, "alg": "HS256"}).encode()), begun.split(".")[1]])
            return f"{body}.{b64(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"

        forgeries = {
            "other claims under the same signature": forged(head, {**claims, "sub": "root"}, signature),
            "no signature": f"{begun}.",
            "alg none": forged({**head, "alg": "none"}, claims, ""),
            "HS256 with the public key as the secret": by_secret(public),
            "HS256 with the modulus as the secret": by_secret(base64.urlsafe_b64decode(key["n"] + "==")),
            "another alg of the same key": forged({**head, "alg": "PS256"}, claims, signature),
            "a signature of another token": f"{begun}.{parts(made['PS256'])[2]}",
            "a key that it brings itself": forged({**head, "jwk": key, "kid": "mine"}, claims, signature),
            "half of it": first[: len(first) // 2],
            "no token at all": "x.y.z",
        }
        for name, token in forgeries.items():
            check(f"forged: {name}", REFUSED, ask(gate, "found", token))
        issuer.tell(lifetime_s=-60)
        check("a token that has expired", REFUSED, ask(gate, "found", issuer.token()))
        issuer.tell(lifetime_s=300, audience=["payments"])
        check("a token for somebody else", REFUSED, ask(gate, "found", issuer.token()))
        issuer.tell(audience=["payments", "orders"])
        check("a token for several", PASSES, ask(gate, "found", issuer.token()))

        issuer.tell(retire=True, audience=["orders"])
        # Only a key that nobody knows has the keys read before their time.
        look = lambda: ask(gate, "found", forgeries["a key that it brings itself"]) and ask(gate, "found", first) == REFUSED
        check("a key that the issuer took back counts no more", True, eventually(look))
        check("though its token was good and remembered", REFUSED, ask(gate, "found", first))
        check("the key that is left counts", PASSES, ask(gate, "found", issuer.token()))
        last = issuer.token()
        issuer.stop()
        check("an issuer that is gone takes nothing away", PASSES, ask(gate, "found", last))

with Issuer("--cert", at("server.pem"), "--key", at("server.key")) as secure:
    believed, not_believed = route("believed", issuer=secure.name, ca=at("ca.pem")), route("not-believed", issuer=secure.name, ca=at("other-ca.pem"))
    with proxy(believed, not_believed) as gate:
        token = secure.token()
        check("an issuer within TLS", PASSES, eventually(lambda: ask(gate, "believed", token)[0] == 200) and ask(gate, "believed", token))
        check("one that is not believed opens nothing", UNREAD, ask(gate, "not-believed", token))
end()
