"""What handlers are called with: data, options and the request, as their parameters ask for it."""

import functools

import pytest
from shared import one, two

from ringpost import Request


async def none():
    return "none"


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
