"""Metrics files that survive resumes, TensorBoard's own reader, console lines."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import types

import pytest

from wsod_jax.errors import ConfigError
from wsod_jax.train.logging import ConsoleWriter, JsonlWriter, TensorBoardWriter, read_jsonl


def test_jsonl_drops_what_the_resumed_run_repeats(tmp_path):
    path = tmp_path / "logs" / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # a crash while writing
    writer = JsonlWriter(path, resume_step=20)
    writer.write(30, {"loss": 7.0})
    writer.close()
    assert read_jsonl(path) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 7.0},
    ]


def test_tensorboard_reads_the_events(tmp_path, monkeypatch):
    # TensorBoard reads with its own file layer when this marker module exists; TensorFlow takes seconds.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))
    writer = TensorBoardWriter(tmp_path)
    writer.write(10, {"loss": 1.5, "lr": 0.25})
    writer.write(20, {"loss": 0.5})
    writer.write_png(20, "picture", b"not really a png", height=2, width=3)
    writer.close()
    resumed = TensorBoardWriter(tmp_path, resume_step=10)
    resumed.write(20, {"loss": 0.75})
    resumed.close()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")][-1] == (20, 0.75)
    assert [(e.step, e.value) for e in events.Scalars("lr")] == [(10, 0.25)]
    first = sorted(tmp_path.iterdir())[0]
    (length,) = struct.unpack("<Q", first.read_bytes()[:8])
    assert 0 < length < 100


def test_writing_events_does_not_import_tensorflow(tmp_path):
    code = (
        "import sys; from wsod_jax.train.logging import TensorBoardWriter as W; "
        f"w = W({str(tmp_path)!r}); w.write(1, {{'a': 1.0}}); w.close(); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ConfigError, match="install tensorboard"):
        TensorBoardWriter(tmp_path)


def test_console_line():
    stream = io.StringIO()
    writer = ConsoleWriter(400, stream=stream)
    writer.write(
        100,
        {
            "loss": 1.25,
            "loss/mil": 1.0,
            "loss/refine": 0.25,
            "lr": 0.001,
            "images_per_s": 12.34,
            "input_wait": 0.034,
            "step_s": 0.5,
        },
    )
    writer.close()
    assert stream.getvalue() == (
        "step 100/400 (25 %)  loss 1.25 (mil 1, refine 0.25)  lr 0.001  12.3 images/s  "
        "input wait 3 %  ETA 0:02:30\n"
    )


def test_bar_only_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    writer = ConsoleWriter(10, stream=stream)
    writer.write(5, {"loss": 1.0})
    writer.close()
    assert "5/10" in stream.getvalue() and "step 5/10 (50 %)" in stream.getvalue()
    assert "\r" in stream.getvalue()
