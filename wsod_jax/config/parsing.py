"""From plain values to typed objects and back: each field declares its allowed values.

A class of options is a dataclass or a flax module. Its fields are annotated with bool, int, float, str, Path, None,
literals, `jnp.dtype`, other classes of options, and unions, tuples and mappings (by name) of these, and carry the marks
of `options.py`. Nothing here knows which classes there are: unions come as `tables` from above.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np

from wsod_jax.errors import ConfigError
from wsod_jax.options import (
    UNIONS,
    Choice,
    Range,
    choice_of,
    default_of,
    is_required,
    is_section,
    literals_of,
    marks,
    members,
    option_hints,
)

Tables = Mapping[str, Mapping[str, type]]  # of each union: name -> class

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_LEAVES = {bool: "True, False", int: "whole numbers", float: "numbers", type(None): "None"}
_LEAVES |= {str: "text", Path: "text"}
_ANY_NUMBER = Range()


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A member of a union whose options are checked, and which still needs parts to become an object.

    Attributes:
      name: its name in the table.
      cls: its class.
      options: the value of every option, defaults included.
    """

    name: str
    cls: type
    options: Mapping[str, Any]

    def make(self, **parts: Any) -> Any:
        """Return the object; of the parts the class takes those that it declares as fields without a default.

        Raises:
          ConfigError: if it declares another field without a default, or its constructor refuses its options.
        """
        declared = [f.name for f in dataclasses.fields(self.cls) if f.init and is_required(f)]
        missing = [name for name in declared if name not in parts]
        if missing:
            raise ConfigError(
                f"{self.name!r}: {self.cls.__name__} has {', '.join(missing)} without a default, but the parts given "
                f"to it are {', '.join(parts)}; every other field is an option and needs a default"
            )
        return self.cls(**self.options, **{name: parts[name] for name in declared})


class _Misfit(Exception):
    """A value is not of an annotation; the message is made where the whole annotation is known."""


def plain(value: Any) -> Any:
    """Return a configuration's values as plain Python: mappings as dicts, lists as tuples, no NumPy, no paths."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "items") and not isinstance(value, type):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def parse(cls: type, values: Mapping[str, Any], tables: Tables, where: str = "config") -> Any:
    """Make an object of a class of options; see `parse_options`."""
    return cls(**parse_options(cls, values, tables, where))


def parse_options(
    cls: type,
    values: Mapping[str, Any],
    tables: Tables,
    where: str,
    *,
    choice: Choice | None = None,
    with_parts: bool = True,
) -> dict[str, Any]:
    """Return the keyword arguments of `cls` that values give.

    Args:
      cls: the class.
      values: its options by name, as `plain` returns them.
      tables: the unions that `Choice` marks name.
      where: the section's dotted name, for messages.
      choice: the union that `cls` is a member of.
      with_parts: fields without a default are options too.

    Raises:
      ConfigError: for an option that does not exist (with the closest one that does, or the members of the union
        that have it), one that is missing, or a value of another type or out of range.
    """
    hints = option_hints(cls, with_parts)
    for key in values:
        if key not in hints:
            raise ConfigError(unknown(key, hints, where, tables, choice, with_parts))
    lacking = [
        field
        for field in dataclasses.fields(cls)
        if field.name in hints and field.name not in values and is_required(field)
    ]
    if lacking:
        advice = "".join(f"; {f.metadata['advice']}" for f in lacking if "advice" in f.metadata)
        raise ConfigError(f"{where} lacks {', '.join(f.name for f in lacking)}{advice}")
    return {
        key: parse_value(value, hints[key], tables, f"{where}.{key}")
        for key, value in values.items()
    }


def parse_value(value: Any, hint: Any, tables: Tables, where: str) -> Any:
    """Return one option's value as its annotation has it; raise `ConfigError` with what is allowed."""
    try:
        return _convert(value, hint, tables, where, _ANY_NUMBER)
    except _Misfit:
        raise ConfigError(
            f"{where} is {value!r}; allowed are {described(hint)}"
            + suggestion(str(value), [str(choice) for choice in literals_of(hint)])
        ) from None


def unknown(
    key: str,
    known: Iterable[str],
    where: str,
    tables: Tables,
    choice: Choice | None = None,
    with_parts: bool = True,
) -> str:
    """Return the message that an option does not exist: which do, the closest, and which members have it."""
    table = {} if choice is None else tables[choice.table]
    known = [*known] if choice is None else [*dict.fromkeys((choice.key, *known))]
    owners = [name for name, cls in table.items() if key in option_hints(cls, with_parts)]
    message = f"{where}.{key} does not exist; {where} takes {', '.join(known) or 'no options'}"
    if owners:
        return f"{message}. It is an option of {', '.join(owners)}"
    return message + suggestion(key, known)


def suggestion(word: str, choices: Sequence[str]) -> str:
    """Return the end of a message: the choice that is close to a word, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def described(hint: Any, bounds: Range = _ANY_NUMBER) -> str:
    """Return what an annotation allows, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        choice = choice_of(hint)
        if choice is not None:
            return f"a section with {choice.key}" + ", None" * (type(None) in members(hint))
        return described(parts[0], _bounds(hint, bounds))
    if origin is Literal:
        return ", ".join(map(repr, parts))
    if origin in UNIONS:
        return ", ".join(dict.fromkeys(described(part, bounds) for part in parts))
    if origin is Sequence or (origin is tuple and parts[-1] is Ellipsis):
        return f"tuples of {described(parts[0], bounds)}"
    if origin is tuple:
        return f"tuples ({'; '.join(described(part, bounds) for part in parts)})"
    if origin is Mapping:
        return f"sections by name, each {described(parts[1])}"
    if hint is jnp.dtype:
        return ", ".join(map(repr, DTYPES))
    if is_section(hint):
        return f"a section of {', '.join(option_hints(hint))}"
    return _LEAVES.get(hint, str(hint)) + (str(bounds) if hint in (int, float) else "")


def to_values(value: Any, hint: Any, tables: Tables) -> Any:
    """Return a typed value as JSON has it; parsing it again gives an equal one. Every option is told."""
    choice = choice_of(hint)
    if isinstance(value, Chosen):
        hints = option_hints(value.cls, with_parts=False)
        told = {key: to_values(value.options[key], hints[key], tables) for key in hints}
        return {choice.key: value.name, **told}
    if is_section(type(value)):
        hints = option_hints(type(value))
        told = {key: to_values(getattr(value, key), hints[key], tables) for key in hints}
        if choice is None:
            return told
        name = next(n for n, cls in tables[choice.table].items() if cls is type(value))
        return {choice.key: name, **told}
    if isinstance(value, tuple | list):
        return [to_values(item, None, tables) for item in value]
    if isinstance(value, Mapping):
        return {key: to_values(item, None, tables) for key, item in value.items()}
    if jnp.dtype in members(hint) and value is not None:
        return jnp.dtype(value).name
    return plain(value)


def fits(value: Any, hint: Any, tables: Tables) -> bool:
    """Return whether a value is of an annotation; what is wrong inside a section is not looked at."""
    try:
        _convert(value, hint, tables, "config", _ANY_NUMBER)
    except _Misfit:
        return False
    except ConfigError:
        return True
    return True


def resolve(
    cls: type, path: Sequence[str], values: Any, tables: Tables, where: str = "config"
) -> list[Any]:
    """Return the annotations along a path of option names, of which the last is the option's.

    Args:
      cls: the class of the outermost section.
      path: names, outermost first.
      values: plain values of that section, whose unions say which members they chose.
      tables: the unions.
      where: the section's dotted name, for messages.

    Raises:
      ConfigError: if there is no such option, with the closest one that there is, or a union chose no member.
    """
    hints, choice, passed, with_parts = option_hints(cls), None, [], True
    for i, key in enumerate(path):
        if key not in hints:
            raise ConfigError(unknown(key, hints, where, tables, choice, with_parts))
        hint, where = hints[key], f"{where}.{key}"
        passed.append(hint)
        if i + 1 == len(path):
            break
        values = values.get(key) if isinstance(values, Mapping) else None
        values = values if isinstance(values, Mapping) else {}
        choice, inside = choice_of(hint), next(filter(is_section, members(hint)), None)
        with_parts = Chosen not in members(hint)
        if choice is not None:
            hints = {choice.key: Literal[tuple(tables[choice.table])]}
            if path[i + 1] != choice.key:
                inside = tables[choice.table][chosen_name(values, choice, tables, where)]
                hints |= option_hints(inside, with_parts)
        elif inside is not None:
            hints = option_hints(inside)
        elif typing.get_origin(hint) is Mapping:  # sections by any name
            hints = {path[i + 1]: typing.get_args(hint)[1]}
        else:
            raise ConfigError(
                f"{where} has no options such as {path[i + 1]!r}; it takes {described(hint)}"
            )
    return passed


def _convert(value: Any, hint: Any, tables: Tables, where: str, bounds: Range) -> Any:
    """Return a value as an annotation has it; `_Misfit` if it is none, `ConfigError` from inside a section."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        choice = choice_of(hint)
        if choice is not None and value is not None:
            return _member(value, hint, tables, where)
        return _convert(value, parts[0], tables, where, _bounds(hint, bounds))
    if origin in UNIONS:
        for part in parts:
            try:
                return _convert(value, part, tables, where, bounds)
            except _Misfit:
                continue
        raise _Misfit
    if origin is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise _Misfit
        return value
    if origin in (tuple, Sequence):
        return _tuple(value, parts, tables, where, bounds)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _Misfit
        return {
            key: _convert(item, parts[1], tables, f"{where}.{key}", bounds)
            for key, item in value.items()
        }
    if is_section(hint):
        return _section(value, hint, tables, where)
    return _leaf(value, hint, where, bounds)


def _tuple(value: Any, parts: tuple, tables: Tables, where: str, bounds: Range) -> tuple:
    if not isinstance(value, tuple):
        raise _Misfit
    if len(parts) == 1 or parts[-1] is Ellipsis:  # Sequence[x] or tuple[x, ...]
        parts = parts[:1] * len(value)
    if len(parts) != len(value):
        raise _Misfit
    items = []
    for i, (item, part) in enumerate(zip(value, parts, strict=True)):
        if is_section(part) and isinstance(item, tuple):  # given by position
            names = list(option_hints(part))
            if not getattr(part, "least_by_position", 0) <= len(item) <= len(names):
                raise _Misfit
            item = dict(zip(names, item, strict=False))
        items.append(_convert(item, part, tables, f"{where}[{i}]", bounds))
    return tuple(items)


def _section(value: Any, cls: type, tables: Tables, where: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _Misfit
    return parse(cls, value, tables, where)


def _member(value: Any, hint: Any, tables: Tables, where: str) -> Any:
    """Return the member of a union that a section chooses."""
    choice = choice_of(hint)
    table = tables[choice.table]
    if isinstance(value, Chosen) or type(value) in table.values():
        return value
    if not isinstance(value, Mapping):
        raise _Misfit
    name = chosen_name(value, choice, tables, where)
    rest = {key: item for key, item in value.items() if key != choice.key}
    to_make = Chosen in members(hint)
    given = parse_options(table[name], rest, tables, where, choice=choice, with_parts=not to_make)
    if not to_make:
        return table[name](**given)
    options = option_hints(table[name], with_parts=False)
    defaults = {f.name: f for f in dataclasses.fields(table[name])}
    return Chosen(
        name,
        table[name],
        {key: given[key] if key in given else default_of(defaults[key]) for key in options},
    )


def chosen_name(values: Mapping[str, Any], choice: Choice, tables: Tables, where: str) -> str:
    """Return the name that a section gives its union's member; raise `ConfigError` if there is none such."""
    table, name = tables[choice.table], values.get(choice.key)
    if not table:
        raise ConfigError(
            f"{where}.{choice.key} is {name!r}, but no {choice.what} is known here; leave {where} out"
        )
    if not isinstance(name, str) or name not in table:
        raise ConfigError(
            f"{where}.{choice.key} is {name!r}; allowed are {', '.join(table)}"
            + suggestion(str(name), list(table))
        )
    return name


def _leaf(value: Any, hint: Any, where: str, bounds: Range) -> Any:
    if hint is Any:
        return value
    if hint is jnp.dtype:
        if isinstance(value, str) and value in DTYPES:
            return DTYPES[value]
        if value in DTYPES.values():
            return value
        raise _Misfit
    if hint not in _LEAVES:
        raise TypeError(
            f"{where} is annotated with {hint}; options are numbers, text, None, literals, dtypes, classes of options, "
            "and unions and tuples of these"
        )
    if hint is Path and isinstance(value, str):
        return Path(value)
    kinds = int | float if hint is float else hint
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise _Misfit
    if hint in (int, float) and value not in bounds:
        raise _Misfit
    return float(value) if hint is float else value


def _bounds(hint: Any, outer: Range) -> Range:
    return next((mark for mark in marks(hint) if isinstance(mark, Range)), outer)
