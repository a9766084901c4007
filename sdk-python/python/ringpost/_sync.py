"""The client for scripts, notebooks and threads."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from ringpost._call import BroadcastOptions, RequestOptions, SendOptions
from ringpost._client import Client
from ringpost._errors import ClosedError, RingpostError
from ringpost._events import Drained, Event, Unclaimed
from ringpost._handlers import HandlerFunction
from ringpost._options import ClientOptions
from ringpost._registration import Registration
from ringpost._ringpost import Reply
from ringpost._times import Seconds

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
Function = TypeVar("Function", bound=HandlerFunction)

_EXIT_PATIENCE = 2.0


class SyncClient:
    """A `Client` whose methods wait: the same methods, from any thread, and no event loop to care for.

    It begins with ``with`` or `start`. Handlers that are plain functions run in a few threads of their own, ``async``
    ones in the event loop of the client's own thread; a plain one may use this client. Ctrl-C ends a call at once, and
    with it its request.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8888, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(host, port, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return repr(self._client).replace("<Client", "<SyncClient", 1)

    # Beginning and end.

    def start(self) -> Self:
        """As `Client.start`."""
        if self._loop is not None:
            raise RuntimeError("a client starts once: make a new one")
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(loop,), name="ringpost-loop", daemon=True)
        self._thread.start()
        _started.add(self)
        try:
            self._wait(self._client.start())
        except BaseException:
            self._end()
            raise
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.drain(self._client.drain_timeout)
        else:
            self.close()

    def drain(self, timeout: Seconds = 10.0) -> Drained:
        """As `Client.drain`."""
        drained = self._wait(self._client.drain(timeout))
        self._end()
        return drained

    def close(self) -> None:
        """As `Client.close`."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._wait(self._client.close())
            finally:
                self._end()

    def closed(self) -> RingpostError:
        """As `Client.closed`: waits until the client is closed, and says why."""
        return self._wait(self._client.closed())

    def _end(self) -> None:
        _started.discard(self)
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(_EXIT_PATIENCE)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it in the client's loop, and waits for it; what interrupts the waiting cancels it."""
        try:
            self._open()
        except BaseException:
            work.close()
            raise
        loop = self._loop
        assert loop is not None, "an open client has a loop"
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _open(self) -> Client:
        """The client, if it may be asked here."""
        if self._client.is_forked:
            raise ClosedError("this client belongs to the process that this one was forked from: make a new one here")
        if self._loop is None or self._loop.is_closed():
            raise ClosedError("the client is not open: use `with`, or its `start()`")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "an async handler must not wait for its own SyncClient: use a Client, or a plain function"
            )
        return self._client

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def next_item() -> tuple[T, ...]:
            async for item in items:
                return (item,)
            return ()

        while item := self._wait(next_item()):
            yield item[0]

    # Requests.

    @overload
    def request(self, action: str, data: Any = None, /, **options: Unpack[RequestOptions]) -> Reply: ...

    @overload
    def request(
        self,
        message: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        timeout_ms: float | None = None,
        /,
    ) -> Any: ...

    def request(self, action: Any, data: Any = None, timeout_ms: Any = None, /, **options: Any) -> Any:
        """As `Client.request`. ``on_progress`` is called in the client's own thread."""
        return self._wait(self._open().request(action, data, timeout_ms, **options))

    def broadcast(
        self, action: str, data: Any = None, /, **options: Unpack[BroadcastOptions]
    ) -> list[Reply | RingpostError]:
        """As `Client.broadcast`."""
        return self._wait(self._open().broadcast(action, data, **options))

    def send(self, action: str, data: Any = None, /, **options: Unpack[SendOptions]) -> None:
        """As `Client.send`."""
        self._wait(self._open().send(action, data, **options))

    # Handlers.

    def handler(
        self, action: str, *, concurrency: int | None = None, stop_on_cancel: bool = False
    ) -> Callable[[Function], Function]:
        """As `Client.handler`; on a client that has started, it waits until the broker has taken the registration."""
        if self._loop is None:
            return self._client.handler(action, concurrency=concurrency, stop_on_cancel=stop_on_cancel)

        def register(function: Function) -> Function:
            self.handle(action, function, concurrency=concurrency, stop_on_cancel=stop_on_cancel)
            return function

        return register

    def handle(
        self,
        action: str,
        function: HandlerFunction,
        *,
        concurrency: int | None = None,
        stop_on_cancel: bool = False,
    ) -> SyncRegistration:
        """As `Client.handle`."""
        registration = self._wait(
            self._client.handle(action, function, concurrency=concurrency, stop_on_cancel=stop_on_cancel)
        )
        return SyncRegistration(self, registration)

    # News.

    @property
    def connected(self) -> bool:
        """As `Client.connected`."""
        return self._client.connected

    @property
    def receivers(self) -> list[str]:
        """As `Client.receivers`."""
        return self._client.receivers

    def receivers_changes(self) -> Iterator[list[str]]:
        """As `Client.receivers_changes`."""
        return self._each(self._client.receivers_changes())

    def events(self) -> Iterator[Event]:
        """As `Client.events`."""
        return self._each(self._client.events())

    def unclaimed_replies(self) -> Iterator[Unclaimed]:
        """As `Client.unclaimed_replies`."""
        return self._each(self._client.unclaimed_replies())


class SyncRegistration:
    """A handler's registration. It stays until `deregister` or the client's end."""

    def __init__(self, client: SyncClient, registration: Registration) -> None:
        self._client = client
        self._registration = registration
        self.action = registration.action

    def set_concurrency(self, concurrency: int) -> None:
        """As `Registration.set_concurrency`."""
        self._registration.set_concurrency(concurrency)

    def deregister(self) -> None:
        """As `Registration.deregister`."""
        self._client._wait(self._registration.deregister())

    def __repr__(self) -> str:
        return repr(self._registration)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_started: weakref.WeakSet[SyncClient] = weakref.WeakSet()


def _close_all() -> None:
    """At the interpreter's end: threads that would go on would find no interpreter."""
    for client in list(_started):
        if not client._client.is_forked:
            client._client.abandon()
            client._end()


atexit.register(_close_all)
