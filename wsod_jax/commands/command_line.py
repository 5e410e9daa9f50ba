"""What all commands share: how one is run, the file that --config names, and settings given on the command line."""

from __future__ import annotations

import argparse
import inspect
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsod_jax.errors import ConfigError, CueError, DataError, NonFiniteError, PeerError


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return an empty parser whose help is a module's docstring, and which takes no abbreviated option."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_command(
    run: Callable[[argparse.Namespace], int | None],
    options: argparse.Namespace,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Run the body of a command; what a user can mend ends it with one line instead of a traceback.

    Args:
      run: the body; it may return an exit status, `None` is 0.
      options: its argument.
      interrupted: what to say after Ctrl-C.

    Returns:
      The exit status: 1 after an error of `errors.py` or `OSError`, 130 after Ctrl-C.
    """
    try:
        return run(options) or 0
    except (ConfigError, CueError, DataError, NonFiniteError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def command_text(arguments: Sequence[str] | None = None) -> str:
    """Return the command line of this process, to type it again; `arguments` as `main` got them."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join([sys.executable, sys.argv[0], *given])


# -- configuration files


def load_config(argument: str) -> dict[str, Any]:
    """Return the values of a configuration file, FILE or FILE:VARIANT.

    The file is Python and has a function `get_config`, which returns a `ConfigDict` or a dict; the variant is its
    argument.

    Raises:
      DataError: there is no such file.
      ConfigError: it has no `get_config`, or no such variant.
    """
    path, colon, variant = argument.partition(":")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such configuration file; --config takes FILE or FILE:VARIANT")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ConfigError(f"{path} has no function get_config; configs/debug_tiny.py shows one")
    given = (variant,) if colon else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        found = f"takes no variant, found {variant!r}" if colon else "needs a variant, found none"
        raise ConfigError(
            f"{path} {found}; give --config {path}{'' if colon else ':VARIANT'}. Its docstring says more"
        ) from None
    try:
        values = get_config(*given)
    except (KeyError, ValueError) as error:
        if isinstance(error, ConfigError) or not variant or variant not in str(error):
            raise
        raise ConfigError(
            f"{path} has no variant {variant!r} ({type(error).__name__}: {error}); its get_config says which it has: "
            f"{inspect.getdoc(get_config) or 'it has no docstring'}"
        ) from error
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, dict):
        raise ConfigError(
            f"get_config of {path} returned {type(values).__name__}; it must return a ConfigDict or a dict"
        )
    return values


# -- settings on the command line


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line that may hold settings, --config.a.b=c or --config.a.b c.

    Returns:
      The parsed options, and as `overrides` the settings in their order, each "a.b=c".
    """
    rest, overrides = [], []
    given = iter(sys.argv[1:] if arguments is None else arguments)
    for argument in given:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(given, "--")
            if value.startswith("--"):
                parser.error(f"{argument} has no value; settings look like {argument}=VALUE")
        overrides.append(f"{key}={value}")
    options = parser.parse_args(rest)
    options.overrides = overrides
    return options


def add_set_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--set KEY=VALUE`, which may be given several times."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice between the trained parameters and their running average."""
    parser.add_argument(
        "--weights",
        choices=("params", "ema"),
        help="the trained weights, or their running average, which runs with train.ema_decay have (default: those "
        "that are the method's detector)",
    )
    parser.add_argument(
        "--ema", dest="weights", action="store_const", const="ema", help="short for --weights ema"
    )
