"""Clients that begin, lose their server, end, and are left alone."""

import asyncio
import gc
import pickle
import resource
import sys
import time
import weakref

import pytest
from shared import one, wait_until

import ringpost
from ringpost import (
    Client,
    Closed,
    ClosedError,
    Connected,
    ConnectionLostError,
    Disconnected,
    HandlerError,
    ReconnectIn,
    RingpostError,
    SyncClient,
    _errors,
    _ringpost,
)
from ringpost.testing import Server


def test_constructing_needs_no_loop():
    """A client is made anywhere; only its start wants a loop."""
    client = Client(action="x", request_handler=one, secure_key="someSecureKey")
    assert repr(client) == "<Client 127.0.0.1:8888 'x' not started>"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"request_handler": one}, TypeError),
        ({"threads": 0}, ValueError),
        ({"concurrency": 0, "action": "x", "request_handler": one}, ValueError),
        ({"reconnect_interval": -1}, ValueError),
        ({"task_interval": "1"}, TypeError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_options_that_cannot_be_meant(options, error):
    """Bad options are refused when the client is made."""
    with pytest.raises(error):
        Client(**options)


async def test_options_that_the_core_refuses(plain_server):
    """What only the core knows to be wrong is refused at the start, as bad input."""
    for options in ({"session": "x" * 256}, {"unclaimed_replies": True}, {"host": "no host"}):
        with pytest.raises(RingpostError) as caught:
            await Client(**{"port": plain_server.port, **options}).start()
        assert caught.value.code == "malformed"


def test_repr_hides_the_key():
    """Neither the client nor its errors show the key."""
    client = Client(secure_key="someSecureKey")
    assert "someSecureKey" not in repr(client)
    assert "someSecureKey" not in repr(SyncClient(secure_key="someSecureKey"))


def test_one_table_of_errors():
    """Every code of the protocol's table has its exception, and no other has; they survive pickling."""
    assert _errors.BY_CODE.keys() == _ringpost.CODES.keys()
    for code, exit_code in _ringpost.CODES.items():
        error = _errors.exception(code, "said", "own")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) is not RingpostError
        assert (again.code, again.message, again.handler_code, again.exit_code) == (code, "said", "own", exit_code)
        assert type(error).__name__ in ringpost.__all__
    assert issubclass(_errors.RequestTimeoutError, TimeoutError)
    assert issubclass(_errors.ConnectionLostError, ConnectionError)
    assert issubclass(_errors.ConnectError, ConnectionError)
    assert not issubclass(HandlerError, RingpostError)


async def test_before_the_start_and_behind_the_end(plain_server):
    """A client that is not open says so, and starts once."""
    client = Client(port=plain_server.port)
    with pytest.raises(ClosedError, match="not been started"):
        await client.request("x")
    await client.close()
    async with client:
        with pytest.raises(RuntimeError, match="starts once"):
            await client.start()
    with pytest.raises(ClosedError):
        await client.request("x")
    with pytest.raises(ClosedError):
        await client.handle("x", one)
    await client.close()
    assert "closed" in repr(client)


async def test_another_loop(plain_server):
    """A client that is used in another event loop than its own says so."""
    async with Client(port=plain_server.port, action="x", request_handler=one) as client:

        async def elsewhere():
            with pytest.raises(RuntimeError, match="another event loop"):
                await client.request("x", 1)
            with pytest.raises(RuntimeError, match="another event loop"):
                await client.handle("y", one)
            with pytest.raises(RuntimeError, match="another event loop"):
                await client.close()

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert (await client.request("x", 1)).data == [1]


async def test_drain_lets_handlers_finish(plain_server):
    """drain() sends what handlers at work still answer; at its deadline it says what was cut off."""
    began, released = asyncio.Event(), asyncio.Event()

    async def handle(data):
        began.set()
        await released.wait()
        return data

    async with Client(port=plain_server.port) as requester:
        client = await Client(port=plain_server.port, action="x", request_handler=handle).start()
        task = asyncio.create_task(requester.request("x", 7))
        await began.wait()
        draining = asyncio.create_task(client.drain(30))
        await asyncio.sleep(0)
        released.set()
        assert (await draining).is_complete
        assert (await task).data == 7

        began.clear()
        released.clear()
        client = await Client(port=plain_server.port, action="y", request_handler=handle).start()
        task = asyncio.create_task(requester.request("y", 7))
        await began.wait()
        drained = await client.drain(0.01)
        assert not drained.is_complete
        assert drained.handlers == 1
        with pytest.raises(RingpostError):
            await task


async def test_an_error_in_the_block_closes_at_once(plain_server):
    """Leaving the block by an exception waits for nobody."""
    with pytest.raises(ZeroDivisionError):
        async with Client(port=plain_server.port, action="x", request_handler=lambda: time.sleep(0.2)) as client:
            task = asyncio.create_task(client.request("x", 1))
            await asyncio.sleep(0.01)
            raise ZeroDivisionError
    with pytest.raises(ClosedError):
        await task


async def test_events(plain_server, caplog):
    """What happens to the connection is told in order, and a callback that raises changes nothing."""
    told = []

    def on_event(event):
        told.append(event)
        raise ValueError("the user's own")

    client = Client(port=plain_server.port, reconnect_interval=0.01, on_event=on_event, action="x", request_handler=one)
    async with client:
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        plain_server.restart()
        assert isinstance(await asyncio.wait_for(first, 30), Disconnected)
        async with asyncio.timeout(30):
            async for event in events:
                if isinstance(event, Connected):
                    break
        assert client.connected
        await wait_until(lambda: client.receivers == ["x"])
        assert (await client.request("x", 1)).data == [1]
    assert isinstance(told[0], Connected)
    assert any(isinstance(event, ReconnectIn) for event in told)
    assert isinstance(told[-1], Closed)
    assert {record.getMessage() for record in caplog.records} == {"a client's event callback failed"}
    caplog.clear()


async def test_closed_says_why(plain_server):
    """A program that only handles waits for the client's end, and learns its reason."""
    async with Client(port=plain_server.port, reconnect=False) as client:
        plain_server.stop()
        reason = await asyncio.wait_for(client.closed(), 30)
        assert isinstance(reason, ConnectionLostError)


async def test_a_session_that_is_taken_over(plain_server):
    """Of two clients under one session's name the later one stays; the earlier is closed, and says why."""
    earlier = await Client(port=plain_server.port, session="s").start()
    async with Client(port=plain_server.port, session="s") as later:
        reason = await asyncio.wait_for(earlier.closed(), 30)
        assert (type(reason), reason.code) == (ClosedError, "sessionTaken")
        assert later.connected


async def test_server_restarted_under_load():
    """While the server is killed and comes back, every request ends: with its reply, or with an error that says why."""
    with Server(durable=False) as server:
        outcomes = {"replied": 0}
        over = False

        async def ask(client):
            number = 0
            while not over:
                number += 1
                try:
                    reply = await client.request("x", number, timeout=20)
                    assert reply.data == [number]
                    outcomes["replied"] += 1
                except RingpostError as error:
                    outcomes[error.code] = outcomes.get(error.code, 0) + 1
                    await asyncio.sleep(0.001)

        options = {"port": server.port, "reconnect_interval": 0.01}
        async with Client(**options, action="x", request_handler=one) as handler, Client(**options) as client:
            tasks = [asyncio.create_task(ask(client)) for _ in range(32)]
            for _ in range(4):
                replied = outcomes["replied"]
                await wait_until(lambda before=replied: outcomes["replied"] > before + 100)
                await asyncio.to_thread(server.restart)
            replied = outcomes["replied"]
            await wait_until(lambda: outcomes["replied"] > replied + 100)
            over = True
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
            assert client._link.connection.open_requests == 0
            assert handler._link.connection.held_deliveries == 0
        assert outcomes.keys() <= {"replied", "connectionLost", "noHandler", "handlerLost"}, outcomes


async def test_no_growth(plain_server):
    """A hundred thousand requests leave neither memory nor references behind."""
    async with Client(port=plain_server.port, action="x", request_handler=one, concurrency=256) as client:

        async def ask(count):
            for number in range(count):
                await client.request("x", number)

        async def measured(count):
            await asyncio.gather(*(ask(count // 100) for _ in range(100)))
            gc.collect()
            kinds = (_ringpost.Reply, _ringpost.Delivery, asyncio.Future, asyncio.Task)
            objects = sum(isinstance(each, kinds) for each in gc.get_objects())
            return sys.getallocatedblocks(), objects, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        await measured(5_000)
        blocks, objects, resident = await measured(5_000)
        blocks_after, objects_after, resident_after = await measured(90_000)
        # What is left may differ by what is in flight, never by what was.
        assert blocks_after - blocks < 2_000
        assert objects_after - objects < 200
        assert resident_after - resident < 16 << 10
        assert client._link.connection.open_requests == 0
        assert client._link.connection.held_deliveries == 0


async def test_a_client_that_is_left_alone(plain_server):
    """A client that nobody closed ends with its event loop, and leaves nothing behind but a warning."""

    def in_a_loop_of_its_own():
        async def leave():
            client = await Client(port=plain_server.port, action="x", request_handler=one).start()
            assert (await client.request("x", 1)).data == [1]
            return weakref.ref(client), weakref.ref(client._link.connection)

        with pytest.warns(ResourceWarning, match="never closed"):
            references = asyncio.run(leave())
            gc.collect()
        assert [reference() for reference in references] == [None, None]

    await asyncio.to_thread(in_a_loop_of_its_own)
    async with Client(port=plain_server.port) as client:
        changes = client.receivers_changes()
        async with asyncio.timeout(30):
            async for receivers in changes:
                if not receivers:
                    break
        await changes.aclose()


async def test_crowded(clients):
    """More than the client holds unsent waits for room, and arrives all the same."""

    async def size(data: bytes):
        return len(data)

    client = await clients(action="x", request_handler=size)
    payload = bytes(1 << 20)
    replies = await asyncio.gather(*(client.request("x", payload, timeout=60) for _ in range(40)))
    assert {reply.data for reply in replies} == {1 << 20}
