"""A handler: the user's function, how it is called, and what becomes of what it returns or raises."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

from ringpost import _json
from ringpost._errors import HandlerError, Reject, Retry, RingpostError
from ringpost._request import Request
from ringpost._ringpost import Reply
from ringpost._times import milliseconds
from ringpost._types import Mismatch, Read, read_json, reader

if TYPE_CHECKING:
    from ringpost._ringpost import Delivery

logger = logging.getLogger("ringpost")

HandlerFunction: TypeAlias = Callable[..., Any]
"""Any function, plain or ``async``, of up to data and options, or of a `Request`."""

Wait: TypeAlias = Callable[["Delivery"], Awaitable[None]]


class Handler:
    """One function for one action."""

    def __init__(self, action: str, function: HandlerFunction, *, concurrency: int, stop_on_cancel: bool) -> None:
        if not callable(function):
            raise TypeError(f"a handler is a function, not {type(function).__name__}")
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1: {concurrency}")
        self.action = action
        self.function = function
        self.concurrency = concurrency
        self.stop_on_cancel = stop_on_cancel
        self.is_async = _is_async(function)
        self.wait: Wait | None = None
        self.call = _caller(self)
        """Calls the function: of an ``async`` one it gives the coroutine, of a plain one what it returns."""

    def replied(self, delivery: Delivery, result: Any) -> None:
        """Answers with what the function returned."""
        try:
            if type(result) is bytes:
                delivery.reply(result)
            elif type(result) is Reply:
                options = None if result.options is None else _json.dumps(result.options)
                delivery.reply(result.bytes, options, pairs(result.headers))
            else:
                delivery.reply(_json.dumps(result))
        # Whatever it is: the requester must not wait for a reply that cannot be written.
        except Exception as error:
            self.failed(delivery, error)

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """Answers with what the function raised."""
        text = str(error) or type(error).__name__
        match error:
            case Retry():
                delivery.retry(milliseconds(error.after, "after"), error.code, text)
            case Reject():
                delivery.reject(error.code, text)
            case HandlerError():
                delivery.fail(error.code, text)
            case Mismatch():
                delivery.fail("malformed", text)
            case _:
                logger.error("the handler of %r failed on request %s", self.action, delivery.id, exc_info=error)
                code = error.code if isinstance(error, RingpostError) else type(error).__name__
                delivery.fail(code, text)

    def failed_quietly(self, delivery: Delivery, error: BaseException) -> None:
        """Answers that the handler was stopped; that is nothing to log."""
        delivery.fail(type(error).__name__, str(error) or f"the handler was stopped by {type(error).__name__}")


def pairs(headers: Any) -> list[tuple[str, str]] | None:
    """Headers from a mapping or from pairs."""
    if headers is None:
        return None
    return list(headers.items() if hasattr(headers, "items") else headers)


def _is_async(function: HandlerFunction) -> bool:
    while hasattr(function, "func"):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))


def _options(delivery: Delivery) -> Any:
    text = delivery.options
    return _json.loads(text) if text else {}


def _caller(handler: Handler) -> Callable[[Delivery], Any]:
    """How to call the function: what its parameters are is looked at once.

    Raises `TypeError` for parameters that there is nothing for.
    """
    function = handler.function
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Some functions written in C do not tell: they get the data.
        return lambda delivery: function(read_json(delivery.payload))
    hints = _hints(function)
    wanted: list[str] = []
    named: list[str] = []
    read: Read = read_json
    for parameter in parameters:
        annotation = hints.get(parameter.name, parameter.annotation)
        if parameter.kind is parameter.VAR_POSITIONAL:
            wanted += ["data", "options"][len([each for each in wanted if each != "request"]) :]
        elif parameter.kind is parameter.KEYWORD_ONLY and annotation is Request:
            named.append(parameter.name)
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            if annotation is Request:
                wanted.append("request")
            elif "data" not in wanted:
                wanted.append("data")
                read = reader(annotation) if annotation is not parameter.empty else read_json
            elif "options" not in wanted:
                wanted.append("options")
            elif parameter.default is parameter.empty:
                raise _too_many(function, parameter.name)
            else:
                break
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise _too_many(function, parameter.name)
    match (wanted, named):
        # The usual ones, for speed.
        case (["data", "options"], []):
            return lambda delivery: function(read(delivery.payload), _options(delivery))
        case (["data"], []) if read is bytes:
            return lambda delivery: function(delivery.payload)
        case (["data"], []):
            return lambda delivery: function(read(delivery.payload))
        case _:
            return lambda delivery: _call(handler, delivery, wanted, named, read)


def _call(handler: Handler, delivery: Delivery, wanted: list[str], named: list[str], read: Read) -> Any:
    def data() -> Any:
        return read(delivery.payload)

    def request() -> Request:
        assert handler.wait is not None, "a handler is told this before it is registered"
        return Request(delivery, data, handler.wait)

    values: dict[str, Callable[[], Any]] = {
        "data": data,
        "options": lambda: _options(delivery),
        "request": request,
    }
    return handler.function(*[values[each]() for each in wanted], **{name: request() for name in named})


def _hints(function: HandlerFunction) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else getattr(function, "__call__", function)
    try:
        return get_type_hints(inspect.unwrap(target))
    except (NameError, TypeError, AttributeError) as error:
        # Names that only a type checker sees: what is annotated with them is given as it is.
        logger.debug("annotations of %r are not looked at: %s", function, error)
        return {}


def _too_many(function: HandlerFunction, name: str) -> TypeError:
    return TypeError(
        f"{getattr(function, '__qualname__', function)!s} has a parameter {name!r} that there is nothing for: "
        "a handler takes data, options, and a parameter annotated `Request`"
    )
