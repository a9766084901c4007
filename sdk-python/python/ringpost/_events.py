"""What happens to a client's connection, and what is left of an earlier process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ringpost._errors import RingpostError
from ringpost._info import Info
from ringpost._ringpost import Reply

if TYPE_CHECKING:
    from ringpost._ringpost import UnclaimedKey


@dataclass(frozen=True, slots=True)
class Connected:
    """The server said welcome: requests leave, and registrations are on their way."""

    server_id: str
    """The server's own name."""
    epoch: int
    """Which connection of its session this is, from 1."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone."""

    reason: RingpostError


@dataclass(frozen=True, slots=True)
class ReconnectIn:
    """The next try to connect comes after so many seconds."""

    delay: float
    reason: RingpostError
    """Why the last try failed, or the last connection ended."""


@dataclass(frozen=True, slots=True)
class Goaway:
    """The server is leaving. The client finishes what is open, and then connects again."""

    grace: float
    """How many seconds the server waits."""
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is closed for good."""

    reason: RingpostError


Event: TypeAlias = Connected | Disconnected | ReconnectIn | Goaway | Closed
"""What happens to a client's connection."""


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """What became of a request that an earlier process made under this session's name, and did not live to learn."""

    number: int
    """The request's number in its session: they rise in the order in which the requests were made."""
    result: Reply | RingpostError
    """The reply, or why there is none."""
    info: Info
    """When it happened."""
    leg: tuple[int, int] | None
    """Of a broadcast: which leg it is, from 0, and of how many."""
    action: str | None
    """The action that it was addressed to, if it was durable."""
    headers: list[tuple[str, str]]
    """The request's headers, if it was durable."""
    _key: UnclaimedKey

    @property
    def idempotency_key(self) -> str | None:
        """The caller's own key, if it was durable and had one."""
        return next((value for name, value in self.headers if name == "idempotency-key"), None)


@dataclass(frozen=True, slots=True)
class Drained:
    """What a client that was drained could not finish."""

    requests: int
    """Requests that ended with the client instead of with their outcome."""
    handlers: int
    """Requests that handlers held: what they answer goes nowhere."""
    unsent_bytes: int
    """Bytes that the server did not take."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing was cut off."""
        return not (self.requests or self.handlers or self.unsent_bytes)
