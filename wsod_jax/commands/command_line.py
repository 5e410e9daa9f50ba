"""What all commands share: how one is run, the file that --config names, and settings given on the command line."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wsod_jax.errors import ConfigError, CueError, DataError, NonFiniteError, PeerError

PACKAGE = Path(__file__).resolve().parents[1]
# The shipped ones: inside an installed package, next to the package of a checkout.
CONFIGS = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()),
    PACKAGE / "configs",
)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return an empty parser whose help is a module's docstring, and which takes no abbreviated option."""
    return argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
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
    """Run the body of a command; an error that the user can fix ends it with one line instead of a traceback.

    Args:
      run: the body; it may return an exit status, `None` is 0.
      options: its argument.
      interrupted: what to say after Ctrl-C.

    Returns:
      The exit status: 1 after an error of `errors.py`, `OSError`, or where JAX does not start, 130 after Ctrl-C.
    """
    try:
        return run(options) or 0
    except (ConfigError, CueError, DataError, NonFiniteError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (AssertionError, RuntimeError):
        fault = missing_platform()
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def missing_platform() -> str | None:
    """Say that JAX does not start on the platform it was asked for; return `None` if it does, or was not imported.

    It may start on another platform afterwards: the command ends here.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        jax.devices()
        return None
    except (AssertionError, RuntimeError) as error:  # the former for a plugin that is not installed
        asked, reason = jax.config.jax_platforms, str(error).partition("\n")[0]
    jax.config.update("jax_platforms", None)
    try:
        there = jax.default_backend()
    except (AssertionError, RuntimeError):
        there = "no other"
    return (
        f"JAX was asked for the platform {asked!r}, which is not here ({reason or 'no plugin for it'}); here is "
        f"{there!r}. Unset JAX_PLATFORMS to use it, or install JAX for that platform (README.md)"
    )


def command_text(arguments: Sequence[str] | None = None) -> str:
    """Return the command line of this process, to type it again; `arguments` as `main` got them."""
    given = sys.argv[1:] if arguments is None else arguments
    program = sys.argv[0]  # `wsod-jax COMMAND`, or a script
    start = program.split() if program.startswith("wsod-jax ") else [sys.executable, program]
    return shlex.join([*start, *given])


# -- configurations


def find_config(name: str) -> Path:
    """Return the file of this path, or of the shipped configuration of this name, such as "debug_tiny".

    Raises:
      DataError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = CONFIGS / f"{name}.py"
    if re.fullmatch(r"\w+", name) and shipped.is_file():
        return shipped
    stems = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
    close = difflib.get_close_matches(Path(name).stem, stems, n=4)
    raise DataError(
        f"--config {name}: no such file, and no shipped configuration of this name. Close names: "
        f"{', '.join(close) or 'none'}; all of them: {CONFIGS}"
    )


def load_config(argument: str) -> dict[str, Any]:
    """Return the values of a configuration, FILE or FILE:VARIANT; FILE is a path or the name of a shipped one.

    The file is Python and has a function `get_config`, which returns a `ConfigDict` or a dict; the variant is its
    argument.

    Raises:
      DataError: there is no such file or shipped configuration.
      ConfigError: it is not Python, is of version 0.1, or has no `get_config`, or no such variant.
    """
    given, colon, variant = argument.partition(":")
    path = str(find_config(given))
    if colon and not variant:
        raise ConfigError(f"--config {argument}: give a variant after the colon, or drop it")
    _check_source(path)
    with _told_by(path):
        get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ConfigError(f"{path} has no function get_config; the shipped ones in {CONFIGS} do")
    arguments = (variant,) if colon else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        found = f"takes no variant, found {variant!r}" if colon else "needs a variant, found none"
        raise ConfigError(
            f"{path} {found}; give --config {path}{'' if colon else ':VARIANT'}. Its docstring says more"
        ) from None
    with _told_by(path, get_config, variant):
        values = get_config(*arguments)
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, dict):
        raise ConfigError(
            f"get_config of {path} returned {type(values).__name__}; it must return a ConfigDict or a dict"
        )
    return values


def _check_source(path: str) -> None:
    """Raise `ConfigError` for a file that is not Python, or that imports version 0.1's package `configs`."""
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            is_absolute = isinstance(node, ast.ImportFrom) and not node.level
            modules = [node.module] if is_absolute else []
        for module in modules:
            if _is_old(module):
                raise ConfigError(_of_old_version(path, module))


def _is_old(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "configs"


def _of_old_version(path: str, module: str) -> str:
    return (
        f"{path} is of version 0.1: it imports {module}; its settings are in wsod_jax.presets now; CHANGELOG.md has "
        "the table"
    )


@contextlib.contextmanager
def _told_by(
    path: str, get_config: Callable[..., Any] | None = None, variant: str = ""
) -> Iterator[None]:
    """Turn an error of a configuration file that its user can fix into a `ConfigError` that names the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ModuleNotFoundError as error:
        if not _is_old(error.name):
            raise
        raise ConfigError(_of_old_version(path, error.name)) from error
    except (AttributeError, KeyError, ValueError) as error:
        if variant and variant in str(error) and not isinstance(error, AttributeError):
            raise ConfigError(
                f"{path} has no variant {variant!r} ({type(error).__name__}: {error}); its get_config says which it "
                f"has: {inspect.getdoc(get_config) or 'it has no docstring'}"
            ) from error
        section = re.search(r"'(network|neck|soft_proposal|localization)'", str(error))
        if section is None or isinstance(error, ValueError):
            raise
        raise ConfigError(
            f"{path} is of version 0.1: it asks for config.{section[1]}, whose options have moved; CHANGELOG.md has "
            "the table"
        ) from error


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
