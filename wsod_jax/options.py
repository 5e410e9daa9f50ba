"""Marks on the fields of option classes: allowed values, and whether they may change after training.

A class of options is a frozen dataclass (or a flax module) whose fields have a default, a type and, as
`Annotated[type, mark, ...]`, these marks. Only `config/` reads them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """Allowed numbers; bounds every number of a tuple.

    Attributes:
      low: the lowest one.
      high: the highest one.
      is_low_in: whether `low` itself is allowed.
      is_high_in: whether `high` itself is allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    is_low_in: bool = True
    is_high_in: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.is_low_in else value > self.low
        return above and (value <= self.high if self.is_high_in else value < self.high)

    def __str__(self) -> str:
        """Return the text after "numbers" in messages: " from 0 to 1", " above 0", or nothing."""
        low = f" {'from' if self.is_low_in else 'above'} {self.low:g}"
        if self.high == math.inf:
            return "" if self.low == -math.inf else low + " up" * self.is_low_in
        return f"{low} {'up ' * (not self.is_low_in)}to {'below ' * (not self.is_high_in)}{self.high:g}"


@dataclass(frozen=True)
class Choice:
    """The field is a union: the entry `key` of its section names a class in `table` (methods, backbones, ...).

    Attributes:
      table: name of the table.
      key: the entry.
      what: noun for a class of the table, for messages about an empty table.
    """

    table: str
    key: str = "name"
    what: str = "class"


class Mark(enum.Enum):
    """Options that may change while the run stays the same one.

    TEST: how a trained detector is tested; `--set` changes it for one command.
    LOCATION: paths of files. `--set` changes it, and a resumed run may.
    RESUME: a resumed run may change it.
    """

    TEST = "test"
    LOCATION = "location"
    RESUME = "resume"


SHARE = Range(0, 1)
COUNT = Range(1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, is_low_in=False)
BELOW_ONE = Range(0, 1, is_high_in=False)
DROPOUT = Range(0, 0.999)

UNIONS = (typing.Union, types.UnionType)


@functools.cache
def option_hints(cls: type, with_parts: bool = True) -> Mapping[str, Any]:
    """Return the options of a class with their annotations.

    Args:
      cls: a dataclass or a flax module.
      with_parts: include fields without a default, which code may fill.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(cls)
    # Every flax module has these two; checked by name, since importing flax takes a second.
    hidden = ("parent", "name") if any(field.name == "parent" for field in fields) else ()
    return {
        field.name: hints[field.name]
        for field in fields
        if field.init
        and field.name not in hidden
        and field.metadata.get("option", True)
        and (with_parts or not is_required(field))
    }


def is_required(field: dataclasses.Field) -> bool:
    """Return whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING


def default_of(field: dataclasses.Field) -> Any:
    """Return a field's default."""
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def is_section(hint: Any) -> bool:
    """Return whether an annotation is a class of options."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def marks(hint: Any) -> tuple:
    """Return the marks on an annotation."""
    return hint.__metadata__ if typing.get_origin(hint) is Annotated else ()


def choice_of(hint: Any) -> Choice | None:
    """Return the `Choice` on an annotation, or `None`."""
    return next((mark for mark in marks(hint) if isinstance(mark, Choice)), None)


def members(hint: Any) -> tuple:
    """Return the alternatives of an annotation, without marks."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return members(parts[0])
    if origin in UNIONS:
        return tuple(member for part in parts for member in members(part))
    return (hint,)


def literals_of(hint: Any) -> tuple:
    """Return the literals in an annotation."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return parts
    if typing.get_origin(hint) is Annotated:
        parts = parts[:1]
    return tuple(literal for part in parts for literal in literals_of(part))
