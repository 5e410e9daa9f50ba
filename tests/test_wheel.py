"""The wheel, installed in an environment of its own far from any checkout, trains a shipped configuration by name."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this checkout on its path; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def source(tmp_path) -> Path:
    """Return a copy of the sources, without what earlier builds left in the checkout."""
    copy = tmp_path / "source"
    for name in ("wsod_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def wheel(source) -> Path:
    """Return the path of the wheel, built."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", ".", cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_one_package_and_the_configurations_in_it(wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    tops = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    assert tops == {"wsod_jax"}
    for folder, inside in ((ROOT / "wsod_jax", "wsod_jax"), (ROOT / "configs", "wsod_jax/configs")):
        for path in folder.rglob("*.py"):
            assert Path(inside) / path.relative_to(folder) in names


FIND = """
import importlib.util as find
print(find.find_spec("wsod_jax.configs.debug_tiny").origin, find.find_spec("configs"))
"""


@pytest.mark.slow
def test_an_editable_install_has_the_same_packages(source, tmp_path):
    python = tmp_path / "environment" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "environment", cwd=tmp_path)
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", source, cwd=tmp_path)
    assert run(python, "-c", FIND, cwd=tmp_path).split() == [
        str(source / "configs" / "debug_tiny.py"),
        "None",
    ]
    assert "make_proposals" in run(python.parent / "wsod-jax", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_a_bare_install_trains_by_name(wheel, tmp_path):
    environment, here = tmp_path / "environment", tmp_path / "here"
    here.mkdir()
    run(sys.executable, "-m", "venv", environment, cwd=here)
    pip = (environment / "bin" / "python", "-m", "pip", "install", "-q")
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=here)
    command = environment / "bin" / "wsod-jax"
    data, proposals = "demo/data/debug", "demo/data/debug_proposals.npz"
    few = ("--num_trainval", "12", "--num_test", "6", "--size", "96")
    run(command, "make_synthetic", "--out", data, *few, cwd=here)
    splits = ("--split", "trainval", "test")
    run(command, "make_proposals", "--data", data, *splits, "--out", proposals, cwd=here)
    run(command, "train", "--config", "debug_tiny", "--workdir", "run", cwd=here)
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 6
    found = run(command, "evaluate", "--workdir", "run", cwd=here)
    assert "mAP50" in found
