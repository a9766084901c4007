"""What handlers can notice: tasks, contexts, cancellation, concurrency, their registration."""

import asyncio
import contextvars
import itertools
import threading
import time

import pytest
from shared import one, two, wait_until

from ringpost import RemoteError, Request, RequestTimeoutError


async def test_handlers_run_at_the_same_time(clients):
    """As many as the concurrency allows are at work at once, async and plain."""
    together = asyncio.Barrier(20)

    async def meet(data):
        await together.wait()
        return data

    barrier = threading.Barrier(8)

    def meet_in_threads(data):
        barrier.wait(30)
        return data

    client = await clients(concurrency=20)
    await client.handle("async", meet)
    await client.handle("plain", meet_in_threads)
    replies = await asyncio.gather(*(client.request("async", i) for i in range(20)))
    assert [reply.data for reply in replies] == list(range(20))
    replies = await asyncio.gather(*(client.request("plain", i) for i in range(8)))
    assert [reply.data for reply in replies] == list(range(8))


async def test_concurrency_is_kept_to(clients):
    """The broker never hands out more at once than the handler said; it may change its mind."""
    now, most = 0, 0

    async def handle(data):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    client = await clients()
    registration = await client.handle("x", handle, concurrency=3)
    await asyncio.gather(*(client.request("x", i) for i in range(50)))
    assert most == 3
    registration.set_concurrency(1)
    await client.request("x", 0)
    most = 0
    await asyncio.gather(*(client.request("x", i) for i in range(20)))
    assert most == 1


async def test_what_waits_holds_up_nobody(clients):
    """While one handler waits, others that came with it are handled and answered, and so are later ones."""
    released = asyncio.Event()

    async def handle(data):
        if data == "wait":
            await released.wait()
        return data

    client = await clients(action="x", request_handler=handle)
    order = ["a", "wait", "b", "wait", "c"]
    tasks = [asyncio.create_task(client.request("x", data)) for data in order]
    for task, data in zip(tasks, order, strict=True):
        if data != "wait":
            assert (await asyncio.wait_for(asyncio.shield(task), 30)).data == data
    assert (await client.request("x", "later")).data == "later"
    assert not tasks[1].done()
    released.set()
    assert [(await task).data for task in tasks] == order


async def test_a_handler_is_in_a_task(clients):
    """What needs a current task works in a handler: timeouts, task groups, anyio's scopes."""
    import anyio

    async def handle(data):
        assert asyncio.current_task() is not None
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(one(1)), group.create_task(one(2))
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(60)
        assert scope.cancelled_caught
        return first.result() + second.result()

    client = await clients(action="x", request_handler=handle)
    replies = await asyncio.gather(*(client.request("x") for _ in range(20)))
    assert all(reply.data == [1, 2] for reply in replies)


variable = contextvars.ContextVar("variable", default="unset")


async def test_context_of_a_handler(clients):
    """Each request has the client's context to itself: what one sets no other sees, also behind an await."""
    seen = []

    async def handle(data):
        seen.append(variable.get())
        variable.set(data)
        if data % 2:
            await asyncio.sleep(0)
        assert variable.get() == data
        task = asyncio.create_task(read())
        assert await task == data

    async def read():
        return variable.get()

    variable.set("the client's")
    client = await clients(action="x", request_handler=handle)
    variable.set("the requester's")
    await asyncio.gather(*(client.request("x", i) for i in range(20)))
    assert seen == ["the client's"] * 20


async def test_facts_of_a_request(clients):
    """A Request tells what is known of it."""
    facts = {}

    async def handle(request: Request):
        facts.update(
            action=request.action,
            bytes=request.bytes,
            headers=request.headers,
            attempt=request.attempt,
            time_left=request.time_left,
            is_send=request.is_send,
            is_broadcast=request.is_broadcast,
            cancelled=request.cancelled,
            received_at=request.received_at,
            shown=repr(request),
            id=request.id,
        )

    client = await clients(action="x", request_handler=handle)
    await client.request("x", [1], timeout=60, headers=[("a", "1"), ("a", "2")])
    assert facts["action"] == "x"
    assert facts["bytes"] == b"[1]"
    assert facts["headers"] == [("a", "1"), ("a", "2")]
    assert facts["attempt"] == 1
    assert 50 < facts["time_left"] <= 60
    assert not facts["is_send"]
    assert not facts["is_broadcast"]
    assert not facts["cancelled"]
    assert abs(facts["received_at"].timestamp() - time.time()) < 60
    assert facts["id"] in facts["shown"]
    first = facts["id"]
    await client.broadcast("x")
    assert facts["is_broadcast"]
    assert facts["id"] != first
    facts.clear()
    await client.send("x")
    await wait_until(lambda: facts)
    assert facts["is_send"]
    assert facts["time_left"] is None or facts["time_left"] > 0


async def test_stop_on_cancel(clients):
    """With stop_on_cancel a handler is cancelled when its requester gives up, and its worker goes on."""
    ended = []

    async def handle(data):
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(data)

    client = await clients()
    await client.handle("x", handle, stop_on_cancel=True)
    for data in range(3):
        with pytest.raises(RequestTimeoutError):
            await client.request("x", data, timeout=0.01)
    await wait_until(lambda: ended == [0, 1, 2])


async def test_a_handler_that_ignores_its_cancellation(clients):
    """A handler that goes on although it was cancelled harms no later request of its worker."""

    async def handle(data):
        if data == "ignores":
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                return "too late"
        if data == "cancelled":
            raise asyncio.CancelledError
        return data

    client = await clients()
    await client.handle("x", handle, stop_on_cancel=True)
    for _ in range(3):
        with pytest.raises(RequestTimeoutError):
            await client.request("x", "ignores", timeout=0.01)
        with pytest.raises(RemoteError):
            await client.request("x", "cancelled", timeout=30)
        assert (await client.request("x", "good", timeout=30)).data == "good"


async def test_a_plain_handler_may_use_the_client(clients):
    """Plain functions run outside the loop: they may block, and ask through run_coroutine_threadsafe."""
    loop = asyncio.get_running_loop()
    client = await clients(action="inner", request_handler=one)

    def outer(data):
        assert threading.current_thread() is not threading.main_thread()
        return asyncio.run_coroutine_threadsafe(client.request("inner", data), loop).result(30).data

    await client.handle("outer", outer)
    assert (await client.request("outer", 1)).data == [1]


async def test_deregister(clients):
    """A handler that has deregistered gets nothing more, and others can take its place."""
    from ringpost import NoHandlerError

    client = await clients()
    registration = await client.handle("x", one)
    assert repr(registration) == "<Registration 'x'>"
    assert (await client.request("x", 1)).data == [1]
    await registration.deregister()
    with pytest.raises(NoHandlerError):
        await client.request("x", 1)
    await registration.deregister()
    await client.handle("x", two)
    assert (await client.request("x", 1)).data == [1, {}]


async def test_decorated_handlers(clients):
    """Handlers are added by decorator, before the start and behind it; receivers tells of them."""
    client = await clients()

    @client.handler("sum")
    async def total(data: list[int]) -> int:
        return sum(data)

    await wait_until(lambda: client.receivers == ["sum"])
    assert (await client.request("sum", [1, 2])).data == 3
    assert await total([4]) == 4


async def test_receivers_changes(clients):
    """The list of receivers comes at once, and again when it changes."""
    client = await clients()
    watcher = await clients(watch_receivers=False)
    assert watcher.receivers == []
    changes = watcher.receivers_changes()
    assert await anext(changes) == []
    registration = await client.handle("x", one)
    assert await asyncio.wait_for(anext(changes), 30) == ["x"]
    assert watcher.receivers == ["x"]
    await registration.deregister()
    assert await asyncio.wait_for(anext(changes), 30) == []
    await changes.aclose()


async def test_task_interval(clients):
    """With a task_interval requests reach the handlers one after the other, that far apart."""
    times = []

    async def handle(data):
        times.append(time.monotonic())

    client = await clients(action="x", request_handler=handle, task_interval=0.01)
    await asyncio.gather(*(client.request("x") for _ in range(5)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Not their exact length: that they are there at all.
    assert sum(gaps) > 0.02
