"""Writers of metrics while training: metrics.jsonl, TensorBoard, the console."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO

from tqdm import tqdm

from wsod_jax.errors import ConfigError
from wsod_jax.files import atomic_write


class Writer(Protocol):
    """Takes scalars by name at a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Store the scalars of one step."""

    def close(self) -> None:
        """Finish."""


class JsonlWriter:
    """One JSON object per line, `{"step": 100, "loss": …}`, flushed immediately."""

    def __init__(self, path: str | os.PathLike, *, resume_step: int = 0) -> None:
        """Open for appending; drop the entries that a resumed run will write again.

        Args:
          path: the file; made if absent.
          resume_step: entries of later steps, and a truncated last line, are removed.
        """
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            entries = read_jsonl(self._path)
            kept = [json.dumps(entry) + "\n" for entry in entries if entry["step"] <= resume_step]
            with atomic_write(self._path) as file:
                file.writelines(kept)
        self._file = self._path.open("a")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line."""
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Return the entries of a metrics file; a line truncated by a crash is omitted."""
    entries = []
    for line in Path(path).read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


class TensorBoardWriter:
    """TensorBoard event file, written without TensorFlow."""

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0) -> None:
        """Open a new event file.

        Args:
          folder: for the file; made if absent.
          resume_step: TensorBoard hides later steps of earlier files.

        Raises:
          ConfigError: if the tensorboard package is not installed.
        """
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                "TensorBoard logging is on, but the tensorboard package is not installed; "
                "pip install tensorboard, or turn it off in the configuration"
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{os.getpid()}.{time.monotonic_ns()}"
        self._records = RecordWriter((Path(folder) / name).open("wb"))
        self._record(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_step:
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._record(
                self._event(wall_time=time.time(), step=resume_step + 1, session_log=restart)
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Store scalars."""
        values = [self._summary.Value(tag=n, simple_value=float(v)) for n, v in scalars.items()]
        self._record(self._summarized(step, values))

    def write_png(self, step: int, name: str, png: bytes, *, height: int, width: int) -> None:
        """Store an image encoded as PNG."""
        image = self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        self._record(self._summarized(step, [self._summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _summarized(self, step: int, values: list):
        return self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))

    def _record(self, event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class ConsoleWriter:
    """A line per logged step; on a terminal also a progress bar."""

    def __init__(self, total_steps: int, *, stream: TextIO | None = None) -> None:
        """Write to `stream`.

        Args:
          total_steps: of the whole run, for percentages and the remaining time.
          stream: a text stream, standard error by default; the bar appears only if it is a terminal.
        """
        self._total = total_steps
        self._stream = stream or sys.stderr
        self._bar = (
            tqdm(total=total_steps, file=self._stream, unit="step", leave=False)
            if self._stream.isatty()
            else None
        )

    def say(self, text: str) -> None:
        """Write a line of text."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the step's line: progress, loss and its terms, learning rate, speed, remaining time."""
        pieces = [f"step {step}/{self._total} ({100 * step // max(self._total, 1)} %)"]
        if "loss" in scalars:
            pieces.append(f"loss {scalars['loss']:.4g}")
        parts = [f"{n[5:]} {v:.4g}" for n, v in scalars.items() if n.startswith("loss/")]
        if parts:
            pieces[-1] += f" ({', '.join(parts)})"
        if "lr" in scalars:
            pieces.append(f"lr {scalars['lr']:.3g}")
        if "images_per_s" in scalars:
            pieces.append(f"{scalars['images_per_s']:.3g} images/s")
        if "input_wait" in scalars:
            pieces.append(f"input wait {100 * scalars['input_wait']:.0f} %")
        if "step_s" in scalars:
            left = datetime.timedelta(seconds=round((self._total - step) * scalars["step_s"]))
            pieces.append(f"ETA {left}")
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        self.say("  ".join(pieces))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
