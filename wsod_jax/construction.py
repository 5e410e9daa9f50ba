"""From a section of a configuration to an object: its entries are the keyword arguments of one typed constructor."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from wsod_jax.config_values import check_value, suggestion
from wsod_jax.errors import ConfigError


def construct(function: Callable, section: Mapping[str, Any], name: str, **given: Any) -> Any:
    """Call `function` with a section's entries as keyword arguments.

    Args:
      function: a class or function with named, annotated arguments.
      section: the entries; lists become tuples.
      name: of the section, for messages.
      **given: arguments that do not come from the configuration.

    Raises:
      ConfigError: for a key that the function does not take (with the closest one it does), one that
        is missing, or a value that `check_value` refuses.
    """
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    allowed = [key for key in parameters if key not in given and key not in hidden(function)]
    values = {key: _plain(value) for key, value in section.items()}
    for key, value in values.items():
        check_known(key, allowed, name)
        check_value(f"{name}.{key}", value, hints.get(key))
    missing = [
        key
        for key in allowed
        if parameters[key].default is inspect.Parameter.empty and key not in values
    ]
    if missing:
        raise ConfigError(f"config.{name} lacks {', '.join(missing)}")
    return function(**values, **given)


def choose(table: Mapping[str, Any], section: Mapping[str, Any], name: str) -> tuple[Any, dict]:
    """Look up `section["name"]` in a table; return the entry and the section's other keys."""
    rest = dict(section.items())
    found = rest.pop("name", None)
    if found not in table:
        raise ConfigError(
            f"config.{name}.name is {found!r}; allowed are {', '.join(table)}"
            + suggestion(str(found), list(table))
        )
    return table[found], rest


def check_known(key: str, allowed: list[str], name: str) -> None:
    """Raise `ConfigError` unless `key` is allowed in section `name`, with the closest that is."""
    if key not in allowed:
        raise ConfigError(
            f"config.{name}.{key} does not exist; config.{name} takes {', '.join(allowed)}"
            + suggestion(key, allowed)
        )


def hidden(function: Callable) -> tuple[str, ...]:
    """Return the arguments of a constructor that are no settings."""
    is_module = inspect.isclass(function) and issubclass(function, nn.Module)
    return ("self", "parent", "name") if is_module else ("self",)


def _plain(value: Any) -> Any:
    """Return configuration values as plain Python: lists, nested too, become tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
