"""Handlers: how they are called, what becomes of what they return and raise, and what they can notice."""

import asyncio
import contextvars
import functools
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from ringpost import (
    HandlerError,
    ProtocolError,
    RemoteError,
    Reply,
    Request,
    RequestTimeoutError,
)


async def wait_until(condition):
    """Waits for what must come, with a deadline."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


# What is called.


async def none():
    return "none"


async def one(data):
    return [data]


async def two(data, options):
    return [data, options]


async def more(data, options, extra="own"):
    return [data, options, extra]


async def rest(*arguments):
    return list(arguments)


async def request_only(request: Request):
    return [request.data, request.options, request.action]


async def data_and_request(data, request: Request):
    return [data, request.data]


async def by_name(data, *, request: Request):
    return [data, request.header("a")]


def plain(data, options):
    return [data, options]


class Callable:
    async def __call__(self, data):
        return ["called", data]

    async def method(self, data, options):
        return ["method", data, options]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (none, "none"),
        (one, [1]),
        (two, [1, {"o": 2}]),
        (more, [1, {"o": 2}, "own"]),
        (rest, [1, {"o": 2}]),
        (request_only, [1, {"o": 2}, "x"]),
        (data_and_request, [1, 1]),
        (by_name, [1, "b"]),
        (plain, [1, {"o": 2}]),
        (lambda data: data + 1, 2),
        (functools.partial(two, options="mine"), None),
        (functools.partial(more, extra="set"), [1, {"o": 2}, "set"]),
        (Callable(), ["called", 1]),
        (Callable().method, ["method", 1, {"o": 2}]),
        (str, "1"),
    ],
    ids=lambda value: getattr(value, "__qualname__", repr(value))[:40] if callable(value) else "",
)
async def test_parameters(clients, function, expected):
    """A handler takes as many parameters as it likes, whatever kind of callable it is."""
    client = await clients()
    if expected is None:
        # Its options have a value already: what is left is the data.
        expected = [1, "mine"]
    await client.handle("x", function)
    reply = await client.request("x", 1, options={"o": 2}, headers={"a": "b"})
    assert reply.data == expected


async def too_many(data, options, third):
    return None


async def nothing_for(data, *, third):
    return None


@pytest.mark.parametrize("function", [too_many, nothing_for])
async def test_parameters_that_there_is_nothing_for(clients, function):
    """A handler that could never be called is refused when it is given."""
    client = await clients()
    with pytest.raises(TypeError, match="'third'"):
        await client.handle("x", function)
    with pytest.raises(TypeError, match="a handler is a function"):
        client.handler("x")(7)
    with pytest.raises(ValueError, match="concurrency"):
        client.handler("x", concurrency=0)(one)


# Types.


@dataclass
class Item:
    name: str
    price: float = 1.0


@dataclass
class Order:
    items: list[Item]
    kind: Literal["new", "old"] = "new"
    note: str | None = None
    tags: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.items) > 3:
            raise ValueError("too many items")


class Point(TypedDict):
    x: int
    y: NotRequired[float]


class Model(pydantic.BaseModel):
    number: int


class Struct(msgspec.Struct):
    number: int


async def order(data: Order) -> Order:
    assert isinstance(data, Order)
    assert all(isinstance(item, Item) for item in data.items)
    return data


async def point(data: Point) -> Point:
    return data


async def model(data: Model) -> Model:
    return Model(number=data.number + 1)


async def struct(data: Struct) -> Struct:
    return Struct(number=data.number + 1)


async def annotated(data: Annotated[list[Model], "of models"]) -> list[int]:
    return [model.number for model in data]


async def anything(data: Any) -> Any:
    return data


async def number(data: int) -> int:
    return data


async def mapping(data: dict) -> dict:
    return data


@pytest.mark.parametrize(
    ("function", "data", "expected"),
    [
        (
            order,
            {"items": [{"name": "a"}]},
            {"items": [{"name": "a", "price": 1.0}], "kind": "new", "note": None, "tags": {}},
        ),
        (
            order,
            {"items": [], "tags": {"a": 1}, "other": 1},
            {"items": [], "kind": "new", "note": None, "tags": {"a": 1}},
        ),
        (point, {"x": 1}, {"x": 1}),
        (point, {"x": 1, "y": 2}, {"x": 1, "y": 2.0}),
        (model, {"number": 1}, {"number": 2}),
        (struct, {"number": 1}, {"number": 2}),
        (annotated, [{"number": 1}, {"number": 2}], [1, 2]),
        (anything, [None], [None]),
        (number, 5, 5),
        (mapping, {}, {}),
    ],
)
async def test_data_of_a_type(clients, function, data, expected):
    """Annotations name dataclasses, TypedDicts, pydantic models, msgspec structs: they are made, and written."""
    client = await clients()
    await client.handle("x", function)
    assert (await client.request("x", data)).data == expected


@pytest.mark.parametrize(
    ("function", "data", "says"),
    [
        (order, {}, "`items` is missing"),
        (order, {"items": [{"name": "a"}, {"name": 1}]}, r"at `items\[1\].name`: a string is wanted, not int 1"),
        (order, {"items": [{}]}, r"at `items\[0\]`: `name` is missing"),
        (order, {"items": [], "kind": "other"}, "at `kind`: one of 'new', 'old' is wanted"),
        (order, {"items": [], "note": 1}, "at `note`"),
        (order, {"items": [], "tags": {"a": "b"}}, "at `tags.a`: an integer is wanted"),
        (order, {"items": [{"name": "a"}] * 4}, "too many items"),
        (order, 7, "an object is wanted, not int 7"),
        (point, {"y": 1}, "`x` is missing"),
        (model, {"number": "x"}, "valid integer"),
        (struct, {"number": "x"}, r"Expected `int`, got `str` - at `\$.number`"),
        (annotated, [{}], r"at `\[0\]`"),
        (number, True, "an integer is wanted, not bool True"),
        (number, None, "an integer is wanted, not null"),
        (mapping, [], "an object is wanted"),
        (one, b"\xff{", "cannot be read as JSON"),
        (struct, b"{", "cannot be read as asked for"),
    ],
)
async def test_data_of_another_type(clients, function, data, says):
    """Data of another type is answered with an error that names the place; that is nothing to log."""
    client = await clients()
    await client.handle("x", function)
    with pytest.raises(RemoteError, match=says) as caught:
        await client.request("x", data)
    assert caught.value.handler_code == "malformed"


async def test_annotations_that_only_a_type_checker_sees(clients):
    """A handler whose annotations name nothing at run time gets its data as it is."""

    async def handle(data: "Nowhere"):  # noqa: F821
        return data

    client = await clients(action="x", request_handler=handle)
    assert (await client.request("x", [1])).data == [1]


# Failures.


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


# What a handler can notice.


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
