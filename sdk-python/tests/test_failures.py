"""What becomes of what handlers raise."""

import asyncio

import pytest

from ringpost import HandlerError, ProtocolError, RemoteError, Reply


class Unprintable(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ValueError("no such order"), "no such order", "ValueError"),
        (KeyError("id"), "'id'", "KeyError"),
        (Unprintable(), "Unprintable", "Unprintable"),
        (RecursionError("deep"), "deep", "RecursionError"),
        (StopIteration(), "coroutine raised StopIteration", "RuntimeError"),
        (ProtocolError("inner", code="malformed"), "inner", "malformed"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_exceptions(clients, caplog, error, message, code, is_async):
    """A handler's exception reaches the requester with its text and type, and the log with its traceback."""
    if isinstance(error, StopIteration) and not is_async:
        pytest.skip("a plain function may raise it like any other")

    async def bad_async():
        raise error

    def bad_plain():
        raise error

    client = await clients()
    await client.handle("x", bad_async if is_async else bad_plain)
    with pytest.raises(RemoteError) as caught:
        await client.request("x", 1)
    assert caught.value.message == message
    assert caught.value.handler_code == code
    assert caught.value.code == "remote"
    [record] = [record for record in caplog.records if record.name == "ringpost"]
    assert record.exc_info is not None
    assert "'x'" in record.getMessage()
    caplog.clear()


async def test_an_error_of_the_handlers_own(clients):
    """A HandlerError is an answer: its code and text reach the requester, and nothing is logged."""

    async def refuse(data):
        raise HandlerError("sold out", code="soldOut")

    client = await clients(action="x", request_handler=refuse)
    with pytest.raises(RemoteError, match=r"^sold out$") as caught:
        await client.request("x", 1)
    assert caught.value.handler_code == "soldOut"


async def test_a_reply_that_cannot_be_written(clients, caplog):
    """What a handler returns and JSON cannot say is an error for the requester; nobody waits."""

    async def bad(data):
        return object()

    async def bad_options(data):
        return Reply(1, options=object())

    async def bad_headers(data):
        return Reply(1, headers={"k" * 300: "v"})

    client = await clients()
    for function in (bad, bad_options, bad_headers):
        registration = await client.handle("x", function)
        with pytest.raises(RemoteError):
            await client.request("x", 1)
        await registration.deregister()
    assert len(caplog.records) == 3
    caplog.clear()


async def test_a_handler_that_cancels_itself(clients):
    """A CancelledError of the handler's own is its failure, and harms no other request."""

    async def bad(data):
        if data == 0:
            raise asyncio.CancelledError("own")
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    client = await clients(action="x", request_handler=bad)
    for data in (0, 1, 0, 1):
        with pytest.raises(RemoteError) as caught:
            await client.request("x", data)
        assert caught.value.handler_code == "CancelledError"
