"""The `websockets` package of Python on both sides of `buttress proxy`."""

import asyncio
import ssl
from importlib.metadata import version

import websockets
from common import Proxy, certificates
from checks import begin, check, end

begin("websockets", version("websockets"))
at = certificates()


async def echo(connection):
    async for message in connection:
        if message == "close":
            return await connection.close(4001, "as you like")
        await connection.send(message)


async def talk(way, url, trust):
    async with websockets.connect(url, ssl=trust, max_size=None) as connection:
        await connection.send("hello")
        check(f"{way}: a text comes back", "hello", await connection.recv())
        binary = bytes(range(256)) * 20_000
        await connection.send(binary)
        check(f"{way}: five million bytes come back", True, await connection.recv() == binary)
        for number in range(200):
            await connection.send(str(number))
        check(f"{way}: in order", [str(number) for number in range(200)], [await connection.recv() for _ in range(200)])
        check(f"{way}: a ping is answered", True, await (await connection.ping()) >= 0)
        await connection.send("close")
        try:
            await connection.recv()
        except websockets.ConnectionClosed as closed:
            check(f"{way}: the close comes through", (4001, "as you like"), (closed.rcvd.code, closed.rcvd.reason))
    many = await asyncio.gather(*(websockets.connect(url, ssl=trust) for _ in range(50)))
    for number, connection in enumerate(many):
        await connection.send(f"of {number}")
    check(f"{way}: fifty at once do not mix", [f"of {number}" for number in range(50)], [await connection.recv() for connection in many])
    for connection in many:
        await connection.close()


async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        to = "127.0.0.1:%d" % server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cafile=at("ca.pem"))
        with (
            Proxy("--to", to) as clear,
            Proxy("--to", to, "--tls-cert", at("server.pem"), "--tls-key", at("server.key")) as secure,
            Proxy("--to", f"https://{secure.address}", "--upstream-ca", at("ca.pem")) as both,
        ):
            await talk("in clear", f"ws://{clear.address}/", None)
            await talk("in TLS", f"wss://{secure.address}/", trust)
            await talk("through two, TLS between them", f"ws://{both.address}/", None)


asyncio.run(main())
end()
