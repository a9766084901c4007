"""SyncClient: the same client for scripts, notebooks and threads."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringpost import (
    ClosedError,
    ConnectError,
    NoHandlerError,
    RemoteError,
    RequestTimeoutError,
    SyncClient,
)


def double(value):
    return 2 * value


async def double_async(value):
    await asyncio.sleep(0)
    return 2 * value


@pytest.fixture
def client(plain_server):
    with SyncClient(port=plain_server.port, action="double", request_handler=double) as client:
        yield client


def test_requests(client, caplog):
    """Every kind of request works without a loop, in both forms, and errors are raised where it is made."""
    assert client.request("double", 21).data == 42
    assert client.request({"action": "double", "data": 4}, {"ttl": 1000}, 1000).data == 8
    assert [leg.data for leg in client.broadcast("double", 2, timeout=10)] == [4]
    client.send("double", 1)
    with pytest.raises(NoHandlerError):
        client.request("nobody")
    with pytest.raises(RemoteError):
        client.request("double", None)
    caplog.clear()
    with pytest.raises(TypeError):
        client.request("double", 1, 1000)
    assert client.connected
    assert next(filter(None, client.receivers_changes())) == client.receivers == ["double"]
    assert repr(client).startswith("<SyncClient 127.0.0.1:")


def test_handlers(client):
    """Handlers are added by decorator and by call, plain and async; a plain one may use the client itself."""

    @client.handler("quadruple")
    def quadruple(value):
        return client.request("double", client.request("double", value).data).data

    registration = client.handle("async", double_async)
    assert client.request("quadruple", 1).data == 4
    assert client.request("async", 1).data == 2
    registration.set_concurrency(2)
    registration.deregister()
    with pytest.raises(NoHandlerError):
        client.request("async", 1)


def test_an_async_handler_must_not_wait(client):
    """An async handler that waits for its own SyncClient would wait for ever: it is told so."""

    async def wrong(value):
        try:
            client.request("double", value)
        except RuntimeError as error:
            return str(error)

    client.handle("wrong", wrong)
    assert "must not wait" in client.request("wrong", 1).data


def test_many_threads(client):
    """Threads share a client; each gets its own replies."""
    with ThreadPoolExecutor(16) as pool:
        replies = pool.map(lambda value: client.request("double", value).data, range(400))
        assert list(replies) == [2 * value for value in range(400)]


def test_timeout(client):
    """A timeout ends the wait, with the requester's own error."""
    released = threading.Event()

    def slow(value):
        assert released.wait(30)

    client.handle("slow", slow)
    with pytest.raises(RequestTimeoutError):
        client.request("slow", timeout=0.02)
    released.set()


def test_beginning_and_end(plain_server):
    """What is asked of a client before its start and behind its end is a clear error; its thread ends with it."""
    before = threading.active_count()
    client = SyncClient(port=plain_server.port)
    with pytest.raises(ClosedError, match="not open"):
        client.request("x")
    client.start()
    with pytest.raises(RuntimeError, match="starts once"):
        client.start()
    assert client.drain(10).is_complete
    with pytest.raises(ClosedError):
        client.request("x")
    client.close()
    with pytest.raises(ConnectError), SyncClient(port=1):
        pass
    assert threading.active_count() == before


def test_closed_says_why(plain_server):
    """closed() waits in one thread for the end that comes from another."""
    client = SyncClient(port=plain_server.port, reconnect=False).start()
    threading.Timer(0.05, plain_server.stop).start()
    assert client.closed().code == "connectionLost"
    client.close()


def test_streams(plain_server):
    """Events and changes of the receivers come as iterators too."""
    with SyncClient(port=plain_server.port) as client:
        changes = client.receivers_changes()
        assert next(changes) == []
        client.handle("x", double)
        assert next(changes) == ["x"]
        changes.close()
