"""A client in its event loop: the one place where what comes from the client's thread meets futures and handlers.

The loop watches one descriptor. When it is readable, `Link.arrived` takes out all that came, in one call, and hands it
on. What coroutines say in one turn of the loop is gathered by the compiled module and leaves by one `flush` behind
them.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError, get_running_loop
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ringpost import _json
from ringpost._call import TIMEOUT_MS, Call
from ringpost._errors import ClosedError, RingpostError, exception
from ringpost._events import Closed, Connected, Disconnected, Drained, Event, Goaway, ReconnectIn, Unclaimed
from ringpost._handlers import Handler
from ringpost._workers import Workers

if TYPE_CHECKING:
    from ringpost._ringpost import Connection, Delivery
    from ringpost._threads import Threads

logger = logging.getLogger("ringpost")


class Link:
    """One client's connection, bound to the running loop."""

    def __init__(
        self, connection: Connection, threads: Threads, patience: float, on_event: Callable[[Event], None]
    ) -> None:
        self.loop = get_running_loop()
        self.connection = connection
        self.receivers: list[str] | None = None
        self.closed_by: RingpostError | None = None
        self.connected = False
        # Without an end, futures that nobody waits for are nobody's: each is made when it is asked for.
        self.changed = Condition(self.loop)
        self.unclaimed: asyncio.Queue[Unclaimed | None] = asyncio.Queue()
        self.ended: asyncio.Future[Drained] = self.loop.create_future()
        self._threads = threads
        self._patience = patience
        self._on_event = on_event
        self.create_future = self.loop.create_future
        self._call_soon = self.loop.call_soon
        self.request = connection.request
        self._flushing = False
        self._room: asyncio.Future[None] | None = None
        self._handlers: dict[int, Handler] = {}
        self._registrations: dict[int, asyncio.Future[None]] = {}
        self._gone: dict[int, asyncio.Future[None]] = {}
        self._cancel_waiters: dict[Delivery, asyncio.Future[None]] = {}
        self._workers = Workers(self.loop, connection.flush, self.flush_soon)
        self.loop.add_reader(connection.fileno(), self.arrived)

    # Requests.

    async def ask(self, call: Call) -> Any:
        """Makes a request and waits for what becomes of it. Cancelling it cancels the request."""
        if get_running_loop() is not self.loop:
            raise elsewhere()
        if self.closed_by is not None:
            # Nobody looks for what comes any more.
            raise exception(self.closed_by.code, self.closed_by.message)
        future = self.create_future()
        token = self.request(future, *call)
        if token is None:
            token = await self._ask_when_there_is_room(call, future)
        self.flush_soon()
        try:
            return await future
        except (CancelledError, GeneratorExit):
            self.connection.cancel(token)
            raise

    async def ask_plainly(self, action: str, payload: bytes) -> Any:
        """The same for a request of which nothing more is said: the usual one, with as little as possible around it."""
        if get_running_loop() is not self.loop or self.closed_by is not None:
            return await self.ask((action, payload))
        future = self.create_future()
        token = self.request(future, action, payload)
        if token is None:
            token = await self._ask_when_there_is_room((action, payload), future)
        if not self._flushing:
            self._flushing = True
            self._call_soon(self._flush)
        try:
            return await future
        except (CancelledError, GeneratorExit):
            self.connection.cancel(token)
            raise

    async def _ask_when_there_is_room(self, call: Call, future: asyncio.Future[Any]) -> int:
        patience = (call[TIMEOUT_MS] if len(call) > TIMEOUT_MS else 0) / 1000 or self._patience
        try:
            async with asyncio.timeout(patience):
                while True:
                    if self._room is None:
                        self._room = self.create_future()
                        self.connection.room()
                    await asyncio.shield(self._room)
                    self.connection.flush()
                    token = self.request(future, *call)
                    if token is not None:
                        return token
        except TimeoutError:
            message = (
                "the request was not sent: for its whole timeout this client had more unsent than the server or the "
                "network took; ask for less at once, or give it more time"
            )
            raise exception("timeout", message) from None

    def flush_soon(self) -> None:
        """Lets what is gathered leave once the coroutines that are ready now have said what they want to."""
        if not self._flushing:
            self._flushing = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.connection.flush()

    # What comes.

    def arrived(self) -> None:
        """Takes out what came, and hands it on."""
        outcomes, failures, deliveries, news = self.connection.drain()
        if outcomes:
            turns = iter(outcomes)
            for future, value in zip(turns, turns, strict=False):
                # If not, its task was cancelled, and has not run since.
                if not future.done():
                    future.set_result(value)
        if failures:
            turns = iter(failures)
            for future, error in zip(turns, turns, strict=False):
                if not future.done():
                    future.set_exception(error)
        if deliveries:
            self._deliver(deliveries)
        for kind, *facts in news:
            getattr(self, f"_on_{kind}")(*facts)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        workers = self._workers
        for delivery in deliveries:
            handler = self._handlers.get(delivery.registration)
            if handler is None:
                delivery.fail("noHandler", f"this client does not handle `{delivery.action}` any more")
                self.flush_soon()
            elif handler.is_async:
                workers.put(handler, delivery)
            else:
                self._threads.submit(partial(self._run_plain, handler, delivery))
        workers.wake()

    def _run_plain(self, handler: Handler, delivery: Delivery) -> None:
        """Runs a plain function, in a thread of the pool."""
        try:
            result = handler.call(delivery)
        except BaseException as error:
            handler.failed(delivery, error)
        else:
            handler.replied(delivery, result)
        self.connection.flush()

    def _on_room(self) -> None:
        if self._room is not None:
            room, self._room = self._room, None
            room.set_result(None)

    def _on_progress(self, callback: Callable[[Any], None], payload: bytes) -> None:
        try:
            callback(_json.loads(payload) if payload else None)
        except Exception:
            logger.exception("a request's progress callback failed")

    def _on_cancelled(self, delivery: Delivery) -> None:
        waiter = self._cancel_waiters.pop(delivery, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._workers.stop(delivery)

    def _on_receivers(self, text: bytes) -> None:
        self.receivers = _json.loads(text)
        self.changed.tell()

    def _on_unclaimed(self, *facts: Any) -> None:
        number, result, info, leg, asked, key = facts
        action, headers = asked or (None, [])
        self.unclaimed.put_nowait(Unclaimed(number, result, info, leg, action, headers, key))

    def _on_ended(self, requests: int, handlers: int, unsent_bytes: int) -> None:
        self.loop.remove_reader(self.connection.fileno())
        self._workers.cancel()
        self._threads.close()
        self.unclaimed.put_nowait(None)
        if not self.ended.done():
            self.ended.set_result(Drained(requests, handlers, unsent_bytes))

    # Registrations.

    def register(self, handler: Handler) -> int:
        """Offers to handle an action. `taken` says what the broker thinks of it."""
        handler.wait = self._until_cancelled
        registration = self.connection.register(handler.action, handler.concurrency)
        self._handlers[registration] = handler
        self._registrations[registration] = self.create_future()
        return registration

    async def taken(self, registration: int) -> None:
        """Waits for the broker's word."""
        await asyncio.shield(self._registrations[registration])

    async def deregister(self, registration: int) -> None:
        """Waits until nothing more can be delivered."""
        if registration not in self._handlers:
            return
        gone = self._gone.setdefault(registration, self.create_future())
        self.connection.deregister(registration)
        await asyncio.shield(gone)

    def _on_registered(self, registration: int) -> None:
        future = self._registrations.get(registration)
        if future is not None and not future.done():
            future.set_result(None)

    def _on_refused(self, registration: int, error: RingpostError) -> None:
        handler = self._handlers.pop(registration, None)
        future = self._registrations.pop(registration, None)
        if handler is not None:
            logger.error("the server refused the handler of %r: %s", handler.action, error)
        if future is not None and not future.done():
            future.set_exception(error)
            # It is logged already; a registration need not be waited for.
            future.exception()

    def _on_deregistered(self, registration: int) -> None:
        self._handlers.pop(registration, None)
        taken = self._registrations.pop(registration, None)
        if taken is not None and not taken.done():
            taken.set_exception(ClosedError("the client was closed before its handler was registered"))
            taken.exception()
        gone = self._gone.pop(registration, None)
        if gone is not None and not gone.done():
            gone.set_result(None)

    async def _until_cancelled(self, delivery: Delivery) -> None:
        waiter = self._cancel_waiters.setdefault(delivery, self.create_future())
        try:
            await asyncio.shield(waiter)
        finally:
            if not waiter.done() and self._cancel_waiters.get(delivery) is waiter:
                del self._cancel_waiters[delivery]

    # The connection.

    def _on_connected(self, server_id: str, epoch: int) -> None:
        self.connected = True
        self._tell(Connected(server_id, epoch))

    def _on_disconnected(self, reason: RingpostError) -> None:
        self.connected = False
        self._tell(Disconnected(reason))

    def _on_reconnect_in(self, delay: float, reason: RingpostError) -> None:
        self.connected = False
        self._tell(ReconnectIn(delay, reason))

    def _on_goaway(self, grace: float, reason: str) -> None:
        self._tell(Goaway(grace, reason))

    def _on_closed(self, reason: RingpostError) -> None:
        self.connected = False
        self.closed_by = reason
        self._tell(Closed(reason))

    def _tell(self, event: Event) -> None:
        self.changed.tell()
        self._on_event(event)


class Condition:
    """Wakes all who wait for a change. Unlike asyncio's it is told without waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next: asyncio.Future[None] | None = None

    def tell(self) -> None:
        """Something changed."""
        if self._next is not None:
            waited, self._next = self._next, None
            waited.set_result(None)

    async def wait_for(self, predicate: Callable[[], Any]) -> None:
        """Waits until it is so."""
        while not predicate():
            if self._next is None:
                self._next = self._loop.create_future()
            await asyncio.shield(self._next)


def elsewhere() -> RuntimeError:
    """For a client that is used outside its own event loop."""
    return RuntimeError(
        "this client belongs to another event loop: use one client for each loop, or SyncClient from threads"
    )
