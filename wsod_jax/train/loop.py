"""The training loop: batches, cues, updates, logging, checkpoints, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from wsod_jax.errors import ConfigError, CueError, DataError, PeerError
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.distributed import Votes, abandon, is_first
from wsod_jax.train.host_stage import CueSource, add_cues, opened, source_name
from wsod_jax.train.logging import Writer
from wsod_jax.train.progress import Progress, check_state, last_good
from wsod_jax.train.sharding import fetch, put
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import Metrics, TrainStep, num_rows

_FAILED = 1000  # a vote of this plus n: process n failed; smaller votes are signals

Hook = Callable[[int, TrainState, Sequence[Any], Metrics], None]
Validate = Callable[[int, TrainState], Mapping[str, float]]


class Interrupted(SystemExit):
    """A signal stopped the run; its state is saved, and the exit status is 0."""

    def __init__(self, message: str) -> None:
        """Keep the message; the status is 0."""
        super().__init__(0)
        self.message = message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """The updates of a run at which it logs, saves, profiles and ends.

    Attributes:
      total: number of updates.
      log_interval: updates between log entries, which are means over the updates between them; the first
        update has an extra entry.
      checkpoint_interval: updates between checkpoints.
      profile: (first, last) updates to trace, or `None`.

    Raises:
      ConfigError: if an interval is not positive, or the range to trace is empty.
    """

    total: int
    log_interval: int
    checkpoint_interval: int
    profile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.log_interval < 1 or self.checkpoint_interval < 1:
            raise ConfigError(
                f"intervals are at least 1, found log_interval={self.log_interval}, "
                f"checkpoint_interval={self.checkpoint_interval}"
            )
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise ConfigError(
                f"profiling needs updates (first, last) with 1 <= first <= last, found {self.profile}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watchers:
    """Writers and callbacks of a run.

    Of several processes only the first writes, prints and traces; hooks and `validate` run in all.

    Attributes:
      writers: receive "images_per_s", "input_wait" (fraction of the time spent waiting for batches),
        "step_s" (seconds per update), "cues_s" (of these, seconds of the host stage, if there is one) and
        the step's metrics.
      hooks: called after each update with (updates done, state, micro-batches on the mesh, metrics on
        the device); a hook must not keep the state, which the next update overwrites.
      validate: returns scores of a state on a validation split; called at checkpoints after the first.
      profile_folder: for traces.
      resume_command: command that resumes the run, for messages.
      say: prints a line.
    """

    writers: Sequence[Writer] = ()
    hooks: Sequence[Hook] = ()
    validate: Validate | None = None
    profile_folder: str | Path | None = None
    resume_command: str = "the same command"
    say: Callable[[str], None] = print


def train(
    step: TrainStep,
    state: TrainState,
    batches: Iterable[Any],
    steps: Steps,
    *,
    checkpoints: Checkpoints | None = None,
    watchers: Watchers = Watchers(),
    cues: CueSource | None = None,
) -> TrainState:
    """Train from the state's step to `steps.total`.

    Metrics of update n are fetched after update n + 1 was dispatched, so the device never waits for
    them. Checkpoints are saved at multiples of `steps.checkpoint_interval`, at the start and at the end,
    after a check that all numbers of the state are finite. SIGTERM or Ctrl-C finishes the update, saves and
    raises `Interrupted`; a second Ctrl-C stops immediately. If one of several processes gets the signal,
    all stop after the same update, this one or the next. If one of them fails, the others stop too.

    If the method has a `propose`, each micro-batch gets its cues before the update runs (`host_stage`).

    Args:
      step: the update.
      state: donated; the state to continue from.
      batches: host micro-batches of this process's rows, starting with the first one of update
        `state.step`; `step.accumulate` of them make an update.
      steps: how many updates, and when to log and save.
      checkpoints: where to save, or `None`.
      watchers: writers and callbacks.
      cues: answers the method's requests; entered and left here. Given if, and only if, the method has a
        `propose`.

    Returns:
      The final state.

    Raises:
      NonFiniteError: names the update, the terms and the last good checkpoint.
      CueError: if the cue source raises or is killed; the last checkpoint is intact.
      DataError: if the batches end early.
      ConfigError: if terms that share a normalizer disagree on it, or a cue source is missing or not needed.
      Interrupted: after a signal, once saved.
      PeerError: if another process failed.
    """
    if step.proposes != (cues is not None):
        raise ConfigError(
            "the method needs a cue source, but none was given; set config.cues"
            if step.proposes
            else f"the cue source {source_name(cues)} was given, but the method uses no cues; remove it"
        )
    if not is_first():
        watchers = dataclasses.replace(watchers, writers=(), say=_say_nothing)
    done = int(fetch(state.step))
    progress = Progress(steps.log_interval, watchers.writers, checkpoints)
    profile = _Profile(steps.profile, watchers.profile_folder)

    def save(validated: bool) -> None:
        progress.drain()
        if checkpoints is not None and done not in checkpoints.steps:
            with progress.pause():
                check_state(state, done, checkpoints)
                scores = watchers.validate(done, state) if watchers.validate and validated else None
                if scores:
                    progress.write(done, scores)
                checkpoints.save(done, state, scores)

    save(validated=False)
    source = iter(batches)
    with _Stop(step.mesh, watchers.say) as stop, profile, opened(cues) as answer:
        while done < steps.total and not stop.agreed:
            with progress.waiting():
                host = list(itertools.islice(source, step.accumulate))
                if len(host) < step.accumulate:
                    raise DataError(_too_few(done, steps.total))
                placed = [put(batch, step.mesh) for batch in host]
            if answer is not None:
                try:
                    with progress.cueing(), _announced(step, "propose", placed, progress, watchers):
                        placed = [add_cues(step, state, batch, answer) for batch in placed]
                except CueError as error:
                    text = _cues_failed(error, done, checkpoints, watchers.resume_command)
                    raise CueError(text) from error.__cause__
            profile.before(done + 1)
            stop.vote()
            with _announced(step, "train", placed, progress, watchers):
                with jax.transfer_guard("disallow"):
                    state, metrics = step.update(state, placed)
            done += 1
            progress.add(done, metrics, sum(sum(num_rows(batch).values()) for batch in placed))
            stop.count(done)
            profile.after(done, metrics)
            with progress.pause():
                for hook in watchers.hooks:
                    hook(done, state, placed, metrics)
            if done % steps.checkpoint_interval == 0 or done == steps.total:
                save(validated=True)
        progress.drain()
        if done < steps.total:
            save(validated=False)
            message = (
                f"stopped by {stop.agreed} after update {done} of {steps.total}; to resume: "
                f"{watchers.resume_command}"
            )
            watchers.say(message)
            raise Interrupted(message)
    return state


@contextlib.contextmanager
def _announced(
    step: TrainStep,
    kind: Literal["train", "propose"],
    placed: list,
    progress: Progress,
    watchers: Watchers,
) -> Iterator[None]:
    """Print that a block compiled a program, and exclude the compilation from the timing."""
    programs, compilations = step.num_compilations(kind), len(step.compile_seconds)
    yield
    if step.num_compilations(kind) > programs:
        seconds = sum(step.compile_seconds[compilations:])
        progress.exclude(seconds, cueing=kind == "propose")
        shapes = {tuple(x.shape) for batch in placed for x in jax.tree.leaves(batch)}
        name = "training step" if kind == "train" else "request for cues"
        watchers.say(
            f"compiled the {name} in {seconds:.1f} s (program {step.num_compilations(kind)}; largest "
            f"array {list(max(shapes, key=math.prod))})"
        )


class _Stop:
    """Turns the first SIGTERM or Ctrl-C of any process into a request to stop after an update.

    Attributes:
      agreed: name of the signal once all processes know of it, which stops the run.
    """

    def __init__(self, mesh: jax.sharding.Mesh, say: Callable[[str], None]) -> None:
        self.agreed: str | None = None
        self._received: signal.Signals | None = None
        self._say = say
        self._previous: dict[int, Any] = {}
        self._votes = Votes(mesh) if jax.process_count() > 1 else None

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._votes is not None and kind not in (None, Interrupted, PeerError):
            # Let the others know, if they still can.
            with contextlib.suppress(Exception):
                self._votes.cast(_FAILED + jax.process_index())

    def vote(self) -> None:
        """Tell the other processes, before an update, whether this one has to stop."""
        if self._votes is not None:
            self._votes.cast(0 if self._received is None else int(self._received))

    def count(self, done: int) -> None:
        """Read the votes of all before the update that was dispatched last.

        Raises:
          PeerError: if a process failed before that update.
        """
        if self._votes is None:
            return
        number = self._votes.count()
        if number >= _FAILED:
            abandon(
                f"process {number - _FAILED} failed before update {done}, so this one stops; see the message of "
                "that process"
            )
        if number:
            self.agreed = signal.Signals(number).name

    def _receive(self, number: int, _: object) -> None:
        self._received = signal.Signals(number)
        if self._votes is None:
            self.agreed = self._received.name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._say(
            f"{self._received.name}: finishing this update and saving (Ctrl-C again stops immediately)"
        )


class _Profile:
    """Traces a range of updates into a folder."""

    def __init__(self, steps: tuple[int, int] | None, folder: str | Path | None) -> None:
        if steps is not None and folder is None:
            raise ConfigError(f"profiling of updates {steps} needs a folder; set profile_folder")
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


def _too_few(done: int, total_steps: int) -> str:
    return (
        f"the batches ended after {done} updates, but the run has {total_steps}; use an endless input or fewer "
        "steps"
    )


def _cues_failed(
    error: CueError, done: int, checkpoints: Checkpoints | None, resume_command: str
) -> str:
    return (
        f"update {done + 1}: {error}; training stopped before this update; {last_good(checkpoints)}. Remove the "
        f"cause, then resume from there: {resume_command}"
    )


def _say_nothing(text: str) -> None:
    del text
