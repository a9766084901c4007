"""A request, for handlers that want to know more of it than its data and options."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ringpost import _json
from ringpost._info import at

if TYPE_CHECKING:
    from ringpost._ringpost import Delivery


class Request:
    """A request that a handler is to answer. A handler gets it for a parameter that is annotated with this class."""

    __slots__ = ("_data", "_delivery", "_wait")

    def __init__(self, delivery: Delivery, data: Callable[[], Any], wait: Callable[[Delivery], Any]) -> None:
        self._delivery = delivery
        self._data = data
        self._wait = wait

    @property
    def action(self) -> str:
        """The action that it is addressed to."""
        return self._delivery.action

    @property
    def data(self) -> Any:
        """What its JSON says; ``None`` if it is empty. Raises ``ValueError`` if it is not JSON."""
        return self._data()

    @property
    def bytes(self) -> bytes:
        """The data as it came."""
        return self._delivery.payload

    @property
    def options(self) -> Any:
        """The requester's options; an empty ``dict`` if there are none."""
        text = self._delivery.options
        return _json.loads(text) if text else {}

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers in the order of their sender; keys may repeat."""
        return self._delivery.headers

    def header(self, key: str) -> str | None:
        """The first header with this key."""
        return next((value for name, value in self._delivery.headers if name == key), None)

    @property
    def id(self) -> str:
        """The request's identity: the same at each attempt."""
        return self._delivery.id

    @property
    def attempt(self) -> int:
        """Which delivery of the request this is, from 1."""
        return self._delivery.attempt

    @property
    def received_at(self) -> datetime:
        """When the broker received it, by its clock, in UTC."""
        return at(self._delivery.received_at_ms)

    @property
    def is_send(self) -> bool:
        """Whether the requester wants no reply, only that it is done."""
        return self._delivery.is_send

    @property
    def is_broadcast(self) -> bool:
        """Whether every handler of the action got it."""
        return self._delivery.is_broadcast

    @property
    def time_left(self) -> float | None:
        """How many seconds the requester still waits; ``None`` if there is no end to it."""
        return self._delivery.time_left

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: the requester gave up, or a connection is gone."""
        return self._delivery.cancelled

    async def until_cancelled(self) -> None:
        """Waits until nobody waits for the answer any more. For coroutines of the client's own event loop."""
        if not self._delivery.cancelled:
            await self._wait(self._delivery)

    def progress(self, data: Any = None) -> bool:
        """Says that the work goes on, with something for the requester. For a durable request it extends the lease.

        ``False`` if nobody waits any more, or if it is longer than the server takes. It may be called from any thread.
        Raises `ProtocolError` if the data has no form in JSON.
        """
        return self._delivery.progress(b"" if data is None else _json.dumps(data))

    def __repr__(self) -> str:
        return f"<Request {self.id} to {self.action!r}, attempt {self.attempt}>"
