"""JSON: what data becomes on its way out, and what it was on its way in.

orjson, which is the fastest at writing of those that are well kept, and level with msgspec at reading: see
``docs/ARCHITECTURE.md``. It writes dataclasses, datetimes, enums and UUIDs by itself.
"""

from __future__ import annotations

from typing import Any

import orjson

from ringpost import _errors

loads = orjson.loads


def _plain(value: Any) -> Any:
    """What orjson does not write by itself: pydantic models and msgspec structs, sets, and NumPy's own."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if hasattr(type(value), "__struct_fields__"):
        return {name: getattr(value, name) for name in type(value).__struct_fields__}
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def dumps(value: Any) -> bytes:
    """JSON text; bytes stay as they are.

    Raises `ProtocolError` for what has no form in JSON: nothing is sent then.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return orjson.dumps(value, _plain, orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError, RecursionError) as error:
        cause = error.__cause__ or error
        message = f"data of type {type(value).__name__} cannot be written as JSON: {cause}"
        raise _errors.ProtocolError(message, code="malformed") from error
