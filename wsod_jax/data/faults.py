"""What the readers do about a faulty image or annotation: leave it out, logged and counted, or stop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from wsod_jax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
_NAMED = 10  # faults named one by one; the count tells of the others


class HostileFile(DataError):
    """A file made to harm its reader; never skipped."""


def check_on_bad(on_bad: OnBad) -> None:
    """Raise `ConfigError` unless `on_bad` is one of the two."""
    if on_bad not in ("error", "skip"):
        raise ConfigError(f'on_bad={on_bad!r}; allowed are "error" and "skip".')


def skip_or_raise(error: DataError, on_bad: OnBad, counts: dict[str, int]) -> None:
    """Count a fault in `counts["bad_image"]` and log the first ten, or raise it with `on_bad` "error"."""
    if on_bad == "error" or isinstance(error, HostileFile):
        raise error
    counts["bad_image"] += 1
    if counts["bad_image"] <= _NAMED:
        logger.warning("left out: %s", error)


def log_counts(name: str, counts: Mapping[str, int]) -> None:
    """Log what was met while reading a set, where anything was."""
    found = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
    if found:
        logger.warning("%s: %s", name, found)
