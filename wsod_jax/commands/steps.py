"""Run the commands of a chain, one on each core, as soon as what they need is there; skip those that are done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsod_jax.commands.command_line import command_text

MAX_PROCESSES = 4  # of about 1.5 GiB each
LINES_OF_A_FAILURE = 20


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
      title: what it does, for people; unique.
      command: arguments of Python.
      output: a file that the command writes last.
      needs: outputs of other steps that it reads.
    """

    title: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Running:
    step: Step
    process: subprocess.Popen
    core: int | None
    started: float


class StepLog:
    """Runs steps, and remembers in a file which are done, how long they took and how much memory.

    Each runs on a core of its own, so that its numbers do not depend on how many there are; what it says goes to
    `logs/` next to the file.

    Args:
      path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
        self._changed: set[Path] = set()  # what needs one of these runs again, too

    @property
    def gibibytes(self) -> float:
        """The memory of the largest process of any step."""
        return max(entry["gibibytes"] for entry in self.entries.values())

    def run(self, steps: Sequence[Step]) -> int:
        """Run the steps that are not done; return 0, or the exit status of the first that fails, 130 after Ctrl-C.

        Of the steps whose needs are there, those that come first in `steps` run first. After a failure no further step
        starts.
        """
        waiting, running, cores = list(steps), [], free_cores()
        missing = {step.output for step in steps}
        status = 0
        try:
            while running or (waiting and not status):
                ready = [step for step in waiting if not missing.intersection(step.needs)]
                for step in ready[: 0 if status else len(cores)]:
                    waiting.remove(step)
                    if self._is_done(step):
                        print(f"done before: {step.title}", flush=True)
                        missing.discard(step.output)
                    else:
                        running.append(self._start(step, cores.pop(0)))
                ended = [one for one in running if one.process.poll() is not None]
                for one in ended:
                    running.remove(one)
                    cores.append(one.core)
                    status = status or self._end(one)
                    missing.discard(one.step.output)
                if running and not ended:
                    time.sleep(0.1)
        except KeyboardInterrupt:
            for one in running:
                _wait(one.process)  # Ctrl-C went to it, too: it is saving
            print(f"\nInterrupted. The same command goes on: {command_text()}", file=sys.stderr)
            return 130
        return status

    def _is_done(self, step: Step) -> bool:
        same = self.entries.get(step.title, {}).get("command") == list(step.command)
        return same and step.output.exists() and not self._changed.intersection(step.needs)

    def _start(self, step: Step, core: int | None) -> _Running:
        log = self._log_file(step)
        print(f"start: {step.title}\n  $ python {shlex.join(step.command)}", flush=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        compiled = str(self.path.parent.resolve() / "compiled")  # other seeds run the same programs
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "Agg"}
        environment |= {"JAX_COMPILATION_CACHE_DIR": compiled, **os.environ}
        with log.open("wb") as file, pinned(core):
            process = subprocess.Popen(
                [sys.executable, *step.command],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return _Running(step, process, core, time.monotonic())

    def _end(self, one: _Running) -> int:
        """Take down a step that has ended; return its exit status, 1 if it wrote no output."""
        step, status = one.step, one.process.wait()
        if status or not step.output.exists():
            log = self._log_file(step)
            lines = log.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
            print(
                "\n".join(lines) + f"\n{step.title}: stopped with status {status} and "
                f"{'an' if step.output.exists() else 'no'} output {step.output}. The messages above, and all of "
                f"{log}, say why; once that is mended, the same command goes on: {command_text()}",
                file=sys.stderr,
            )
            return status or 1
        seconds = time.monotonic() - one.started
        self.entries[step.title] = {
            "command": list(step.command),
            "seconds": seconds,
            "gibibytes": largest_child(),
        }
        self.path.write_text(json.dumps(self.entries, indent=1) + "\n")
        self._changed.add(step.output)
        print(f"done in {seconds:.0f} s: {step.title}", flush=True)
        return 0

    def _log_file(self, step: Step) -> Path:
        return self.path.parent / "logs" / (re.sub(r"\W+", "_", step.title.lower()) + ".txt")


def free_cores() -> list[int | None]:
    """Return the cores to use, at most `MAX_PROCESSES`; `None`s where the system does not tell or bind them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))[:MAX_PROCESSES]
    return [None] * min(os.cpu_count() or 1, MAX_PROCESSES)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Let processes that start in the block run on one core; any for `None`."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait(process: subprocess.Popen) -> None:
    while True:
        try:
            process.wait()
            return
        except KeyboardInterrupt:
            pass  # a second one stops the process at once


def largest_child() -> float:
    """Return the memory of the largest process so far that was waited for, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30
