"""The training loop: feed, update, watch, log, save, stop."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wsod_jax.errors import ConfigError, DataError
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.logging import Writer
from wsod_jax.train.optim import path_name
from wsod_jax.train.sharding import put
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import MISMATCH, Metrics, TrainStep

Hook = Callable[[int, TrainState, Sequence[Any], Metrics], None]
Validate = Callable[[int, TrainState], Mapping[str, float]]


class NonFiniteError(FloatingPointError):
    """A loss, gradient or parameter became infinite or not a number."""


class Interrupted(SystemExit):
    """The run was asked to stop, saved its state, and ends with exit status 0."""

    def __init__(self, message: str) -> None:
        """Keep the message; the status is 0."""
        super().__init__(0)
        self.message = message


def train(
    step: TrainStep,
    state: TrainState,
    batches: Iterable[Any],
    *,
    total_steps: int,
    images_per_step: int,
    log_every: int,
    checkpoint_every: int,
    checkpoints: Checkpoints | None = None,
    writers: Sequence[Writer] = (),
    hooks: Sequence[Hook] = (),
    validate: Validate | None = None,
    profile_steps: tuple[int, int] | None = None,
    profile_folder: str | Path | None = None,
    resume_command: str = "the same command",
    say: Callable[[str], None] = print,
) -> TrainState:
    """Train from the state's step to `total_steps`.

    Metrics of update n are fetched after update n + 1 was dispatched, so the device never waits for
    them. Checkpoints fall on multiples of `checkpoint_every`, on the first state and on the last, and
    only after every number of that state was found finite. SIGTERM or Ctrl-C finishes the update,
    saves and raises `Interrupted`; a second Ctrl-C stops at once.

    Args:
      step: the update.
      state: donated; where to go on.
      batches: host micro-batches, starting with the first one of update `state.step`; `step.accumulate`
        of them make an update.
      total_steps: updates in all.
      images_per_step: global images per update, for images/s.
      log_every: updates between log entries, which hold means over the updates between them.
      checkpoint_every: updates between checkpoints.
      checkpoints: where to save, or `None`.
      writers: receive "images_per_s", "input_wait" (share of the time spent waiting for batches),
        "step_s" (seconds per update) and the step's metrics.
      hooks: called after each update with (updates done, state, micro-batches on the mesh, metrics on
        the device); a hook must not keep the state, which the next update overwrites.
      validate: scores of a state on a validation split, taken at checkpoints after the first.
      profile_steps: (first, last) updates to trace.
      profile_folder: where the trace goes.
      resume_command: what to type to go on, for messages.
      say: receives lines for humans.

    Returns:
      The final state.

    Raises:
      NonFiniteError: names the update, the terms and the last good checkpoint.
      DataError: if the batches end early.
      ConfigError: if terms that share a normaliser disagree on it, or an interval is not positive.
      Interrupted: after a signal, once saved.
    """
    if log_every < 1 or checkpoint_every < 1:
        raise ConfigError(
            f"intervals are at least 1, found log_every={log_every}, checkpoint_every={checkpoint_every}"
        )
    done = int(jax.device_get(state.step))
    record = _Record(done, images_per_step, log_every, writers, checkpoints)
    profile = _Profile(profile_steps, profile_folder)

    def save(validated: bool) -> None:
        record.drain()
        if checkpoints is not None and done not in checkpoints.steps:
            with record.pause():
                _check_state(state, done, checkpoints)
                scores = validate(done, state) if validate is not None and validated else None
                if scores:
                    record.write(done, scores)
                checkpoints.save(done, state, scores)

    save(validated=False)
    source = iter(batches)
    with _Signals(say) as signals, profile:
        while done < total_steps and not signals.received:
            with record.waiting():
                host = list(itertools.islice(source, step.accumulate))
                if len(host) < step.accumulate:
                    raise DataError(_too_few(done, total_steps))
                placed = [put(batch, step.mesh) for batch in host]
            profile.before(done + 1)
            state, metrics = _update(step, state, placed, record, say)
            done += 1
            record.add(done, metrics)
            profile.after(done, metrics)
            with record.pause():
                for hook in hooks:
                    hook(done, state, placed, metrics)
            if done % checkpoint_every == 0 or done == total_steps:
                save(validated=True)
        record.drain()
        if done < total_steps:
            save(validated=False)
            raise Interrupted(_stopped(signals.received, done, total_steps, resume_command, say))
    return state


def _update(
    step: TrainStep, state: TrainState, placed: list, record: _Record, say: Callable[[str], None]
) -> tuple[TrainState, Metrics]:
    """Dispatch one update; a compilation is announced and kept out of the timing."""
    programs, compilations = step.num_compilations(), len(step.compile_seconds)
    with jax.transfer_guard("disallow"):
        state, metrics = step.update(state, placed)
    if step.num_compilations() > programs:
        seconds = sum(step.compile_seconds[compilations:])
        record.exclude(seconds)
        shapes = sorted(
            {tuple(x.shape) for batch in placed for x in jax.tree.leaves(batch)}, key=math.prod
        )
        say(
            f"compiled the training step in {seconds:.1f} s (program {step.num_compilations()}; largest "
            f"array {list(shapes[-1])})"
        )
    return state, metrics


class _Record:
    """Fetches metrics one update late, checks them, averages them, and keeps the time."""

    def __init__(
        self,
        done: int,
        images_per_step: int,
        log_every: int,
        writers: Sequence[Writer],
        checkpoints: Checkpoints | None,
    ) -> None:
        self._images, self._log_every, self._writers = images_per_step, log_every, writers
        self._checkpoints = checkpoints
        self._pending: tuple[int, Metrics] | None = None
        self._logged = done
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._count, self._waited, self._excluded = 0, 0.0, 0.0
        self._started = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of an update that may still be running; process those of the one before."""
        self.drain()
        self._pending = (step, metrics)

    def drain(self) -> None:
        """Wait for the pending metrics and process them."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        _check_metrics(values, step, self._checkpoints)
        values.pop(MISMATCH, None)  # always 0 from here on
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self._log_every == 0:
            elapsed = max(time.perf_counter() - self._started - self._excluded, 1e-9)
            means = {name: total / self._count for name, total in self._sums.items()}
            means["images_per_s"] = self._images * self._count / elapsed
            means["input_wait"] = min(self._waited / elapsed, 1.0)
            means["step_s"] = elapsed / self._count
            self.write(step, means)
            self._reset()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, scalars)

    def exclude(self, seconds: float) -> None:
        self._excluded += seconds

    def waiting(self) -> _Timer:
        """Count a block's time as waiting for input."""
        return _Timer(self, "_waited")

    def pause(self) -> _Timer:
        """Leave a block's time out of the speed."""
        return _Timer(self, "_excluded")


class _Timer:
    def __init__(self, record: _Record, field: str) -> None:
        self._record, self._field = record, field

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._started
        setattr(self._record, self._field, getattr(self._record, self._field) + spent)


class _Signals:
    """Turns the first SIGTERM or Ctrl-C into a request to stop after the current update."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: str | None = None
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._say(f"{self.received}: finishing this update and saving (Ctrl-C again stops at once)")


class _Profile:
    """Traces a range of updates into a folder."""

    def __init__(self, steps: tuple[int, int] | None, folder: str | Path | None) -> None:
        if steps is not None and (folder is None or not 1 <= steps[0] <= steps[1]):
            raise ConfigError(
                f"profiling needs a folder and updates (first, last) with 1 <= first <= last, found "
                f"{steps} and {folder}"
            )
        self._steps, self._folder, self._running = steps, folder, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _check_metrics(values: Mapping[str, float], step: int, checkpoints: Checkpoints | None) -> None:
    if values.get(MISMATCH, 0.0) > 1e-3:
        raise ConfigError(
            f"update {step}: loss terms that share a normaliser (Term.per) have different weights, off by "
            f"{values[MISMATCH]:.2g} of the larger; give each normaliser its own name"
        )
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        # A bad term makes the sum and the norms bad too; name the cause.
        terms = {n: v for n, v in wrong.items() if n.startswith("loss/")} or wrong
        what = ", ".join(f"{name} = {value}" for name, value in terms.items())
        raise NonFiniteError(_not_finite(f"update {step}: {what}", checkpoints))


def _check_state(state: TrainState, done: int, checkpoints: Checkpoints) -> None:
    """Refuse to save a state with a number that is not finite (extras: that is not a number)."""
    trained = _floats({"params": state.params, "opt_state": state.opt_state, "ema": state.ema})
    verdicts = {**_all_finite(trained), **_no_nan(_floats({"extras": state.extras}))}
    bad = [name for name, good in jax.device_get(verdicts).items() if not good]
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


def _not_finite(what: str, checkpoints: Checkpoints | None) -> str:
    last = (
        f"the last good checkpoint is step {checkpoints.latest} in {checkpoints.folder}"
        if checkpoints is not None and checkpoints.latest is not None
        else "no checkpoint was saved"
    )
    return (
        f"not finite in {what}; training stopped and this state was not saved; {last}. Lower the learning "
        "rate, lengthen the warm-up or set clip_norm, and start in a new workdir"
    )


def _too_few(done: int, total_steps: int) -> str:
    return (
        f"the batches ended after {done} updates, but the run has {total_steps}; give an endless input, or "
        "fewer steps"
    )


def _stopped(
    name: str | None, done: int, total_steps: int, resume_command: str, say: Callable[[str], None]
) -> str:
    message = f"stopped by {name} after update {done} of {total_steps}; to go on: {resume_command}"
    say(message)
    return message
