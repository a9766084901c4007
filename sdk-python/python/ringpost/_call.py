"""A request as users write it, and as the compiled module wants it: our own form, and the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict

from ringpost import _json
from ringpost._handlers import pairs
from ringpost._times import Seconds, milliseconds

SEND, BROADCAST, DURABLE, PROGRESS = 1, 2, 4, 8
"""Bits of a request's flags, as on the wire."""

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Headers: a mapping, or pairs where a key is to repeat."""


class BroadcastOptions(TypedDict, total=False):
    """What can be said about a broadcast."""

    ttl: Seconds | None
    timeout: Seconds | None
    options: Any
    headers: Headers | None
    on_progress: Callable[[Any], None] | None


class SendOptions(TypedDict, total=False):
    """What can be said about a send."""

    ttl: Seconds | None
    timeout: Seconds | None
    durable: bool
    max_attempts: int | None
    idempotency_key: str | None
    options: Any
    headers: Headers | None


class RequestOptions(BroadcastOptions, SendOptions, total=False):
    """What can be said about a request."""


Call: TypeAlias = tuple[Any, ...]
"""Everything about a request but its future, in the order of `_ringpost.Connection.request`."""

TIMEOUT_MS = 5
"""Where the timeout stands in a `Call`."""


def call(
    action: str,
    data: Any,
    flags: int,
    *,
    ttl: Seconds | None = None,
    timeout: Seconds | None = None,
    durable: bool = False,
    max_attempts: int | None = None,
    idempotency_key: str | None = None,
    options: Any = None,
    headers: Headers | None = None,
    on_progress: Callable[[Any], None] | None = None,
) -> Call:
    """Our own form. Raises `TypeError` and `ValueError` for what cannot be meant, `ProtocolError` for bad data."""
    if not isinstance(action, str):
        raise TypeError(f"an action is a str, not {type(action).__name__}")
    if max_attempts is not None and not 1 <= max_attempts <= 255:
        raise ValueError(f"max_attempts is from 1 to 255: {max_attempts}")
    all_headers = pairs(headers)
    if idempotency_key is not None:
        all_headers = [*(all_headers or []), ("idempotency-key", idempotency_key)]
    if durable:
        flags |= DURABLE
    if on_progress is not None:
        flags |= PROGRESS
    return (
        action,
        _json.dumps(data),
        flags,
        max_attempts or 0,
        milliseconds(ttl, "ttl"),
        milliseconds(timeout, "timeout"),
        None if options is None else _json.dumps(options),
        all_headers,
        on_progress,
    )


def reference_call(message: Mapping[str, Any], options: Any, timeout_ms: Any) -> Call:
    """The reference's form: ``{"action", "data"}``, options, and a timeout, with times in milliseconds.

    Of the options ``ttl``, ``broadcast``, ``durable``, ``timeout``, ``maxAttempts``, ``idempotencyKey``, ``headers``
    mean what they mean in the JSON dialect; the handler gets all of them. Raises as `call`.
    """
    unknown = message.keys() - {"action", "data"}
    if unknown or "action" not in message:
        raise TypeError(f"a request in the reference's form is {{'action': …, 'data': …}}, not {dict(message)!r:.80}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"the options of a request are a mapping, not {type(options).__name__}")
    said = dict(options or {})
    timeout = said.get("timeout") if timeout_ms is None else timeout_ms
    return call(
        message["action"],
        message.get("data"),
        BROADCAST if said.get("broadcast") else 0,
        ttl=_seconds(said.get("ttl"), "ttl"),
        timeout=_seconds(timeout, "timeout"),
        durable=bool(said.get("durable")),
        max_attempts=said.get("maxAttempts"),
        idempotency_key=said.get("idempotencyKey"),
        options=said or None,
        headers=said.get("headers"),
    )


def _seconds(ms: Any, what: str) -> float | None:
    if ms is None:
        return None
    if isinstance(ms, bool) or not isinstance(ms, int | float):
        raise TypeError(f"{what} of a request in the reference's form is a number of milliseconds, not {ms!r:.40}")
    return ms / 1000
