"""The Python client of Ringpost, a request/reply message broker.

A client registers an *action*, a name, with a *handler*; any other client sends a *request* to that action and gets the
*reply*. `Client` is for asyncio, `SyncClient` for scripts and notebooks.
"""

from ringpost._client import Client
from ringpost._errors import (
    AuthError,
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ExpiredError,
    HandlerError,
    HandlerLostError,
    NoHandlerError,
    OverloadedError,
    PayloadTooLargeError,
    ProtocolError,
    Reject,
    RemoteError,
    RequestCancelledError,
    RequestTimeoutError,
    Retry,
    RingpostError,
    StorageError,
    UnavailableError,
)
from ringpost._events import (
    Closed,
    Connected,
    Disconnected,
    Drained,
    Event,
    Goaway,
    ReconnectIn,
    Unclaimed,
)
from ringpost._info import Info
from ringpost._registration import Registration
from ringpost._request import Request
from ringpost._ringpost import Reply, __version__
from ringpost._sync import SyncClient, SyncRegistration

__all__ = [
    "AuthError",
    "Client",
    "Closed",
    "ClosedError",
    "ConnectError",
    "Connected",
    "ConnectionLostError",
    "Disconnected",
    "Drained",
    "Event",
    "ExpiredError",
    "Goaway",
    "HandlerError",
    "HandlerLostError",
    "Info",
    "NoHandlerError",
    "OverloadedError",
    "PayloadTooLargeError",
    "ProtocolError",
    "ReconnectIn",
    "Registration",
    "Reject",
    "RemoteError",
    "Reply",
    "Request",
    "RequestCancelledError",
    "RequestTimeoutError",
    "Retry",
    "RingpostError",
    "StorageError",
    "SyncClient",
    "SyncRegistration",
    "UnavailableError",
    "Unclaimed",
    "__version__",
]
