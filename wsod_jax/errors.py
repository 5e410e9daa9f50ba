"""Errors for users. Each message says what was wrong, what was found, what is allowed and what to do."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """An unusable input file or folder: images, labels, proposals, weights, checkpoints."""


class ConfigError(ValueError):
    """A configuration that cannot be built: unknown or missing key, wrong value, or a mismatch with a workdir."""


class PeerError(RuntimeError):
    """Another process of the run failed; its own message says why."""


class CueError(RuntimeError):
    """A cue source raised an error, was killed, or returned an invalid answer."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or parameter became infinite or not a number."""


@contextlib.contextmanager
def error_prefix(section: str) -> Iterator[None]:
    """Put a section's name before `ConfigError`s that begin with an option's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{section}{error}") from error
