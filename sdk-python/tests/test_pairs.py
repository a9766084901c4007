"""Clients of all kinds with each other: this one, the command in Rust, and anything that speaks JSON over a socket."""

import asyncio
import json
import sys

import pytest
from shared import wait_until

from ringpost import Client, Reply

KINDS = ["python", "rust", "json"]


class PythonPeer:
    def __init__(self, port):
        self.client = Client(port=port)

    async def __aenter__(self):
        await self.client.start()
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    async def handle(self, action):
        async def handler(data, options):
            return Reply({"value": data["value"] + 1}, options={"by": "handler"})

        await self.client.handle(action, handler)

    async def request(self, action, data):
        return (await self.client.request(action, data, timeout=60)).data


async def command(port, *arguments):
    """The `ringpost` command of this installation."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ringpost", *arguments, "--server", f"127.0.0.1:{port}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )


class RustPeer:
    def __init__(self, port):
        self.port = port
        self.handlers = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for handler in self.handlers:
            handler.terminate()
            await handler.communicate()

    async def handle(self, action):
        # `{"value":2}` becomes `{"value":3}`.
        script = "import sys,json; d=json.load(sys.stdin); print(json.dumps({'value': d['value'] + 1}))"
        arguments = ["--server", f"127.0.0.1:{self.port}", "handle", action, "--", sys.executable, "-c", script]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ringpost", *arguments, stdin=asyncio.subprocess.DEVNULL
        )
        self.handlers.append(process)

    async def request(self, action, data):
        process = await command(self.port, "request", action, json.dumps(data), "--timeout", "60s")
        output, _ = await process.communicate()
        assert process.returncode == 0
        return json.loads(output)


class JsonPeer:
    """What anybody can write in any language: JSON objects over a socket."""

    def __init__(self, port):
        self.port = port
        self.replies = asyncio.Queue()
        self.reading = None

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.reading = asyncio.create_task(self.read())
        return self

    async def __aexit__(self, *_):
        self.reading.cancel()
        self.writer.close()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.writer.wait_closed()

    def say(self, message):
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def read(self):
        async for line in self.reader:
            said = json.loads(line)
            message = said["message"]
            if said["action"] == "request":
                data = {"value": message["data"]["value"] + 1}
                self.say({"action": "response", "message": {**message, "data": data}})
            elif said["action"] in ("response", "error"):
                self.replies.put_nowait(message)

    async def handle(self, action):
        self.say({"id": action, "action": "init"})

    async def request(self, action, data):
        self.say({"id": action, "data": data, "clientId": "1", "options": {"ttl": 60000}})
        message = await asyncio.wait_for(self.replies.get(), 60)
        assert message["status"] == "handled", message
        return message["data"]


PEERS = {"python": PythonPeer, "rust": RustPeer, "json": JsonPeer}


@pytest.mark.parametrize("handler", KINDS)
@pytest.mark.parametrize("requester", KINDS)
async def test_pair(plain_server, requester, handler):
    """Each kind of client gets the replies of each kind of handler."""
    port = plain_server.port
    async with PEERS[handler](port) as handles, PEERS[requester](port) as requests, Client(port=port) as watcher:
        await handles.handle("client_1")
        await wait_until(lambda: watcher.receivers == ["client_1"])
        assert await requests.request("client_1", {"value": 2}) == {"value": 3}
        assert await requests.request("client_1", {"value": -1.5}) == {"value": -0.5}


async def test_bytes_that_are_no_json_do_not_reach_json_clients(plain_server):
    """Raw bytes for a handler that speaks JSON are refused by the broker, with an error that says why."""
    from ringpost import RingpostError

    async with JsonPeer(plain_server.port) as handles, Client(port=plain_server.port) as client:
        await handles.handle("x")
        await wait_until(lambda: client.receivers == ["x"])
        with pytest.raises(RingpostError, match="JSON"):
            await client.request("x", b"\xff\xfe", timeout=30)
        assert (await client.request("x", b'{"value": 1}')).data == {"value": 2}


async def test_options_between_dialects(plain_server):
    """The options of a JSON client reach a handler in Python as they were written."""
    seen = []

    async def handle(data, options):
        seen.append(options)
        return {"value": 0}

    async with (
        Client(port=plain_server.port, action="x", request_handler=handle),
        JsonPeer(plain_server.port) as json_peer,
    ):
        await json_peer.request("x", {"value": 1})
    assert seen == [{"ttl": 60000}]
