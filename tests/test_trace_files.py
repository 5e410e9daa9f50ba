"""The list of the files that a training run executes, and what the documents say of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


def rooms(files: list[str]) -> list[str]:
    """Return the lines in which the documents list files: a room's name, and its files."""
    found: dict[str, list[str]] = {}
    for file in map(Path, files):
        room = file.parent.as_posix().removeprefix("wsod_jax/")
        found.setdefault(room, []).append(file.stem)
    return [f"{room}: {', '.join(names)}" for room, names in found.items()]


NARROW = """
import sys
from wsod_jax.commands import trace_files
from wsod_jax.nn import vgg
vgg.STAGES = tuple((count, 8) for count, _ in vgg.STAGES)
vgg.Vgg16.channels = 8
sys.exit(trace_files.main([]))
"""


@pytest.mark.slow
def test_files_of_a_training_run():
    # A process of its own: a function that an earlier test compiled would not run again.
    printed = subprocess.run(
        [sys.executable, "-c", NARROW], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    *files, total = re.findall(r"^(?:\S+\.py|\d+ files)$", printed, flags=re.MULTILINE)
    assert total == f"{len(files)} files"
    assert files == sorted(set(files))
    config = "configs/oim_ir_vgg16_voc07.py"
    assert {config, "wsod_jax/methods/oim.py", "wsod_jax/train/step.py"} <= set(files)
    assert "wsod_jax/commands/trace_files.py" not in files
    text = ARCHITECTURE.read_text(encoding="utf-8")
    (told,) = re.findall(r"trace_files`: (\d+) files", text)
    assert int(told) == len(files)
    for line in rooms(files):
        assert f"\n{line}\n" in text
