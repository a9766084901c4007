"""Data of a handler's own type: what an annotation asks for, made of what the JSON says.

Models of pydantic and structs of msgspec are read by their own libraries, which are not needed otherwise. Dataclasses,
``TypedDict``s and the plain types are read here, strictly and to any depth. What is known of none is left as it is.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ringpost import _json

Convert = Callable[[Any, str], Any]
Read = Callable[[bytes], Any]


class Mismatch(Exception):
    """Data that is not of the type that a handler wants; the text names the place."""


def reader(annotation: Any) -> Read:
    """A function from a payload to the data that a handler annotated so is called with. It raises `Mismatch`."""
    if annotation is bytes:
        return bytes
    if _is_model(annotation):
        return _foreign(annotation.model_validate_json)
    if _is_struct(annotation):
        import msgspec

        return _foreign(msgspec.json.Decoder(annotation).decode)
    convert = converter(annotation)
    if convert is None:
        return read_json

    def read(payload: bytes) -> Any:
        return convert(read_json(payload), "")

    return read


def read_json(payload: bytes) -> Any:
    """What the JSON says; nothing reads as ``None``."""
    if not payload:
        return None
    try:
        return _json.loads(payload)
    except ValueError as error:
        raise Mismatch(f"the request's data cannot be read as JSON: {error}") from None


def _foreign(parse: Callable[[bytes], Any]) -> Read:
    def read(payload: bytes) -> Any:
        try:
            return parse(payload)
        # msgspec's ValidationError and pydantic's are both of this kind.
        except ValueError as error:
            raise Mismatch(f"the request's data cannot be read as asked for: {error}") from None

    return read


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "model_validate_json")


def _is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "__struct_fields__")


def converter(annotation: Any) -> Convert | None:
    """A function from what JSON says, and the place where it says it, to a value of the type; ``None``: any will do."""
    origin = get_origin(annotation)
    if origin in (typing.Annotated, Required, NotRequired):
        return converter(get_args(annotation)[0])
    if annotation is None or annotation is type(None):
        return _exactly(type(None), "null")
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if _is_model(annotation):
        return _checked(annotation.model_validate)
    if _is_struct(annotation):
        import msgspec

        return _checked(lambda value: msgspec.convert(value, annotation))
    if is_typeddict(annotation):
        return _typed_dict(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _dataclass(annotation)
    if origin is list:
        return _list(get_args(annotation)[0])
    if origin is dict and get_args(annotation)[0] is str:
        return _dict(get_args(annotation)[1])
    if origin in (Union, types.UnionType):
        return _union([converter(member) for member in get_args(annotation)], annotation)
    if origin is Literal:
        return _literal(get_args(annotation))
    return None


def _at(place: str) -> str:
    return f" at `{place.removeprefix('.')}`" if place else ""


def _mismatch(place: str, wanted: str, value: Any) -> Mismatch:
    found = "null" if value is None else f"{type(value).__name__} {value!r:.60}"
    return Mismatch(f"the request's data cannot be read as asked for{_at(place)}: {wanted} is wanted, not {found}")


def _exactly(kind: type | tuple[type, ...], wanted: str) -> Convert:
    def convert(value: Any, place: str) -> Any:
        # A bool is an int to Python, and not to JSON.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _mismatch(place, wanted, value)
        return value

    return convert


def _number(value: Any, place: str) -> float:
    return float(_exactly((int, float), "a number")(value, place))


_PLAIN: dict[Any, Convert] = {
    int: _exactly(int, "an integer"),
    float: _number,
    str: _exactly(str, "a string"),
    bool: _exactly(bool, "true or false"),
    dict: _exactly(dict, "an object"),
    list: _exactly(list, "an array"),
}


def _checked(parse: Callable[[Any], Any]) -> Convert:
    def convert(value: Any, place: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise Mismatch(f"the request's data cannot be read as asked for{_at(place)}: {error}") from None

    return convert


def _list(member: Any) -> Convert:
    convert_member = converter(member)
    array = _exactly(list, "an array")

    def convert(value: Any, place: str) -> Any:
        array(value, place)
        if convert_member is None:
            return value
        return [convert_member(member, f"{place}[{index}]") for index, member in enumerate(value)]

    return convert


def _dict(member: Any) -> Convert:
    convert_member = converter(member)
    mapping = _exactly(dict, "an object")

    def convert(value: Any, place: str) -> Any:
        mapping(value, place)
        if convert_member is None:
            return value
        return {key: convert_member(member, f"{place}.{key}") for key, member in value.items()}

    return convert


def _union(members: list[Convert | None], annotation: Any) -> Convert | None:
    converts = [member for member in members if member is not None]
    if len(converts) < len(members):
        return None

    def convert(value: Any, place: str) -> Any:
        mismatches = []
        for member in converts:
            try:
                return member(value, place)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
        deep = [mismatch for mismatch in mismatches if value is not None and place + "." in str(mismatch)]
        raise deep[0] if deep else _mismatch(place, str(annotation), value)

    return convert


def _literal(values: tuple[Any, ...]) -> Convert:
    def convert(value: Any, place: str) -> Any:
        if not any(value == each and type(value) is type(each) for each in values):
            raise _mismatch(place, "one of " + ", ".join(map(repr, values)), value)
        return value

    return convert


def _fields(hints: dict[str, Any], required: set[str]) -> Callable[[Any, str], dict[str, Any]]:
    """Reads an object with these fields. They are looked at when first needed: a type may mention itself."""
    converts: dict[str, Convert | None] = {}
    mapping = _exactly(dict, "an object")

    def read(value: Any, place: str) -> dict[str, Any]:
        mapping(value, place)
        missing = sorted(required - value.keys())
        if missing:
            names = ", ".join(f"`{name}`" for name in missing)
            raise Mismatch(f"the request's data cannot be read as asked for{_at(place)}: {names} is missing")
        fields = {}
        for name, member in value.items():
            if name not in hints:
                continue
            if name not in converts:
                converts[name] = converter(hints[name])
            convert = converts[name]
            fields[name] = member if convert is None else convert(member, f"{place}.{name}")
        return fields

    return read


def _typed_dict(annotation: Any) -> Convert:
    return _fields(get_type_hints(annotation, include_extras=True), set(annotation.__required_keys__))


def _dataclass(annotation: type) -> Convert:
    hints = get_type_hints(annotation, include_extras=True)
    fields = [field for field in dataclasses.fields(annotation) if field.init]
    needed = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    read = _fields({field.name: hints[field.name] for field in fields}, needed)

    def convert(value: Any, place: str) -> Any:
        try:
            return annotation(**read(value, place))
        # A dataclass may refuse values in its `__post_init__`.
        except (TypeError, ValueError) as error:
            raise Mismatch(f"the request's data cannot be read as asked for{_at(place)}: {error}") from error

    return convert


__all__ = ["Mismatch", "Read", "read_json", "reader"]
