"""Run one of the commands, as `wsod-jax` and `python -m wsod_jax` do.

wsod-jax COMMAND --help     what a command does, and its options
wsod-jax --version
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from wsod_jax import __version__

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "make_proposals",
    "make_synthetic",
    "convert_weights",
    "visualize",
    "demo",
    "benchmark",
    "sweep",
    "trace_files",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names with the others; return the exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    command = name.replace("-", "_")
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else "wsod-jax --help lists them"
        print(f"error: wsod-jax has no command {name!r}; {advice}", file=sys.stderr)
        return 2
    sys.argv = [f"wsod-jax {command}", *rest]  # the name in usage lines and in advice
    return importlib.import_module(f"wsod_jax.commands.{command}").main()


def help_text() -> str:
    """Return the list of commands, each with the first line of its documentation; none is imported."""
    folder = Path(__file__).parent / "commands"
    lines = []
    for name in COMMANDS:
        tree = ast.parse((folder / f"{name}.py").read_bytes())
        first = (ast.get_docstring(tree) or "").partition("\n\n")[0]
        lines.append(f"    {name:16}{' '.join(first.split())}")
    return "\n".join([(__doc__ or "").strip(), "", "Commands:", *lines])


if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
