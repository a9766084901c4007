"""What all tests share: both kinds of event loop, servers, clients."""

import contextlib
import logging

import pytest

from ringpost import Client
from ringpost.testing import Server

LOOPS = {"asyncio": False, "uvloop": True}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def anyio_backend(request):
    """Every test that is a coroutine runs on asyncio's own loop, and on uvloop's."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def server(ringpost_server):
    return ringpost_server


@pytest.fixture
def plain_server():
    """A server without a log, for tests of what is not durable: it starts faster."""
    with Server(durable=False) as server:
        yield server


@pytest.fixture
async def clients(plain_server):
    """Makes started clients of one server that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options):
            return await stack.enter_async_context(Client(port=plain_server.port, **options))

        yield make


@pytest.fixture(autouse=True)
def nothing_logged(caplog):
    """A test whose handlers do not fail leaves no errors in the log; one whose handlers do clears them."""
    yield
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors
