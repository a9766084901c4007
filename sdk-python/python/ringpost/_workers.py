"""Runs `async` handlers without a task for each request.

A task per request costs more than all else that a request does here. So requests are handled by *workers*: tasks that
take one request after the other. A handler that ends without waiting for anything costs no task and no turn of the
event loop; while one waits, its worker waits with it, and the next worker takes what is left.

What a handler can notice of it: nothing but that ``asyncio.current_task()`` may be the same object for several
requests, one after the other. Each request has a copy of the context (``contextvars``) in which the client was started;
what a handler sets there is gone behind it. Cancelling the current task cancels what the handler waits for, as ever.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from ringpost._handlers import Handler

if TYPE_CHECKING:
    from ringpost._ringpost import Delivery

_KEPT_IDLE = 64


class Workers:
    """The workers of one client, in its event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, flush: Callable[[], None], flush_soon: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._flush = flush
        self._flush_soon = flush_soon
        self._context = copy_context()
        self._queue: deque[tuple[Handler, Delivery]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that are to end when nobody waits for them any more.
        self._stoppable: dict[Delivery, asyncio.Task[Any]] = {}
        # A worker was called and has not come yet. Queue not empty => called, or a worker is between two requests.
        self._called = False

    def put(self, handler: Handler, delivery: Delivery) -> None:
        """Takes a request. `wake` must follow."""
        self._queue.append((handler, delivery))

    def wake(self) -> None:
        """Makes sure that somebody comes for what is in the queue."""
        if self._called or not self._queue:
            return
        self._called = True
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        task = self._loop.create_task(self._work(), name="ringpost-worker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self, delivery: Delivery) -> None:
        """Nobody waits for this one any more."""
        task = self._stoppable.pop(delivery, None)
        if task is not None:
            task.cancel()

    def cancel(self) -> None:
        """Ends all workers, with what they are at."""
        for task in list(self._tasks):
            task.cancel()

    async def _work(self) -> None:
        queue = self._queue
        copy = self._context.copy
        while True:
            self._called = False
            waited = False
            while queue:
                handler, delivery = queue.popleft()
                if queue and not self._called:
                    self.wake()
                try:
                    coroutine = handler.call(delivery)
                    context = copy()
                    try:
                        first = context.run(coroutine.send, None)
                    except StopIteration as stop:
                        result = stop.value
                    else:
                        waited = True
                        # What was answered before must not wait with it.
                        self._flush_soon()
                        result = await self._rest(handler, delivery, coroutine, first, context)
                except asyncio.CancelledError as error:
                    handler.failed_quietly(delivery, error)
                    if _is_cancelled():
                        raise
                except Exception as error:
                    handler.failed(delivery, error)
                except BaseException as error:
                    # The interpreter is to end: the event loop sees to it.
                    handler.failed_quietly(delivery, error)
                    raise
                else:
                    handler.replied(delivery, result)
            if waited:
                # Others may be about to end too.
                self._flush_soon()
            else:
                self._flush()
            if len(self._idle) >= _KEPT_IDLE:
                return
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    async def _rest(
        self,
        handler: Handler,
        delivery: Delivery,
        coroutine: Coroutine[Any, Any, Any],
        first: Any,
        context: Context,
    ) -> Any:
        if not handler.stop_on_cancel:
            return await _drive(coroutine, first, context)
        task = asyncio.current_task()
        assert task is not None, "a worker is a task"
        self._stoppable[delivery] = task
        try:
            return await _drive(coroutine, first, context)
        finally:
            # `stop` has taken it: what it cancelled was the handler, and not the worker.
            if self._stoppable.pop(delivery, None) is None:
                task.uncancel()


def _is_cancelled() -> bool:
    """Whether the worker itself is to end. If not, the handler waited for something that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@types.coroutine
def _drive(coroutine: Coroutine[Any, Any, Any], yielded: Any, context: Context) -> Generator[Any, Any, Any]:
    """Goes on with a coroutine that has waited once, in its own context."""
    while True:
        step: Callable[[Any], Any]
        value: Any
        try:
            value = yield yielded
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step, value = coroutine.throw, error
        else:
            step = coroutine.send
        try:
            yielded = context.run(step, value)
        except StopIteration as stop:
            return stop.value
