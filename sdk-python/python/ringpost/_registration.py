"""A handler's registration, as users hold it."""

from __future__ import annotations

from ringpost._link import Link


class Registration:
    """A handler's registration. It stays until `deregister` or the client's end."""

    def __init__(self, link: Link, number: int, action: str) -> None:
        self._link = link
        self._number = number
        self.action = action

    def set_concurrency(self, concurrency: int) -> None:
        """Changes how many requests the handler may hold at once, from 1."""
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1: {concurrency}")
        self._link.connection.set_credit(self._number, concurrency)

    async def deregister(self) -> None:
        """Ends it, and waits until nothing more can be delivered. What the handler holds it still answers."""
        await self._link.deregister(self._number)

    def __repr__(self) -> str:
        return f"<Registration {self.action!r}>"
