"""The exceptions, from the one table of codes that wire, command and all SDKs share."""

from __future__ import annotations

from ringpost import _ringpost


class RingpostError(Exception):
    """What all exceptions of this package are.

    ``code`` is the table's code (``"noHandler"``, ``"timeout"``, …), ``message`` is for people, and ``handler_code`` is
    what a handler called its own error, if it gave it a name.
    """

    code: str
    message: str
    handler_code: str | None

    def __init__(self, message: str, *, code: str = "closed", handler_code: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.handler_code = handler_code

    @property
    def exit_code(self) -> int:
        """What a command that ends with this error exits with."""
        return _ringpost.CODES.get(self.code, 1)

    def __reduce__(self) -> tuple[object, ...]:
        return (_restored, (type(self), self.message, self.code, self.handler_code))


class NoHandlerError(RingpostError):
    """Nobody handles the action (``noHandler``)."""


class OverloadedError(RingpostError):
    """A queue or the memory budget is full (``overloaded``): ask for less at once, or later."""


class HandlerLostError(RingpostError):
    """The handler died over the request, and no attempts are left (``handlerLost``)."""


class UnavailableError(RingpostError):
    """The server is leaving or not yet ready (``draining``, ``recovering``): try again."""


class StorageError(RingpostError):
    """The server cannot take durable requests: no room, no folder (``storageFull``, ``durableUnavailable``)."""


class RemoteError(RingpostError):
    """The handler answered with an error: its message is ``message``, its own code ``handler_code`` (``remote``)."""


class RequestTimeoutError(RingpostError, TimeoutError):
    """The request's time was over before its reply came (``timeout``)."""


class ExpiredError(RingpostError):
    """The request's ttl was over before its reply came (``expired``)."""


class RequestCancelledError(RingpostError):
    """Somebody cancelled the request, and not by its task (``cancelled``).

    Where the task that waits is cancelled, that is the usual ``asyncio.CancelledError``.
    """


class ConnectionLostError(RingpostError, ConnectionError):
    """The connection broke, and the request may have run (``connectionLost``)."""


class ConnectError(RingpostError, ConnectionError):
    """No connection could be made (``connect``)."""


class AuthError(RingpostError):
    """The key is wrong or missing, or may not do that (``unauthorized``, ``forbidden``)."""


class ClosedError(RingpostError):
    """The client was closed, or another one took its session over (``closed``, ``sessionTaken``)."""


class ProtocolError(RingpostError):
    """Bad input: ``malformed``, ``tooDeep``, ``reservedName``, ``unsupported``."""


class PayloadTooLargeError(ProtocolError):
    """Longer than a limit allows (``tooLarge``)."""


BY_CODE: dict[str, type[RingpostError]] = {
    "noHandler": NoHandlerError,
    "overloaded": OverloadedError,
    "handlerLost": HandlerLostError,
    "draining": UnavailableError,
    "recovering": UnavailableError,
    "storageFull": StorageError,
    "durableUnavailable": StorageError,
    "remote": RemoteError,
    "timeout": RequestTimeoutError,
    "expired": ExpiredError,
    "cancelled": RequestCancelledError,
    "connectionLost": ConnectionLostError,
    "connect": ConnectError,
    "unauthorized": AuthError,
    "forbidden": AuthError,
    "sessionTaken": ClosedError,
    "malformed": ProtocolError,
    "tooLarge": PayloadTooLargeError,
    "tooDeep": ProtocolError,
    "reservedName": ProtocolError,
    "unsupported": ProtocolError,
    "closed": ClosedError,
}


def exception(code: str, message: str, handler_code: str | None = None) -> RingpostError:
    """The exception for a code of the table; called by the compiled module too."""
    return BY_CODE.get(code, RingpostError)(message, code=code, handler_code=handler_code)


def _restored(kind: type[RingpostError], message: str, code: str, handler_code: str | None) -> RingpostError:
    return kind(message, code=code, handler_code=handler_code)


class HandlerError(Exception):
    """Raised by a handler to say more about its failure than its text: a ``code`` of its own, at most 255 bytes.

    Any exception of a handler reaches the requester as `RemoteError` with its text. This one does not log a traceback:
    it is an answer like others.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Retry(HandlerError):
    """Raised by a handler of a durable request: not now, try again after ``after`` seconds."""

    def __init__(self, message: str = "try again later", *, after: float = 0.0, code: str = "") -> None:
        super().__init__(message, code=code)
        self.after = after


class Reject(HandlerError):
    """Raised by a handler of a durable request: never try this one again, it is a dead letter."""
