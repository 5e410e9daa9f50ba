"""The synthetic set is as hard as promised: by the whole demo at full size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsod_jax.commands import demo

ROOT = Path(__file__).parents[1]


def mean_scores(folder: Path, method: str) -> dict[str, float]:
    """Return a method's scores, means over the demo's three seeds."""
    reports = [*folder.glob(f"{method}/evaluation/*/report.json")]
    reports += folder.glob(f"{method}-seed[12]/evaluation/*/report.json")
    assert len(reports) == 3
    found = [json.loads(report.read_text(encoding="utf-8"))["summary"] for report in reports]
    return {
        name: sum(one[name] for one in found) / 3
        for name in ("mAP50", "CorLoc", "classification mAP")
    }


@pytest.mark.slow
def test_default_difficulty_and_what_oim_gains(tmp_path):
    # in a process of its own: a child's largest size counts what its parent held when it was started
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--out", str(tmp_path / "demo")]
    assert subprocess.run(command, check=False).returncode == 0
    scores = {method: mean_scores(tmp_path / "demo", method) for method in demo.METHODS}
    gain = {name: scores["oim_ir"][name] - scores["wsddn"][name] for name in ("mAP50", "CorLoc")}
    assert scores["wsddn"]["CorLoc"] <= 0.75  # boxes are far from found
    assert scores["wsddn"]["classification mAP"] >= 0.85  # classes are
    # On two machines the mean gains were 10 and 3 points, with standard errors of 2.
    assert gain["mAP50"] >= 0.05 and gain["CorLoc"] >= -0.01, gain
    entries = json.loads((tmp_path / "demo" / "steps.json").read_text(encoding="utf-8"))
    assert max(entry["gibibytes"] for entry in entries.values()) < 6
