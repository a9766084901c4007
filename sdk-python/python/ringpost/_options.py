"""What can be said about a client, beside where its server is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from ringpost._events import Event
from ringpost._handlers import HandlerFunction
from ringpost._times import Seconds


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of `Client`, which says what they mean; `SyncClient` takes the same."""

    action: str | None
    request_handler: HandlerFunction | None
    secure_key: str | None
    reconnect: bool
    reconnect_interval: Seconds
    max_reconnects: int | None
    retry_initial: bool
    task_interval: Seconds
    concurrency: int
    threads: int
    default_request_timeout: Seconds
    session: str | None
    unclaimed_replies: bool
    max_pending: int
    watch_receivers: bool
    drain_timeout: Seconds
    on_event: Callable[[Event], None] | None
