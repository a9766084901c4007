"""Spans of time, as users write them and as the compiled module wants them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TypeAlias

Seconds: TypeAlias = float | timedelta
"""A span of time: seconds, or a `datetime.timedelta`."""

_MAX_MS = 2**32 - 2


def milliseconds(span: Seconds | None, what: str) -> int:
    """Whole milliseconds, at least one; 0 for ``None``, which is "as by default".

    Raises `TypeError` for what is no span of time, and `ValueError` for a negative one.
    """
    if span is None:
        return 0
    if isinstance(span, timedelta):
        seconds = span.total_seconds()
    elif isinstance(span, int | float) and not isinstance(span, bool):
        seconds = span
    else:
        raise TypeError(f"{what} is a number of seconds or a timedelta, not {type(span).__name__}")
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{what} must not be negative: {span}")
    if seconds * 1000 >= _MAX_MS:
        return _MAX_MS
    return max(1, math.ceil(seconds * 1000))


def interval_ms(span: Seconds, what: str) -> int:
    """The same where 0 is meant as such."""
    return milliseconds(span, what) if span else 0


__all__ = ["Seconds", "interval_ms", "milliseconds"]
