"""The demo's own part: what it runs, what it skips, what it writes. The chain itself runs in `make demo`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from wsod_jax.__main__ import COMMANDS
from wsod_jax.commands import demo, demo_report
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.train.logging import JsonlWriter
from wsod_jax.train.weights import save_weights
from wsod_jax.viz import save_image

ROOT = Path(__file__).resolve().parents[1]


def writer(path: Path, text: str = "x") -> demo.Step:
    """Return a step that appends to a file, so that runs can be counted."""
    code = f"open({str(path)!r}, 'a').write({text!r})"
    return demo.Step(f"write {path.name}", ("-c", code), path)


def test_done_steps_are_skipped_and_what_follows_a_changed_one_runs_again(tmp_path, capsys):
    first, second = writer(tmp_path / "a"), writer(tmp_path / "b")

    def run(*steps: demo.Step) -> None:
        log = demo.StepLog(tmp_path / "steps.json")
        assert [log.run(step) for step in steps] == [0, 0]
        assert set(log.entries) == {"write a", "write b"}
        assert log.seconds > 0 and log.gibibytes > 0

    run(first, second)
    run(first, second)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["x", "x"]
    assert capsys.readouterr().out.count("done before") == 2
    run(writer(tmp_path / "a", "y"), second)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["xy", "xx"]
    (tmp_path / "b").unlink()
    run(writer(tmp_path / "a", "y"), second)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["xy", "x"]


@pytest.mark.parametrize("code, status", [("import sys; sys.exit(7)", 7), ("pass", 1)])
def test_a_step_that_fails_or_writes_nothing_stops_the_demo(tmp_path, capsys, code, status):
    log = demo.StepLog(tmp_path / "steps.json")
    assert log.run(demo.Step("broken", ("-c", code), tmp_path / "missing")) == status
    assert "broken: stopped with status" in capsys.readouterr().err
    assert not log.entries and not (tmp_path / "steps.json").exists()


@pytest.mark.parametrize("small", [False, True])
def test_chain_names_real_commands_and_passes_paths_where_they_differ(small):
    last = demo.num_steps(small)
    default, elsewhere = (
        demo.chain(Path(out), small, seed=3, last=last) for out in ("demo", "other")
    )
    for steps in (default, elsewhere):
        assert all(step.command[:2] == demo.RUN and step.command[2] in COMMANDS for step in steps)
        trained = [step for step in steps if step.command[2] == "train"]
        assert len(trained) == 3
        assert all("--config.seed=3" in step.command for step in trained)
    named = " ".join(word for step in default for word in step.command)
    assert "--config.data.root" not in named  # the configurations say it
    named = " ".join(word for step in elsewhere for word in step.command)
    assert not re.search(r"[= ]demo/", named)
    for setting in ("data.root", "proposals.path", "train.init_from"):
        assert named.count(f"--config.{setting}=other/") == 3 - (setting != "data.root")


def test_report_joins_both_methods(tmp_path):
    summaries = {"wsddn": {"mAP50": 0.25, "CorLoc": 0.3}, "oim_ir": {"mAP50": 0.5, "CorLoc": None}}
    reports, evaluations = {}, {}
    for method, summary in summaries.items():
        folder = tmp_path / method / "evaluation" / "20"
        save_image(folder / "curve.png", np.zeros((8, 8, 3), np.uint8))
        pictures = [{"path": "curve.png", "caption": f"curve of {method}"}]
        reports[method] = {"summary": summary, "pictures": pictures}
        evaluations[method] = folder / "report.json"
        evaluations[method].write_text(json.dumps(reports[method]))
        (folder / "report.md").write_text("numbers")
    for update in (10, 20):
        name = f"{update:06d}_000007.png"
        save_image(tmp_path / "oim_ir" / "pictures" / name, np.zeros((8, 8, 3), np.uint8))
    table = demo_report.score_table(summaries)
    assert "| WSDDN    |   25.0 |   30.0 |" in table and "|   50.0 |      – |" in table
    assert "+25.0" in table
    log = {"Render": {"seconds": 3.2}}
    checksums = {"proposals": "0123456789ab"}
    report = demo_report.write_report(
        tmp_path, reports, evaluations, table, checksums, log, small=True
    )
    text = report.read_text()
    assert table in text and "mean nothing" in text and "| Render | 3 |" in text
    assert "| proposals | 0123456789ab |" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 5 and "oim_ir/pseudo_boxes.png" in links
    assert all((tmp_path / link).is_file() for link in links)


def test_checksums_name_the_stage_that_changed(tmp_path):
    def demo_files(folder, pixel=0, shift=0.0, scale=1.0, loss=0.5):
        data, weights = folder / "set", folder / "tiny.npz"
        for name in ("JPEGImages", "Annotations"):
            (data / name).mkdir(parents=True)
        save_image(data / "JPEGImages" / "000001.png", np.full((8, 8, 3), pixel, np.uint8))
        boxes = {"000001": np.array([[0, 0, 4, 4 + shift]], np.float32)}
        ProposalSet.from_images({"000001": (8, 8)}, boxes, generator="hand").save(folder / "p.npz")
        kernel = {"conv": {"kernel": np.full((1, 1, 3, 2), scale, np.float32)}}
        save_weights(
            weights, kernel, {"architecture": "tiny", "pixels": "torchvision", "source": "test"}
        )
        writer = JsonlWriter(folder / "run" / "metrics.jsonl")
        writer.write(1, {"loss": loss})
        writer.write(2, {"loss": 0.1})
        writer.close()
        stages = {"set": data}, folder / "p.npz", {}, {"weights": weights}, {"run": folder / "run"}
        return demo_report.stage_checksums(*stages)

    first = demo_files(tmp_path / "first")
    assert list(first) == ["set", "proposals", "weights", "run, first loss"]
    assert first == demo_files(tmp_path / "again") and first["run, first loss"] == "0.5"
    changes = dict(
        zip(first, ({"pixel": 1}, {"shift": 1.0}, {"scale": 2.0}, {"loss": 0.25}), strict=True)
    )
    for stage, change in changes.items():
        other = demo_files(tmp_path / stage, **change)
        assert [name for name in first if first[name] != other[name]] == [stage]
