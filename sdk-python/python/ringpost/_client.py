"""The client for asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from ringpost import _json
from ringpost._call import (
    BROADCAST,
    SEND,
    BroadcastOptions,
    RequestOptions,
    SendOptions,
    call,
    reference_call,
)
from ringpost._errors import ClosedError, RingpostError
from ringpost._events import Closed, Drained, Event, Unclaimed
from ringpost._handlers import Handler, HandlerFunction
from ringpost._link import Link, elsewhere
from ringpost._registration import Registration
from ringpost._ringpost import Connection, Reply
from ringpost._threads import Threads
from ringpost._times import Seconds, interval_ms, milliseconds

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger("ringpost")

Function = TypeVar("Function", bound=HandlerFunction)


class Client:
    """A connection to a Ringpost server that is kept: requests, handlers and news go over it.

    It begins with ``async with`` or `start`, and belongs to the event loop in which that happens; to make it needs no
    loop. Times are seconds or `timedelta`.

    ``host``, ``port``
        Where the server is.
    ``action``, ``request_handler``
        An action and the function that handles it; `handler` adds more.
    ``secure_key``
        The key that the server has too, as ``ringpost keygen`` wrote it, or any passphrase. Without it, the one in the
        file that the environment's ``RINGPOST_SECURE_KEY_FILE`` names, or else that of ``RINGPOST_SECURE_KEY``, if one
        of them is set.
    ``reconnect``, ``reconnect_interval``, ``max_reconnects``, ``retry_initial``
        Whether to connect again when the connection is lost; the pause before that, which grows to ten times this while
        tries fail; how many tries may fail in a row; and whether `start` too goes on trying when there is no server.
    ``task_interval``
        The least time between two requests that are given to handlers.
    ``concurrency``
        How many requests a handler may hold at once, unless `handler` says so itself.
    ``threads``
        How many threads run handlers that are plain functions.
    ``default_request_timeout``
        How long requests wait unless they say so themselves.
    ``session``, ``unclaimed_replies``
        A name under which a later process gets the replies that this one did not live to get, and whether this process
        wants those of an earlier one: see `unclaimed_replies`.
    ``max_pending``
        How many requests may wait while there is no connection; more fail with `OverloadedError`.
    ``watch_receivers``
        Whether to be told the `receivers`.
    ``drain_timeout``
        How long the end of an ``async with`` block waits for what is open.
    ``on_event``
        Called in the event loop with each `Event`. What it raises is logged and changes nothing.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8888,
        *,
        action: str | None = None,
        request_handler: HandlerFunction | None = None,
        secure_key: str | None = None,
        reconnect: bool = True,
        reconnect_interval: Seconds = 1.0,
        max_reconnects: int | None = None,
        retry_initial: bool = False,
        task_interval: Seconds = 0.0,
        concurrency: int = 64,
        threads: int = 8,
        default_request_timeout: Seconds = 10.0,
        session: str | None = None,
        unclaimed_replies: bool = False,
        max_pending: int = 65_536,
        watch_receivers: bool = True,
        drain_timeout: Seconds = 10.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if request_handler is not None and action is None:
            raise TypeError("a request_handler needs an action to handle")
        if threads < 1:
            raise ValueError(f"threads is at least 1: {threads}")
        self._host = host
        self._port = port
        self._concurrency = concurrency
        self._threads = threads
        self.drain_timeout = drain_timeout
        self._watch_receivers = watch_receivers
        self._on_event = on_event
        self._options: dict[str, Any] = {
            "session": session,
            "unclaimed_replies": unclaimed_replies,
            "reconnect": reconnect,
            "reconnect_interval_ms": interval_ms(reconnect_interval, "reconnect_interval"),
            "max_reconnects": max_reconnects,
            "retry_initial": retry_initial,
            "task_interval_ms": interval_ms(task_interval, "task_interval"),
            "default_timeout_ms": milliseconds(default_request_timeout, "default_request_timeout"),
            "max_pending": max_pending,
            "receivers": watch_receivers,
            "secure_key": secure_key,
        }
        self._planned: list[Handler] = []
        self._listeners: set[asyncio.Queue[Event]] = set()
        self._link: Link | None = None
        if action is not None and request_handler is not None:
            self.handler(action)(request_handler)

    def __repr__(self) -> str:
        if self._link is None:
            state = "not started"
        elif self._link.closed_by is not None:
            state = "closed"
        else:
            state = "connected" if self._link.connected else "connecting"
        actions = "".join(f" {handler.action!r}" for handler in self._planned)
        return f"<{type(self).__name__} {self._host}:{self._port}{actions} {state}>"

    # Beginning and end.

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that the client was started in: it cannot be used here."""
        return self._link is not None and self._link.connection.is_forked

    def abandon(self) -> None:
        """Closes at once and waits for nothing, from any thread: for the end of a program."""
        if self._link is not None:
            self._link.connection.close()

    async def start(self) -> Self:
        """Connects, and waits until the server has said welcome and taken all handlers.

        Raises `ConnectError` if there is no server (unless ``retry_initial``), `AuthError`, or what the server says
        against a handler. The client is closed then.
        """
        if self._link is not None:
            raise RuntimeError("a client starts once: make a new one")
        connection = Connection(self._host, self._port, **self._options)
        patience = self._options["default_timeout_ms"] / 1000
        link = self._link = Link(connection, Threads(self._threads), patience, self._happened)
        _started.add(self)
        try:
            registrations = [link.register(handler) for handler in self._planned]
            connection.start()
            await link.changed.wait_for(lambda: link.connected or link.closed_by)
            if link.closed_by is not None:
                raise link.closed_by
            for registration in registrations:
                await link.taken(registration)
            if self._watch_receivers:
                await link.changed.wait_for(lambda: link.receivers is not None or link.closed_by)
        except BaseException:
            connection.close()
            await link.ended
            raise
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.drain(self.drain_timeout)
        else:
            await self.close()

    async def drain(self, timeout: Seconds = 10.0) -> Drained:
        """Ends in good order: takes nothing new, finishes what is open, sends what handlers answered, then closes.

        After ``timeout`` it closes anyway, and says what was cut off. When the task that waits is cancelled, the
        draining goes on.
        """
        link = self._here()
        link.connection.drain_until(interval_ms(timeout, "timeout"))
        return await asyncio.shield(link.ended)

    async def close(self) -> None:
        """Ends at once: requests end with `ClosedError`, and what handlers would still answer is dropped."""
        if self._link is None:
            return
        link = self._here()
        link.connection.close()
        await asyncio.shield(link.ended)

    async def closed(self) -> RingpostError:
        """Waits until the client is closed, and says why: for programs that only handle."""
        link = self._here()
        await asyncio.shield(link.ended)
        return link.closed_by or ClosedError("the client was closed")

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None and not link.ended.done() and not self.is_forked:
            warnings.warn(f"{self!r} was never closed: use `async with`", ResourceWarning, source=self, stacklevel=2)
            link.connection.close()

    def _here(self) -> Link:
        link = self._link
        if link is None:
            raise ClosedError("the client has not been started: use `async with`, or await its `start()`")
        if asyncio.get_running_loop() is not link.loop:
            raise elsewhere()
        return link

    # Requests.

    # These give coroutines and are none themselves: what is around a request costs as much as the request.

    @overload
    def request(
        self, action: str, data: Any = None, /, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, Reply]: ...

    @overload
    def request(
        self,
        message: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        timeout_ms: float | None = None,
        /,
    ) -> Coroutine[Any, Any, Any]: ...

    def request(
        self, action: Any, data: Any = None, timeout_ms: Any = None, /, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        """A request to one of the action's handlers; gives its `Reply`.

        ``ttl``
            How long the broker may keep it. A plain request's is at least its timeout.
        ``timeout``
            How long to wait for the outcome; the handler is told. `RequestTimeoutError` when it is over.
        ``durable``
            It must survive crashes of the broker and of handlers.
        ``max_attempts``
            More than one lets it go to another handler when one dies over it.
        ``idempotency_key``
            Of all durable requests under this key only the first runs; the others get its outcome.
        ``options``, ``headers``
            For the handler.
        ``on_progress``
            Called with what a handler says while it is at work.

        Data is anything that has a form in JSON, or ``bytes``, which go through as they are. Cancelling the task that
        waits cancels the request: the broker and the handler are told.

        The reference's own form works too, with its milliseconds:
        ``request({"action": "sum", "data": [1, 2]}, {"ttl": 10000}, 10000)``. With ``broadcast`` among its options it
        gives what `broadcast` gives.

        Raises what the broker and the handler say: `NoHandlerError`, `OverloadedError`, `HandlerLostError`,
        `RemoteError` (the handler's own error), `RequestTimeoutError`, `ExpiredError`, `ConnectionLostError` (it may
        have run), `ProtocolError` for bad input (nothing is sent then), `ClosedError`.
        """
        link = self._link or self._here()
        if timeout_ms is None and type(action) is str:
            if options:
                return link.ask(call(action, data, 0, **options))
            return link.ask_plainly(action, data if type(data) is bytes else _json.dumps(data))
        if isinstance(action, Mapping) and not options:
            return link.ask(reference_call(action, data, timeout_ms))
        if timeout_ms is not None or isinstance(action, Mapping):
            raise mixed()
        return link.ask(call(action, data, 0, **options))

    def broadcast(
        self, action: str, data: Any = None, /, **options: Unpack[BroadcastOptions]
    ) -> Coroutine[Any, Any, list[Reply | RingpostError]]:
        """A request to every handler of the action; gives each one's `Reply`, or the error in its place.

        It raises only if nobody was asked (`NoHandlerError`), or nobody answered before the connection was lost. The
        options are those of `request`.
        """
        return (self._link or self._here()).ask(call(action, data, BROADCAST, **options))

    def send(self, action: str, data: Any = None, /, **options: Unpack[SendOptions]) -> Coroutine[Any, Any, None]:
        """A request that wants no reply; it is over when the broker has accepted it, a durable one on its disk.

        The options are those of `request`; ``timeout`` is how long to wait for the acceptance. Cancelling the task does
        not call back what has left.
        """
        return (self._link or self._here()).ask(call(action, data, SEND, **options))

    # Handlers.

    def handler(
        self, action: str, *, concurrency: int | None = None, stop_on_cancel: bool = False
    ) -> Callable[[Function], Function]:
        """Handles an action with the function that this decorates.

        It takes the data, and the options if it has a second parameter; a parameter annotated `Request` gets the
        request. If the data's parameter is annotated with a dataclass, a ``TypedDict``, a pydantic model or a msgspec
        struct, it gets one, and requests with other data are answered with an error that names the place. With
        ``bytes`` it gets the data as it came.

        What the function returns is the reply's data; a `Reply` has options and headers too. What it raises goes to the
        requester as `RemoteError` with its text, and to the log of ``ringpost`` with its traceback; see `HandlerError`.

        ``async`` functions run in the client's event loop, plain ones in its threads. With ``stop_on_cancel`` an
        ``async`` one is cancelled when nobody waits for it any more; else it is told by `Request.cancelled`.

        On a client that has started, the broker's refusal is only logged: use `handle` to wait for its word.
        """

        def register(function: Function) -> Function:
            self._plan(action, function, concurrency, stop_on_cancel)
            return function

        return register

    async def handle(
        self,
        action: str,
        function: HandlerFunction,
        *,
        concurrency: int | None = None,
        stop_on_cancel: bool = False,
    ) -> Registration:
        """Handles an action from now on, as `handler` does, and waits until the broker has taken the registration."""
        link = self._here()
        registration = self._plan(action, function, concurrency, stop_on_cancel)
        assert registration is not None, "the client has started"
        await link.taken(registration)
        return Registration(link, registration, action)

    def _plan(
        self, action: str, function: HandlerFunction, concurrency: int | None, stop_on_cancel: bool
    ) -> int | None:
        handler = Handler(
            action,
            function,
            concurrency=self._concurrency if concurrency is None else concurrency,
            stop_on_cancel=stop_on_cancel,
        )
        registration = None if self._link is None else self._here().register(handler)
        self._planned.append(handler)
        return registration

    # News.

    @property
    def connected(self) -> bool:
        """Whether requests would leave at once."""
        return self._link is not None and self._link.connected

    @property
    def receivers(self) -> list[str]:
        """The actions that have a handler now, as the server last told.

        Empty before the start. A client with ``watch_receivers=False`` is told only from the first look on.
        """
        link = self._link
        if link is None:
            return []
        if not self._watch_receivers and link.closed_by is None:
            self._watch_receivers = True
            link.connection.watch_receivers()
        return list(link.receivers or ())

    async def receivers_changes(self) -> AsyncIterator[list[str]]:
        """The actions that have a handler: now, and again at each change, until the client is closed."""
        link = self._here()
        link.connection.watch_receivers()
        seen: list[str] | None = None

        def is_news() -> bool:
            return link.closed_by is not None or link.receivers is not seen

        while True:
            await link.changed.wait_for(is_news)
            if link.closed_by is not None:
                return
            seen = link.receivers
            yield list(seen or ())

    async def events(self) -> AsyncIterator[Event]:
        """What happens to the connection from now on, until the client is closed."""
        self._here()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                event = await queue.get()
                yield event
                if isinstance(event, Closed):
                    return
        finally:
            self._listeners.discard(queue)

    async def unclaimed_replies(self) -> AsyncIterator[Unclaimed]:
        """The replies that the broker kept for an earlier process of this session, oldest first.

        Nothing comes unless the client has ``session`` and ``unclaimed_replies=True``. It ends when the client is
        closed. The broker lets go of a reply once the next one is asked for: what a process dies over comes again.
        """
        link = self._here()
        while True:
            unclaimed = await link.unclaimed.get()
            if unclaimed is None:
                link.unclaimed.put_nowait(None)
                return
            yield unclaimed
            link.connection.claim(unclaimed._key)

    def _happened(self, event: Event) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        # It is the user's, and must not break the connection's own work.
        except Exception:
            logger.exception("a client's event callback failed")


def mixed() -> TypeError:
    """For a call that is neither our own form of a request nor the reference's."""
    return TypeError(
        "write request('action', data, timeout=seconds), or the reference's request({'action': …, 'data': …}, "
        "{'ttl': milliseconds}, milliseconds), and not a mixture"
    )


_started: weakref.WeakSet[Client] = weakref.WeakSet()


def _forked() -> None:
    """In a child process: the threads of its parent's clients are not here."""
    for client in _started:
        if client._link is not None:
            client._link.connection.forked()


os.register_at_fork(after_in_child=_forked)
