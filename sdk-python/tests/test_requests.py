"""Requests, replies, and what becomes of them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from shared import wait_until

from ringpost import (
    Client,
    ConnectError,
    NoHandlerError,
    PayloadTooLargeError,
    ProtocolError,
    RemoteError,
    Reply,
    RequestTimeoutError,
    RingpostError,
)


async def increment(data, options):
    return {"value": data["value"] + 1}


async def test_the_issues_example(plain_server):
    """The example of the documentation does what it says there."""
    async with Client(
        host="127.0.0.1",
        port=plain_server.port,
        action="client_1",
        request_handler=increment,
        reconnect=True,
        reconnect_interval=1.0,
        task_interval=0.0,
        concurrency=64,
    ) as client:
        reply = await client.request("client_1", {"value": 2}, ttl=10, timeout=10)
        assert reply.data == {"value": 3}
        assert reply.bytes == b'{"value":3}'
        assert reply.options is None
        assert reply.headers == []
        assert reply.status == "handled"
        legs = await client.broadcast("client_1", {"value": 2}, timeout=1)
        assert [leg.data for leg in legs] == [{"value": 3}]
        # The list that came first may be older than the registration.
        await wait_until(lambda: client.receivers == ["client_1"])
        assert client.connected
    assert not client.connected


async def test_times_of_a_reply(clients):
    """A reply says when things happened, in UTC, and at which attempt."""
    client = await clients(action="client_1", request_handler=increment)
    before = datetime.now(UTC) - timedelta(seconds=1)
    info = (await client.request("client_1", {"value": 1})).info
    assert before < info.received_at <= info.delivered_at <= info.handled_at
    assert info.attempt == 1


async def test_the_references_form(clients):
    """The reference's own call works, with its milliseconds, and its options reach the handler."""

    async def echo(data, options):
        return [data, options]

    client = await clients(action="client_1", request_handler=echo)
    reply = await client.request({"action": "client_1", "data": {"value": 2}}, {"ttl": 10000}, 10000)
    assert reply.data == [{"value": 2}, {"ttl": 10000}]
    reply = await client.request({"action": "client_1"})
    assert reply.data == [None, {}]
    [leg] = await client.request({"action": "client_1", "data": 1}, {"broadcast": True}, 10000)
    assert leg.data == [1, {"broadcast": True}]
    await client.handle("slow", slow, stop_on_cancel=True)
    with pytest.raises(RequestTimeoutError):
        await client.request({"action": "slow", "data": 1}, {"durable": False}, 1)


async def slow(data):
    await asyncio.sleep(600)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (({"action": "a"},), {"timeout": 1}),
        (("a", 1, 1000), {}),
        (("a", 1, 1000), {"ttl": 1}),
        (({"id": "a"},), {}),
        (({"action": "a", "clientId": "x"},), {}),
        (({"action": "a"}, 5), {}),
        (({"action": "a"}, {}, "1"), {}),
        ((7,), {}),
        (("a",), {"timeout": "1"}),
        (("a",), {"tiemout": 1}),
    ],
)
async def test_mixed_forms_are_type_errors(clients, arguments, named):
    """What is neither of the two forms of a request is refused, and nothing is sent."""
    client = await clients()
    with pytest.raises(TypeError):
        await client.request(*arguments, **named)


async def test_values_that_cannot_be_meant(clients):
    """Negative times and impossible attempts are refused."""
    client = await clients()
    for named in ({"timeout": -1}, {"ttl": timedelta(days=-1)}, {"max_attempts": 0}, {"max_attempts": 256}):
        with pytest.raises(ValueError, match=next(iter(named))):
            await client.request("a", **named)


async def test_times_as_timedelta(clients):
    """A timeout may be a timedelta, and its end is a TimeoutError too."""
    client = await clients()
    await client.handle("slow", slow, stop_on_cancel=True)
    with pytest.raises(TimeoutError) as caught:
        await client.request("slow", timeout=timedelta(milliseconds=5))
    assert isinstance(caught.value, RequestTimeoutError)
    assert caught.value.code == "timeout"


async def test_options_and_headers_go_both_ways(clients):
    """Options and headers reach the handler, and those of its Reply come back, with keys that repeat."""
    seen = []

    async def handle(data, options):
        seen.append(options)
        return Reply(data, options={"its": "own"}, headers=[("a", "1"), ("a", "2"), ("b", "ü")])

    client = await clients(action="x", request_handler=handle)
    reply = await client.request("x", [1], options={"color": "red"}, headers={"traceparent": "00"})
    assert seen == [{"color": "red"}]
    assert reply.options == {"its": "own"}
    assert reply.headers == [("a", "1"), ("a", "2"), ("b", "ü")]


async def test_bytes_go_through_as_they_are(clients):
    """Raw bytes in and out; only who asks for their JSON is told that there is none."""

    async def reverse(data: bytes):
        return data[::-1]

    client = await clients(action="x", request_handler=reverse)
    payload = bytes(range(256))
    reply = await client.request("x", payload)
    assert reply.bytes == payload[::-1]
    with pytest.raises(ProtocolError, match="JSON"):
        _ = reply.data


@pytest.mark.parametrize("size", [0, 1, 100, 16 << 10, 1 << 20, 15 << 20])
async def test_payloads_of_all_sizes(clients, size):
    """Empty and huge payloads arrive whole."""

    async def echo(data: bytes):
        return data

    client = await clients(action="x", request_handler=echo)
    payload = bytes(i % 251 for i in range(min(size, 65536))) * (max(size, 1) // 65536 or 1)
    payload = payload[:size] if size < 65536 else payload
    reply = await client.request("x", payload, timeout=60)
    assert reply.bytes == payload
    if not payload:
        assert reply.data is None


async def test_too_large(clients):
    """What is longer than the server takes is refused, and the client goes on."""
    client = await clients(action="x", request_handler=increment)
    with pytest.raises(PayloadTooLargeError):
        await client.request("x", bytes(17 << 20))
    assert (await client.request("x", {"value": 1})).data == {"value": 2}


@pytest.mark.parametrize("data", [object(), {1, object()}, {"x": object()}, lambda: 1, 1 << 70])
async def test_what_has_no_form_in_json(clients, data):
    """Data that cannot be written as JSON is a clear error; nothing is sent."""
    called = []
    client = await clients(action="x", request_handler=called.append)
    with pytest.raises(ProtocolError, match="cannot be written as JSON"):
        await client.request("x", data)
    assert called == []


async def test_nobody_handles_it(clients):
    """Without a handler a plain request fails at once, and its error says what to do."""
    client = await clients()
    with pytest.raises(NoHandlerError, match="nobody handles `nobody`") as caught:
        await client.request("nobody", 1)
    assert caught.value.code == "noHandler"


@pytest.mark.parametrize("action", ["", "init", "$sys", "a" * 256, "a\n"])
async def test_bad_names(clients, action):
    """A name that no action can have is refused before anything is sent, and so it is for a handler."""
    client = await clients()
    with pytest.raises(RingpostError):
        await client.handle(action, increment)
    if action != "$sys":
        with pytest.raises(RingpostError):
            await client.request(action, 1)


async def test_broadcast_gathers_every_leg(clients, caplog):
    """Each handler is asked once; an error takes the place of a reply."""

    async def good(data):
        return data

    async def bad(data):
        raise ValueError("no")

    requester = await clients()
    for handle in (good, bad, good):
        client = await clients()
        await client.handle("x", handle)
    legs = await requester.broadcast("x", 7, timeout=10)
    assert [leg.data for leg in legs if isinstance(leg, Reply)] == [7, 7]
    [error] = [leg for leg in legs if not isinstance(leg, Reply)]
    assert isinstance(error, RemoteError)
    caplog.clear()
    with pytest.raises(NoHandlerError):
        await requester.broadcast("nobody")


async def test_a_thousand_at_once(clients):
    """A thousand requests in flight, each with its own reply."""
    client = await clients(action="x", request_handler=increment, concurrency=1000)
    replies = await asyncio.gather(*(client.request("x", {"value": i}) for i in range(1000)))
    assert [reply.data["value"] for reply in replies] == list(range(1, 1001))


async def test_progress(clients):
    """A handler's words reach the requester before its reply."""
    from ringpost import Request

    async def long(data, request: Request):
        for part in range(3):
            assert request.progress({"part": part})
        return "done"

    said = []
    client = await clients(action="x", request_handler=long)
    reply = await client.request("x", 1, on_progress=said.append)
    assert reply.data == "done"
    assert said == [{"part": 0}, {"part": 1}, {"part": 2}]


async def test_cancelling_the_task_cancels_the_request(clients):
    """The handler is told when the requester's task is cancelled, by cancel() and by asyncio.timeout()."""
    from ringpost import Request

    began, told = asyncio.Queue(), asyncio.Queue()

    async def handle(data, request: Request):
        began.put_nowait(data)
        await request.until_cancelled()
        assert request.cancelled
        told.put_nowait(data)

    client = await clients()
    await client.handle("x", handle)
    task = asyncio.create_task(client.request("x", 1))
    assert await began.get() == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await told.get() == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.request("x", 2)
    assert await told.get() == 2
    assert client._link.connection.open_requests == 0


async def test_cancelled_before_it_ran(clients):
    """A task that is cancelled when its reply is there already, or before it was sent, harms nobody."""
    client = await clients(action="x", request_handler=increment)
    for pause in (0, 0.0001, 0.0005, 0.001):
        tasks = [asyncio.create_task(client.request("x", {"value": i})) for i in range(50)]
        await asyncio.sleep(pause)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (await client.request("x", {"value": 1})).data == {"value": 2}


async def test_no_server():
    """Without a server, start fails at once and says where it looked."""
    client = Client(port=1)
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1") as caught:
        await client.start()
    assert isinstance(caught.value, ConnectionError)


async def test_a_client_that_may_start_before_its_server():
    """With retry_initial a client waits for its server, and requests made meanwhile too."""
    from ringpost.testing import Server

    with Server(durable=False) as server:
        server.stop()
        events = []
        client = Client(port=server.port, retry_initial=True, reconnect_interval=0.01, on_event=events.append)
        starting = asyncio.create_task(client.start())
        deadline = time.monotonic() + 30
        while not events and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        server.start()
        await asyncio.wait_for(starting, 30)
        assert client.connected
        await client.close()
