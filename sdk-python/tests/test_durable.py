"""Durable requests and sends: what outlives handlers, servers and this very process."""

import asyncio
import signal
import subprocess
import sys
import textwrap

import pytest
from shared import wait_until

from ringpost import (
    Client,
    ExpiredError,
    HandlerError,
    Reject,
    RemoteError,
    Reply,
    Retry,
    RingpostError,
    StorageError,
)
from ringpost.testing import Server


async def test_without_a_folder(clients):
    """A server that keeps nothing refuses durable requests, and the error says so."""
    client = await clients()
    with pytest.raises(StorageError) as caught:
        await client.send("jobs", 1, durable=True)
    assert caught.value.code == "durableUnavailable"


async def test_a_send_outlives_the_server(server):
    """What was accepted is delivered after the server was stopped and started again, to a handler that comes later."""
    done = asyncio.Queue()
    async with Client(port=server.port, reconnect_interval=0.01) as client:
        await client.send("jobs", {"id": 7}, durable=True)
        await asyncio.to_thread(server.restart)

        async def job(data):
            done.put_nowait(data)

        await wait_until(lambda: client.connected)
        await client.handle("jobs", job)
        assert await asyncio.wait_for(done.get(), 30) == {"id": 7}


async def test_a_request_waits_for_its_handler(server):
    """A durable request without a handler waits for one; one under the same key runs once, and both get its reply."""
    runs = []

    async def handle(data):
        runs.append(data)
        return len(runs)

    async with Client(port=server.port) as client:
        asked = [
            asyncio.create_task(client.request("x", n, durable=True, idempotency_key="k", timeout=60, ttl=60))
            for n in range(3)
        ]
        await wait_until(lambda: client._link.connection.open_requests == 3)
        await client.handle("x", handle)
        replies = await asyncio.wait_for(asyncio.gather(*asked), 30)
        assert [reply.data for reply in replies] == [1, 1, 1]
        assert runs == [0]


async def test_ttl(server):
    """A durable request whose ttl ends before a handler comes is expired."""
    async with Client(port=server.port) as client:
        with pytest.raises(ExpiredError):
            await client.request("nobody", 1, durable=True, ttl=0.02, timeout=30)


async def test_retry_and_reject(server):
    """A handler of a durable send may ask for it again, later, and may refuse it for good."""
    attempts = []

    async with Client(port=server.port) as client:

        @client.handler("jobs")
        async def job(data):
            attempts.append(data)
            if data == "retry" and attempts.count(data) < 3:
                raise Retry("not yet", after=0.01)
            if data == "reject":
                raise Reject("never", code="bad")

        await client.send("jobs", "retry", durable=True)
        await client.send("jobs", "reject", durable=True)
        await wait_until(lambda: attempts.count("retry") == 3)
        await client.send("jobs", "last", durable=True)
        await wait_until(lambda: "last" in attempts)
        assert attempts.count("reject") == 1


async def test_another_handler_gets_it(server):
    """With attempts left, a request goes to another handler when one dies over it, which knows which attempt it is."""
    from ringpost import Request

    began = asyncio.Event()

    async def hang(data):
        began.set()
        await asyncio.sleep(600)

    async def second(request: Request):
        return request.attempt

    async with Client(port=server.port) as client:
        dying = await Client(port=server.port, action="x", request_handler=hang).start()
        asked = asyncio.create_task(client.request("x", 1, max_attempts=2, timeout=60))
        await began.wait()
        await client.handle("x", second)
        await dying.close()
        assert (await asyncio.wait_for(asked, 30)).data == 2


REQUESTER = """
    import asyncio, sys
    from ringpost import Client

    async def main():
        async with Client(port=int(sys.argv[1]), session="orders-1", reconnect_interval=0.01) as client:
            asked = [
                asyncio.create_task(
                    client.request("order", n, durable=True, idempotency_key=f"order-{n}", timeout=600,
                                   headers={"customer": str(n)})
                )
                for n in range(3)
            ]
            # On disk before anything else is said.
            await client.send("accepted", None, durable=True)
            print("accepted", flush=True)
            await asyncio.gather(*asked)

    asyncio.run(main())
"""


def start_requester(port):
    program = textwrap.dedent(REQUESTER)
    return subprocess.Popen([sys.executable, "-c", program, str(port)], stdout=subprocess.PIPE)


async def test_replies_for_a_process_that_was_killed():
    """Durable replies wait for the session's next process when the first was killed; the server was restarted, too."""
    with Server() as server:
        process = start_requester(server.port)
        try:
            assert await asyncio.to_thread(process.stdout.readline) == b"accepted\n"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert process.returncode == -signal.SIGKILL
        await asyncio.to_thread(server.restart)

        async def handle(data):
            if data == 1:
                raise HandlerError("sold out")
            return {"order": data}

        async with Client(port=server.port, action="order", request_handler=handle) as handler:
            successor = Client(port=server.port, session="orders-1", unclaimed_replies=True)
            async with successor:
                collected = []
                async with asyncio.timeout(60):
                    async for unclaimed in successor.unclaimed_replies():
                        if unclaimed.action != "order":
                            continue
                        collected.append(unclaimed)
                        if len(collected) == 3:
                            break
                assert [each.idempotency_key for each in sorted(collected, key=lambda each: each.number)] == [
                    "order-0",
                    "order-1",
                    "order-2",
                ]
                by_key = {each.idempotency_key: each for each in collected}
                first, second = by_key["order-0"], by_key["order-1"]
                assert isinstance(first.result, Reply)
                assert first.result.data == {"order": 0}
                assert first.headers[0] == ("customer", "0")
                assert first.leg is None
                assert first.info.attempt >= 1
                assert isinstance(second.result, RemoteError)
                assert second.result.message == "sold out"
            assert handler.connected


async def test_unclaimed_ends_with_the_client(server):
    """The iterator of unclaimed replies ends when the client does."""
    client = await Client(port=server.port, session="s", unclaimed_replies=True).start()

    async def collect():
        return [unclaimed async for unclaimed in client.unclaimed_replies()]

    collecting = asyncio.create_task(collect())
    await asyncio.sleep(0)
    await client.close()
    assert await asyncio.wait_for(collecting, 30) == []


async def test_a_handler_that_comes_back(server):
    """A handler at work when the server is restarted keeps its durable request, and its answer arrives."""
    began, released = asyncio.Event(), asyncio.Event()
    runs = []

    async def handle(data):
        runs.append(data)
        began.set()
        await released.wait()
        return "done"

    options = {"port": server.port, "reconnect_interval": 0.01}
    async with Client(**options, action="x", request_handler=handle) as handler, Client(**options) as client:
        asked = asyncio.create_task(client.request("x", 1, durable=True, timeout=60))
        await began.wait()
        await asyncio.to_thread(server.restart)
        await wait_until(lambda: handler.connected and client.connected)
        released.set()
        try:
            assert (await asyncio.wait_for(asked, 60)).data == "done"
        except RingpostError as error:
            pytest.fail(f"{error.code}: {error}")
        assert runs == [1]
