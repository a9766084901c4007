"""When things happened to a request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Info(NamedTuple):
    """When things happened to a request, by the broker's clock, in UTC."""

    received_at: datetime
    """When the broker received it."""
    delivered_at: datetime | None
    """When the broker last delivered it to a handler."""
    handled_at: datetime | None
    """When the handler's answer reached the broker."""
    attempt: int
    """The number of the last delivery, from 1; 0 if there was none."""


def at(ms: int) -> datetime:
    """A point in time from milliseconds since the Unix epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def info(received_at_ms: int, delivered_after_ms: int | None, handled_after_ms: int | None, attempt: int) -> Info:
    """Made by the compiled module."""

    def after(ms: int | None) -> datetime | None:
        return None if ms is None else at(received_at_ms + ms)

    return Info(at(received_at_ms), after(delivered_after_ms), after(handled_after_ms), attempt)
