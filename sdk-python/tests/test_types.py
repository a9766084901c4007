"""What the annotation of a handler's data makes of it, and what data it refuses."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from shared import one

from ringpost import RemoteError


@dataclass
class Item:
    name: str
    price: float = 1.0


@dataclass
class Order:
    items: list[Item]
    kind: Literal["new", "old"] = "new"
    note: str | None = None
    tags: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.items) > 3:
            raise ValueError("too many items")


class Point(TypedDict):
    x: int
    y: NotRequired[float]


class Model(pydantic.BaseModel):
    number: int


class Struct(msgspec.Struct):
    number: int


async def order(data: Order) -> Order:
    assert isinstance(data, Order)
    assert all(isinstance(item, Item) for item in data.items)
    return data


async def point(data: Point) -> Point:
    return data


async def model(data: Model) -> Model:
    return Model(number=data.number + 1)


async def struct(data: Struct) -> Struct:
    return Struct(number=data.number + 1)


async def annotated(data: Annotated[list[Model], "of models"]) -> list[int]:
    return [model.number for model in data]


async def anything(data: Any) -> Any:
    return data


async def number(data: int) -> int:
    return data


async def mapping(data: dict) -> dict:
    return data


@pytest.mark.parametrize(
    ("function", "data", "expected"),
    [
        (
            order,
            {"items": [{"name": "a"}]},
            {"items": [{"name": "a", "price": 1.0}], "kind": "new", "note": None, "tags": {}},
        ),
        (
            order,
            {"items": [], "tags": {"a": 1}, "other": 1},
            {"items": [], "kind": "new", "note": None, "tags": {"a": 1}},
        ),
        (point, {"x": 1}, {"x": 1}),
        (point, {"x": 1, "y": 2}, {"x": 1, "y": 2.0}),
        (model, {"number": 1}, {"number": 2}),
        (struct, {"number": 1}, {"number": 2}),
        (annotated, [{"number": 1}, {"number": 2}], [1, 2]),
        (anything, [None], [None]),
        (number, 5, 5),
        (mapping, {}, {}),
    ],
)
async def test_data_of_a_type(clients, function, data, expected):
    """Annotations name dataclasses, TypedDicts, pydantic models, msgspec structs: they are made, and written."""
    client = await clients()
    await client.handle("x", function)
    assert (await client.request("x", data)).data == expected


@pytest.mark.parametrize(
    ("function", "data", "says"),
    [
        (order, {}, "`items` is missing"),
        (order, {"items": [{"name": "a"}, {"name": 1}]}, r"at `items\[1\].name`: a string is wanted, not int 1"),
        (order, {"items": [{}]}, r"at `items\[0\]`: `name` is missing"),
        (order, {"items": [], "kind": "other"}, "at `kind`: one of 'new', 'old' is wanted"),
        (order, {"items": [], "note": 1}, "at `note`"),
        (order, {"items": [], "tags": {"a": "b"}}, "at `tags.a`: an integer is wanted"),
        (order, {"items": [{"name": "a"}] * 4}, "too many items"),
        (order, 7, "an object is wanted, not int 7"),
        (point, {"y": 1}, "`x` is missing"),
        (model, {"number": "x"}, "valid integer"),
        (struct, {"number": "x"}, r"Expected `int`, got `str` - at `\$.number`"),
        (annotated, [{}], r"at `\[0\]`"),
        (number, True, "an integer is wanted, not bool True"),
        (number, None, "an integer is wanted, not null"),
        (mapping, [], "an object is wanted"),
        (one, b"\xff{", "cannot be read as JSON"),
        (struct, b"{", "cannot be read as asked for"),
    ],
)
async def test_data_of_another_type(clients, function, data, says):
    """Data of another type is answered with an error that names the place; that is nothing to log."""
    client = await clients()
    await client.handle("x", function)
    with pytest.raises(RemoteError, match=says) as caught:
        await client.request("x", data)
    assert caught.value.handler_code == "malformed"


async def test_annotations_that_only_a_type_checker_sees(clients):
    """A handler whose annotations name nothing at run time gets its data as it is."""

    async def handle(data: "Nowhere"):  # noqa: F821
        return data

    client = await clients(action="x", request_handler=handle)
    assert (await client.request("x", [1])).data == [1]
