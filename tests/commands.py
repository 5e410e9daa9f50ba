"""Running commands and training in tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from wsod_jax import build
from wsod_jax.runs import training as runs


def train(config, workdir: Path):
    """Train as the values of a configuration say; return the final state."""
    return runs.train(build.read_config(config), workdir)


def refused(
    main: Callable[[Sequence[str]], int], arguments: Sequence, message: str, capsys, status: int = 1
) -> None:
    """Check that a command ends with this status, and an error that matches `message`."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    printed = capsys.readouterr().err
    assert re.search(rf"error: .*{message}", printed, re.DOTALL), printed
