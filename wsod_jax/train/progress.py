"""Metrics of a run: fetched one update late, checked, averaged, timed and written."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wsod_jax.errors import ConfigError, NonFiniteError
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.logging import Writer
from wsod_jax.train.optim import path_name
from wsod_jax.train.sharding import fetch
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import MISMATCH, Metrics


class Progress:
    """Fetches metrics one update late, checks and averages them, and measures the time."""

    def __init__(
        self,
        log_interval: int,
        writers: Sequence[Writer],
        checkpoints: Checkpoints | None,
    ) -> None:
        self._log_interval, self._writers = log_interval, writers
        self._checkpoints = checkpoints
        self._pending: tuple[int, Metrics, int, float | None] | None = None
        self._cued: float | None = None  # seconds of the host stage for the next update
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._count, self._images, self._waited, self._excluded = 0, 0, 0.0, 0.0
        self._started = time.perf_counter()

    def add(self, step: int, metrics: Metrics, images: int) -> None:
        """Store the metrics of an update that may still be running; process those of the one before."""
        self.drain()
        self._pending, self._cued = (step, metrics, images, self._cued), None

    def drain(self) -> None:
        """Wait for the pending metrics and process them."""
        if self._pending is None:
            return
        (step, metrics, images, cued), self._pending = self._pending, None
        values = {name: float(value) for name, value in fetch(metrics).items()}
        _check_metrics(values, step, self._checkpoints)
        values.pop(MISMATCH, None)  # always 0 from here on
        if cued is not None:
            values["cues_s"] = cued
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._images += images
        if (
            step == 1 < self._log_interval
        ):  # to compare the start of runs; too early for their speed
            self.write(step, values)
        if step % self._log_interval == 0:
            elapsed = max(time.perf_counter() - self._started - self._excluded, 1e-9)
            means = {name: total / self._count for name, total in self._sums.items()}
            means["images_per_s"] = self._images / elapsed
            means["input_wait"] = min(self._waited / elapsed, 1.0)
            means["step_s"] = elapsed / self._count
            self.write(step, means)
            self._reset()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send scalars to every writer."""
        for writer in self._writers:
            writer.write(step, scalars)

    def exclude(self, seconds: float, *, cueing: bool = False) -> None:
        """Exclude past seconds from the speed, and if `cueing` from those of the host stage."""
        self._excluded += seconds
        if cueing:
            self._cued = (self._cued or 0.0) - seconds

    def waiting(self) -> _Timer:
        """Count a block's time as waiting for input."""
        return _Timer(self, "_waited")

    def cueing(self) -> _Timer:
        """Count a block's time as spent on the host stage."""
        return _Timer(self, "_cued")

    def pause(self) -> _Timer:
        """Exclude a block's time from the speed."""
        return _Timer(self, "_excluded")


class _Timer:
    """Adds the duration of a block to a field of a `Progress`."""

    def __init__(self, progress: Progress, field: str) -> None:
        self._progress, self._field = progress, field

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._started
        setattr(self._progress, self._field, (getattr(self._progress, self._field) or 0.0) + spent)


def _check_metrics(values: Mapping[str, float], step: int, checkpoints: Checkpoints | None) -> None:
    if values.get(MISMATCH, 0.0) > 1e-3:
        raise ConfigError(
            f"update {step}: loss terms that share a normalizer (Term.per) have different weights, off by "
            f"{values[MISMATCH]:.2g} of the larger; give each normalizer its own name"
        )
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        # A bad term makes the sum and the norms bad too: name only the terms.
        terms = {n: v for n, v in wrong.items() if n.startswith("loss/")} or wrong
        what = ", ".join(f"{name} = {value}" for name, value in terms.items())
        raise NonFiniteError(_not_finite(f"update {step}: {what}", checkpoints))


def check_state(state: TrainState, done: int, checkpoints: Checkpoints) -> None:
    """Raise if a state to be saved has values that are not finite (extras: NaN)."""
    trained = _floats({"params": state.params, "opt_state": state.opt_state, "ema": state.ema})
    verdicts = {**_all_finite(trained), **_no_nan(_floats({"extras": state.extras}))}
    bad = [name for name, good in fetch(verdicts).items() if not good]
    if bad:
        what = f"the state after update {done}: {', '.join(bad[:4])} ({len(bad)} arrays)"
        raise NonFiniteError(_not_finite(what, checkpoints))


def _floats(tree: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(p): x for p, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}


@jax.jit
def _all_finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.all(jnp.isfinite(x)) for name, x in arrays.items()}


@jax.jit
def _no_nan(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: ~jnp.any(jnp.isnan(x)) for name, x in arrays.items()}


def last_good(checkpoints: Checkpoints | None) -> str:
    """Describe the checkpoint that a run can resume from."""
    if checkpoints is None or checkpoints.latest is None:
        return "no checkpoint was saved"
    return f"the last good checkpoint is step {checkpoints.latest} in {checkpoints.folder}"


def _not_finite(what: str, checkpoints: Checkpoints | None) -> str:
    return (
        f"not finite in {what}; training stopped and this state was not saved; {last_good(checkpoints)}. "
        "Lower the learning rate, lengthen the warm-up or set clip_norm, and start in a new workdir"
    )
