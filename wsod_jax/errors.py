"""The errors that users meet. Each message says what was wrong, what was found, what is allowed and what to do."""


class DataError(ValueError):
    """An input file or folder that cannot be used: images, labels, proposals, weights, checkpoints."""


class ConfigError(ValueError):
    """A configuration that cannot be built: unknown or missing key, wrong value, or a mismatch with a workdir."""


class PeerError(RuntimeError):
    """Another process of the run failed; its own message says why."""


class CueError(RuntimeError):
    """A cue source raised an error, was killed, or returned other than what it was asked for."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or parameter became infinite or not a number."""
